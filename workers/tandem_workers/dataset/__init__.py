"""A dataset: shards, formats, the records of what is committed, and its checks."""
