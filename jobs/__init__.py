"""What a user runs: one module a command, and the specs, pipeline and progress that they share."""
