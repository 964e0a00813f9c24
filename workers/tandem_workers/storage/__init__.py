"""Stores for datasets, local and in S3, and the names of their files."""
