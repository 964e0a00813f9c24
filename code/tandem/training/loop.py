"""The training loop: one for every task and any number of workers.

Step s takes the batch s of the data, whatever happened before, so a run that is resumed, also by another number of
workers, sees what an undisturbed one sees. Host and task are called on every worker in the same order.
"""

from __future__ import annotations

import math
import time
from typing import Any, Protocol

import torch

from tandem.errors import InputError, JobError
from tandem.training.batches import StepRows, micro_batches
from tandem.training.parallel import Workers, clip_gradients, computing, gradient_sync, parallelise
from tandem.training.schedule import learning_rate
from tandem.training.state import LoopSettings, LoopState
from tandem.training.sums import Sums, Totals, merge, summed
from tandem.training.task import Task

NOT_FINITE_HINT = "lower --lr, or clip gradients harder with --grad-clip"


class Host(Protocol):
    """What surrounds a loop on each worker."""

    def load(self, state: LoopState) -> None:
        """Load the last checkpoint into the state, if there is one."""

    def save(self, state: LoopState) -> None:
        """Save a checkpoint."""

    def record(self, values: dict[str, float]) -> None:
        """Take a line of the log."""

    def is_stopping(self) -> bool:
        """Whether to save and stop after this step. Any worker may say so for all."""

    def is_leaving(self) -> bool:
        """Whether to save now, since a worker is about to be lost. Asked when something is logged."""


class Loop:
    """A training run on this worker.

    Raises:
        InputError: fewer rows in a batch than workers.
        JobError: a loss or gradient that is not finite, before any weight has changed.

    All workers raise these errors, and those of the task's preparations and of the host.
    """

    def __init__(
        self, task: Task, settings: LoopSettings, host: Host, data: Any = None, device: torch.device | None = None
    ) -> None:
        self.task, self.settings, self.host = task, settings, host
        self.workers = Workers.here(device or torch.device("cpu"))
        if settings.batch < self.workers.world:
            raise InputError(f"expected a batch of at least one row a worker, got {settings.batch}")
        self.workers.together(lambda: self.prepare(data))
        self.model = parallelise(self.module, self.workers, settings.sharding, task.partial)
        self.state = LoopState.start(self.module, settings, self.extra)

    def prepare(self, data: Any) -> None:
        """This worker's own preparations."""
        self.module = self.task.build(self.workers.device)
        self.task.prepare(self.module, data, self.workers.device)
        self.batches, self.extra = self.task.batches(self.settings), self.task.extra(self.module)

    def run(self) -> bool:
        """Train to the end, from the last checkpoint on. False if it was stopped, after a checkpoint."""
        settings, state = self.settings, self.state
        self.host.load(state)
        self.base_s, self.began = state.seconds, time.monotonic()
        self.logged = state.step, self.began
        while state.step < settings.steps:
            rate, norm, stopping = self.one_step()
            state.seconds = self.base_s + time.monotonic() - self.began
            last, saved = state.step == settings.steps, False
            if state.step % settings.log_every == 0 or last:
                self.log(rate, norm)
                saved = self.host.is_leaving()
            if state.step % settings.checkpoint_every == 0 or last:
                self.evaluate()
                saved = True
            if saved or stopping:
                self.host.save(state)
            if stopping and not last:
                return False
        return True

    def one_step(self) -> tuple[float, float, bool]:
        """One update of model and average. Returns learning rate, gradient norm, and whether to stop."""
        state, settings = self.state, self.settings
        rate = learning_rate(
            state.step, settings.steps, settings.peak_lr, settings.warmup, settings.schedule, settings.final_lr
        )
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        rows = self.batches.rows(state.step)
        self.task.before_step(state, rows)
        self.model.train()
        state.optimiser.zero_grad(set_to_none=True)
        sums = self.backward(rows)
        totals, (stopping,) = summed(sums, self.workers, self.host.is_stopping())
        norm = clip_gradients(state.model, settings.grad_clip)
        self.check_finite("loss", totals.means()["loss"])
        self.check_finite("gradient norm", norm)
        state.optimiser.step()
        state.average.update(state.model, state.step, settings.ema_decay)
        state.step += 1
        for name, (numerator, denominator) in totals.values.items():
            state.totals.add(name, numerator, denominator)
        self.task.after_step(state, rows)
        return rate, norm, stopping > 0

    def backward(self, rows: StepRows) -> Sums:
        """Gradients of the mean loss of a global batch, on this worker from its part of the rows; returns its sums."""
        batch, workers, state = self.settings.batch, self.workers, self.state
        mine, sums = rows[workers.rank :: workers.world], Sums()
        slices = micro_batches(len(mine), batch, workers.world, self.settings.micro_batch)
        for number, piece in enumerate(slices, start=1):
            some = mine[piece]
            with gradient_sync(self.model, number == len(slices)):
                with computing(workers.device, self.settings.dtype):
                    loss, more = self.task.loss(
                        self.model, some if len(some) else rows[:1], state.step, state.step / self.settings.steps
                    )
                more = {**more, "loss": (loss, torch.full_like(loss, len(some)))}
                if not len(some):  # other workers have a row more, and collective calls wait for this one
                    loss, more = loss * 0, {name: (a * 0, b * 0) for name, (a, b) in more.items()}
                (loss * (workers.world / batch)).backward()  # gradients are averaged over the workers
            merge(sums, more)
        return sums

    def check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise JobError(f"{what} is {value} at step {self.state.step}", NOT_FINITE_HINT)

    def log(self, rate: float, norm: float) -> None:
        """Record the means since the last record."""
        state, now = self.state, time.monotonic()
        step, before = self.logged
        speed = (state.step - step) * self.settings.batch / max(1e-9, now - before)
        self.host.record(self.line(state.totals.means() | {"lr": rate, "grad_norm": norm, "images_per_s": speed}))
        state.totals, self.logged = Totals(), (state.step, now)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Record the scores of the averaged weights."""
        state = self.state
        with state.average.swapped_into(state.model), computing(self.workers.device, self.settings.dtype):
            totals, _ = summed(self.task.evaluate(self.model, self.workers), self.workers)
        state.evaluation = totals.means()
        if state.evaluation:
            self.host.record(self.line(state.evaluation))

    def line(self, values: dict[str, float]) -> dict[str, float]:
        return {"step": self.state.step, "seconds": round(self.state.seconds, 1), **values}
