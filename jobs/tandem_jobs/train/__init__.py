"""Training and evaluation: `tandem pictures`, `tandem train` and `tandem evaluate`."""
