"""Documents to tokens, on all cores, in the order of the corpus."""
