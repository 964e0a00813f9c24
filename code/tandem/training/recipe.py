"""Length and pace of the paper's fine-tuning. Sources: CoDe (arXiv 2411.17787), and for the epochs VAR's README."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["drafter", "refiner"]
IMAGENET_IMAGES = 1_281_167
ORIGINAL_EPOCHS = {16: 200, 20: 250, 24: 350, 30: 350, 36: 350}  # of the published models, by depth
BASE_BATCH = 256  # learning rates are for so many images a step, and proportional to the batch


@dataclass(frozen=True)
class Recipe:
    """
    Attributes:
        share: of the original epochs.
        base_lr: learning rate for `BASE_BATCH` images a step.
        weight_decay: of AdamW.
        batch: images a step, by accumulation.
    """

    share: float
    base_lr: float
    weight_decay: float
    batch: int = 1024

    def lr(self, batch: int) -> float:
        """Learning rate of a batch."""
        return self.base_lr * batch / BASE_BATCH

    def epochs(self, depth: int) -> float | None:
        """Epochs for a published depth; None for others, whose original epochs are not known."""
        original = ORIGINAL_EPOCHS.get(depth)
        return None if original is None else self.share * original


RECIPES: dict[Role, Recipe] = {"drafter": Recipe(0.05, 1e-6, 0.08), "refiner": Recipe(0.25, 1e-5, 0.0)}
