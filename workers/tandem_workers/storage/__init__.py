"""Places that keep a dataset, local and in S3, and how their files are named."""
