"""Ray around the algorithm: the stages of the pipeline and the dataset store. No maths here."""
