"""Terminal, signals, locks and options."""
