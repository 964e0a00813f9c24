"""What the studies and the tuner measure in tests."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from support.tiny_models import tiny_var, tiny_vqvae
from tandem.checkpoints.weights import save_checkpoint
from tandem_workers.features.embedded_classifier import embedded_class_names


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Models of three sizes with the classes of the embedded classifier, and two pictures of each class a split."""
    root, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    names = list(embedded_class_names())
    models = {"drafter": tiny_var(3, 1, num_classes=12), "refiner": tiny_var(1, 2, num_classes=12)}
    models |= {"middle": tiny_var(2, 3, num_classes=12), "vqvae": tiny_vqvae()}
    for role, model in models.items():
        save_checkpoint(root / f"{role}.safetensors", model, {"classes": names}, torch.float32)
    for split in ("train", "heldout"):
        for name in names:
            (root / "data" / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(root / "data" / split / name / f"{i}.png")
    (root / "data" / "pictures.json").write_text(json.dumps({"classes": names}))
    return root
