"""Tokens to a directory of shards."""
