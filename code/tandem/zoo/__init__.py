"""The embedded model: weights that ship with the package, so that everything works without a download."""

from __future__ import annotations

from pathlib import Path

ROLES = ("vqvae", "drafter", "refiner")
CARD = Path(__file__).with_name("README.md")


def weights_path(role: str) -> Path:
    """File of the embedded vqvae, drafter or refiner."""
    if role not in ROLES:
        raise ValueError(f"expected one of {ROLES}, got {role!r}")
    return Path(__file__).with_name(f"{role}.safetensors")
