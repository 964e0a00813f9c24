"""The embedded model: weights that ship with the package, so that everything works without a download."""

from __future__ import annotations

from pathlib import Path

from tandem.config import SamplingConfig

ROLES = ("vqvae", "drafter", "refiner")
EMBEDDED_SAMPLING = SamplingConfig(cfg=3.0, top_k=0, top_p=0.9, temperatures=(1.0,))
FOLDER = Path(__file__).parent
CARD = FOLDER / "README.md"
CLASSIFIER = FOLDER / "classifier.safetensors"  # of the same 12 classes; README.md has its hash
# By name and role. embedded-d3: a third size over the same VQVAE, for studies; embedded-distilled: the pair of embedded
# without guidance
FILES: dict[str, dict[str, Path]] = {
    "embedded": {role: FOLDER / f"{role}.safetensors" for role in ROLES},
    "embedded-d3": dict.fromkeys(("drafter", "refiner"), FOLDER / "d3.safetensors"),
    "embedded-distilled": {role: FOLDER / f"{role}-distilled.safetensors" for role in ("drafter", "refiner")},
}


def weights_path(role: str, name: str = "embedded") -> Path:
    """File of an embedded model."""
    return FILES[name][role]
