"""What is trained: the recipe that every worker of a run follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from tandem.training.batches import Batches, StepRows
from tandem.training.parallel import Workers
from tandem.training.state import LoopSettings, LoopState
from tandem.training.sums import Sums


class Task(ABC):
    """A recipe that can be pickled. Whatever it makes is the same on every worker.

    `partial`: some steps leave some parameters without gradient.
    """

    partial = False

    @abstractmethod
    def build(self, device: torch.device) -> nn.Module:
        """The module to train: float32, on the device, with the same weights on every worker.

        Its `forward` is what `loss` calls, and its `blocks`, if any, are what FSDP takes apart.
        """

    @abstractmethod
    def prepare(self, module: nn.Module, data: Any, device: torch.device) -> None:
        """Take the data, and put what is not trained (quantizer, teacher) onto the device. `module` is whole."""

    @abstractmethod
    def batches(self, settings: LoopSettings) -> Batches:
        """The batches of the data."""

    @abstractmethod
    def loss(self, model: nn.Module, rows: StepRows, step: int, progress: float) -> tuple[Tensor, Sums]:
        """Sum of the loss over these rows (float32), and what else to log.

        Args:
            model: the module of `build`, or what DDP makes of it: call it, not its parts.
            progress: share of the steps done, in [0, 1).
        """

    def extra(self, module: nn.Module) -> dict[str, Tensor]:
        """Further state that checkpoints keep, as it is at the start: the same names always, equal on every worker."""
        return {}

    def before_step(self, state: LoopState, rows: StepRows) -> None:
        """Change the state before a step. `rows` are the whole global batch, so that workers do the same."""
        return

    def after_step(self, state: LoopState, rows: StepRows) -> None:
        """Change the state after a step; `state.step` counts it already."""
        return

    def evaluate(self, model: nn.Module, workers: Workers) -> Sums:
        """Score the averaged weights, which the model holds.

        Workers share the rows, and call the model equally often.
        """
        return {}
