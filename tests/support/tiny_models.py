"""Models of a few thousand weights, for tests that run the real code on them."""

from pathlib import Path

import torch

from tandem.checkpoints.weights import save_checkpoint
from tandem.config import VarConfig, VqvaeConfig
from tandem.initial import initial_value
from tandem.var import Var
from tandem.vqvae import Vqvae

PATCH_NUMS = (1, 2, 3, 4)
VOCAB, LATENT, NUM_CLASSES = 64, 8, 4
CLASS_NAMES = ("ant", "bee", "cat", "dog")


def tiny_vqvae(seed: int = 0, vocab_size: int = VOCAB) -> Vqvae:
    """16 px images, 4 x 4 latents."""
    torch.manual_seed(seed)
    config = VqvaeConfig(vocab_size, LATENT, 32, (1, 1), 1, stem_patch=2, patch_nums=PATCH_NUMS)
    return Vqvae(config).requires_grad_(False).eval()


def tiny_var(
    depth: int,
    seed: int,
    vocab_size: int = VOCAB,
    patch_nums: tuple[int, ...] = PATCH_NUMS,
    num_classes: int = NUM_CLASSES,
    **kw,
) -> Var:
    torch.manual_seed(seed)
    config = VarConfig(depth, num_classes, vocab_size, LATENT, patch_nums, **kw)
    var = Var(config)
    with torch.no_grad():
        for name, tensor in var.named_parameters():
            tensor.copy_(initial_value(name, tensor.shape, var.config, 3.0))
    with torch.no_grad():  # gates near zero would make all tokens alike
        for block in var.blocks:
            if not config.shared_adaln:
                block.ada_lin[1].bias[: 2 * config.width] = 1.0
    return var.requires_grad_(False).eval()


def save_tiny_models(folder: Path, num_classes: int = NUM_CLASSES) -> dict[str, str]:
    """Three files that fit each other: options of `tandem generate`. Names of classes are in them for `NUM_CLASSES`."""
    folder.mkdir(parents=True, exist_ok=True)
    extra = {"classes": list(CLASS_NAMES)} if num_classes == NUM_CLASSES else {}
    transformers = {
        "drafter": tiny_var(3, 1, num_classes=num_classes),
        "refiner": tiny_var(2, 2, num_classes=num_classes),
    }
    models = {**transformers, "vqvae": tiny_vqvae()}
    for role, model in models.items():
        save_checkpoint(folder / f"{role}.safetensors", model, extra, torch.float32)
    return {role: str(folder / f"{role}.safetensors") for role in models}
