"""Tokens to a directory of shards with a manifest, complete or absent, resumable after a kill."""
