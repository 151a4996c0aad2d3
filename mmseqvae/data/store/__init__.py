"""What is kept on disk: features in shards, written whole or not at all."""
