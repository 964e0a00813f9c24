"""Training of tokenizers and transformers: batches, losses, and what they cost. Torch alone."""
