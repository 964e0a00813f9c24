"""Metrics of datasets on features that an extractor made, and the report of an evaluation."""
