"""A dataset: shards, formats, records of committed shards, and checks."""
