"""The token store: shards, index, maintenance."""
