"""Training on a cluster: token sets, checkpoints in stores, and runs of Ray Train."""
