"""Where the work runs: placement on devices, and the one Ray session."""

PACKAGES = ("tandem", "tandem_workers", "tandem_jobs", "tandem_cluster")  # ours: what a cluster needs of the code
