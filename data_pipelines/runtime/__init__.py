"""Options, locks, progress on the terminal and Ctrl-C."""
