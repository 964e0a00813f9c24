"""Training pictures and training: `tandem pictures` and `tandem train`."""
