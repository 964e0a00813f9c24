"""A run that makes shards: the job, its pipeline, its progress and its end."""
