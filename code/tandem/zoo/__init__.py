"""The embedded model: weights that ship with the package, so that everything works without a download."""

from __future__ import annotations

from pathlib import Path

from tandem.config import SamplingConfig

ROLES = ("vqvae", "drafter", "refiner")
EMBEDDED_SAMPLING = SamplingConfig(cfg=3.0, top_k=0, top_p=0.9, temperatures=(1.0,))
D3 = Path(__file__).with_name("d3.safetensors")  # a third size over the same VQVAE, for studies
CARD = Path(__file__).with_name("README.md")
CLASSIFIER = Path(__file__).with_name("classifier.safetensors")  # of the same 12 classes; README.md has its hash


def weights_path(role: str) -> Path:
    """File of the embedded vqvae, drafter or refiner."""
    if role not in ROLES:
        raise ValueError(f"expected one of {ROLES}, got {role!r}")
    return Path(__file__).with_name(f"{role}.safetensors")
