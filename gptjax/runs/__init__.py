"""A training run: its directory, how it starts, resumes, trains and reports, and what `--checkpoint` opens."""
