"""Checkpoints: files of weights as they are found, what is in them, and models from them."""
