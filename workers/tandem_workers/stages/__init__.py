"""The stages of the pipeline, and the adapter between them and Ray Data."""
