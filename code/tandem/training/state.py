"""Settings of a training loop, and the state that its checkpoints keep."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tandem.training.optimiser import Average, make_adamw
from tandem.training.parallel import ComputeDtype, Sharding
from tandem.training.schedule import Schedule
from tandem.training.sums import Totals

# Settings that change the pace of a run, or where it runs, but not what it computes
NOT_IDENTITY = ("micro_batch", "sharding", "log_every", "checkpoint_every")


@dataclass(frozen=True)
class LoopSettings:
    """Length, pace and form of a training run.

    batch: rows of a step, over all workers. micro_batch: most rows that go through the model at once.
    """

    steps: int
    batch: int
    peak_lr: float
    micro_batch: int | None = None
    warmup: int = 100
    schedule: Schedule = "cosine"
    final_lr: float = 0.01
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    dtype: ComputeDtype = "float32"
    sharding: Sharding = "ddp"
    log_every: int = 25
    checkpoint_every: int = 250
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """What another run in the same place has to share, as JSON values."""
        values = {name: value for name, value in asdict(self).items() if name not in NOT_IDENTITY}
        return values | {"betas": list(self.betas)}


@dataclass
class LoopState:
    """What a checkpoint keeps. `model` is the module of the task: whole, or sharded in place by FSDP.

    step: steps done. seconds: of training so far. totals: sums since the last record. evaluation: the last one.
    """

    model: nn.Module
    optimiser: torch.optim.AdamW
    average: Average
    extra: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0
    totals: Totals = field(default_factory=Totals)
    evaluation: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, model: nn.Module, settings: LoopSettings, extra: dict[str, Tensor]) -> LoopState:
        return cls(model, make_adamw(model, settings.weight_decay, settings.betas), Average(model), extra)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; writing into them changes the state. Names do not depend on workers or sharding."""
        named = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        named |= {f"average/{name}": value for name, value in self.average.tensors.items()}
        named |= {f"extra/{name}": value for name, value in self.extra.items()}
        for name, parameter in self.model.named_parameters():
            state = self.optimiser.state.get(parameter, {})
            named |= {f"optimiser/{name}/{key}": value for key, value in state.items()}
        return named

    def numbers(self) -> dict[str, Any]:
        """All else, as JSON values."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "totals": self.totals.values,
            "evaluation": self.evaluation,
        }

    def set_numbers(self, numbers: dict[str, Any]) -> None:
        self.step, self.seconds = numbers["step"], numbers["seconds"]
        self.totals, self.evaluation = Totals(numbers["totals"]), dict(numbers["evaluation"])
