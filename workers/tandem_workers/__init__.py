"""The algorithm on Ray: the stages of the pipeline, the dataset store and the endpoint. No maths here."""
