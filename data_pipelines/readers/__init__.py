"""What gives documents: files by their format, repositories, prepared sets. Nothing here knows of tokens or shards."""
