"""Readers yield documents: files by their format, repositories, prepared sets. Nothing here imports tokens or shards."""
