"""A small task for the training loop, and a host that keeps its checkpoints in memory."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.training.batches import Batches, StepRows
from tandem.training.parallel import Workers
from tandem.training.state import LoopSettings, LoopState
from tandem.training.sums import Sums
from tandem.training.task import Task

ROWS, CLASSES, WIDTH = 50, 5, 8
SETTINGS = LoopSettings(steps=50, batch=7, peak_lr=1e-2, warmup=5, log_every=1, checkpoint_every=10)


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, WIDTH)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class ToyTask(Task):
    """Classes of points. `broken_at`: the step whose loss is NaN. `counted`: rows that all steps took."""

    def __init__(self, broken_at: int | None = None, evaluated: bool = False) -> None:
        self.broken_at, self.evaluated = broken_at, evaluated

    def build(self, device: torch.device) -> nn.Module:
        torch.manual_seed(0)
        return ToyModel().to(device)

    def prepare(self, module: nn.Module, data: Any, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(1)
        self.points = torch.randn(ROWS, 3, generator=generator).to(device)
        self.labels = (self.points @ torch.randn(3, CLASSES, generator=generator).to(device)).argmax(1)

    def batches(self, settings: LoopSettings) -> Batches:
        return Batches(settings.seed, ROWS, settings.batch, label_dropout=0.1)

    def loss(self, model: nn.Module, rows: StepRows, step: int, progress: float) -> tuple[Tensor, Sums]:
        logits, labels = model(self.points[rows.index]), self.labels[rows.index]
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        right = (logits.argmax(1) == labels).sum()
        if step == self.broken_at and 0 in rows.place:  # on one worker alone
            loss = loss * float("nan")
        return loss, {"accuracy": (right, torch.tensor(len(rows)))}

    def extra(self, module: nn.Module) -> dict[str, Tensor]:
        return {"taken": torch.zeros(ROWS, dtype=torch.int64)}

    def after_step(self, state: LoopState, rows: StepRows) -> None:
        state.extra["taken"] += torch.bincount(rows.index, minlength=ROWS)

    def evaluate(self, model: nn.Module, workers: Workers) -> Sums:
        if not self.evaluated:
            return {}
        mine = torch.arange(ROWS)[workers.rank :: workers.world]
        loss = F.cross_entropy(model(self.points[mine]).float(), self.labels[mine], reduction="sum")
        return {"heldout_loss": (loss, torch.tensor(len(mine)))}


class MortalTask(ToyTask):
    """At a step, the last worker gets a signal, once for each marker file."""

    def __init__(self, marker: Path, step: int, number: int = signal.SIGKILL, every_time: bool = False) -> None:
        super().__init__(evaluated=True)
        self.marker, self.step, self.number, self.every_time = marker, step, number, every_time

    def prepare(self, module: nn.Module, data: Any, device: torch.device) -> None:
        """Data, if any, are read by every worker, also after a restart, from the one copy of the node."""
        assert data is None or (data["ids"].sum() == 45 and not data["ids"].flags.writeable)
        super().prepare(module, data, device)

    def before_step(self, state: LoopState, rows: StepRows) -> None:
        if state.step != self.step or dist.get_rank() != dist.get_world_size() - 1:
            return
        if self.every_time or not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), self.number)


class MemoryHost:
    """Keeps records, and checkpoints of whole tensors. `stop_at`: the step during which somebody asks to stop."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.records: list[dict[str, float]] = []
        self.saved: dict[int, tuple[dict[str, Tensor], dict[str, Any]]] = {}
        self.stop_at = stop_at
        self.asked = 0

    def load(self, state: LoopState) -> None:
        if self.saved:
            tensors, numbers = self.saved[max(self.saved)]
            with torch.no_grad():
                for name, value in state.tensors().items():
                    value.copy_(tensors[name])
            state.set_numbers(copy.deepcopy(numbers))
        self.records = [record for record in self.records if record["step"] <= state.step]

    def save(self, state: LoopState) -> None:
        tensors = {name: value.detach().clone() for name, value in state.tensors().items()}
        self.saved[state.step] = tensors, copy.deepcopy(state.numbers())

    def record(self, values: dict[str, float]) -> None:
        self.records.append(values)

    def is_stopping(self) -> bool:
        self.asked += 1
        return self.asked == self.stop_at

    def is_leaving(self) -> bool:
        return False

    def losses(self) -> list[float]:
        return [record["loss"] for record in self.records if "loss" in record]
