"""Where the work runs: placement on devices, and the one Ray session."""
