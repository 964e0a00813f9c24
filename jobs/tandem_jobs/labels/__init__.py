"""Label rows: which images a job makes, and what makes it the same job again."""
