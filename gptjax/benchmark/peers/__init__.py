"""Other implementations of GPT-2 that a benchmark runs beside ours."""
