"""The training loop: AdamW with an average of the weights, checkpoints and exact resume."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tandem.checkpoint_reader import read_state
from tandem.errors import InputError, JobError


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, norms, embeddings, scales and positions do not."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        no_decay = parameter.dim() < 2 or any(k in name for k in ("embed", "emb", "pos_", "scale_mul", "ada_gss"))
        (free if no_decay else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def learning_rate(step: int, total: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then cosine down to 1 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@dataclass(frozen=True)
class LoopConfig:
    """Length and pace of a training run. An interrupted run resumes from its last checkpoint."""

    steps: int
    peak_lr: float
    warmup: int = 100
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    beta2: float = 0.95
    checkpoint_every: int = 250
    log_every: int = 25
    seed: int = 0


class TrainingLoop:
    """AdamW with EMA: checkpoints, a JSON line every few steps, exact resume.

    Randomness of step s comes from a generator seeded by (seed, s) alone, so a resumed run sees the same batches.
    """

    def __init__(self, model: nn.Module, config: LoopConfig, folder: Path, report: Callable[[str], None]):
        self.model, self.config, self.folder, self.report = model, config, folder, report
        groups = parameter_groups(model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.peak_lr, betas=(0.9, config.beta2))
        self.ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.extra: dict[str, Tensor] = {}  # further state of the step function, kept in checkpoints
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def resume(self, identity: dict[str, object]) -> bool:
        """Load the last checkpoint if there is one. Another identity in the same folder is an InputError."""
        self.identity = json.dumps(identity, sort_keys=True, default=str)
        if not self.checkpoint.exists():
            return False
        keys = ("identity", "model", "optimizer", "ema", "extra", "step", "seconds")
        state = read_state(self.checkpoint, keys)
        if state["identity"] != self.identity:
            raise InputError(
                f"{self.folder} holds another run: expected {self.identity}, found {state['identity']}",
                "choose another --out, or delete that folder",
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema, self.extra = state["ema"], state["extra"]
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def save(self) -> None:
        state = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "extra": self.extra,
            "step": self.step,
            "seconds": self.seconds,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint)

    def generator(self, salt: int = 0) -> torch.Generator:
        """Randomness of the present step."""
        return torch.Generator().manual_seed(((self.config.seed * 10 + salt) << 32) + self.step)

    def run(self, loss_of_step: Callable[[TrainingLoop], Tensor], evaluate: Callable[[], dict[str, float]]) -> None:
        """Train to the end. `evaluate` runs on the EMA weights at every checkpoint and at the end."""
        config, losses, began = self.config, [], time.monotonic()
        base, first = self.seconds, self.step
        with finish_step_on_interrupt() as interrupted:
            while self.step < config.steps:
                losses.append(self.one_step(loss_of_step))
                self.seconds = base + time.monotonic() - began
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    pace = (time.monotonic() - began) / (self.step - first)
                    rate = self.optimizer.param_groups[0]["lr"]
                    self.log({"loss": sum(losses) / len(losses), "lr": rate}, pace)
                    losses = []
                if interrupted:
                    self.save()
                    self.report(f"stopped at step {self.step}; the same command goes on from here")
                    raise KeyboardInterrupt
                if self.step % config.checkpoint_every == 0 or last:
                    self.save()
                    self.log(self.with_ema(evaluate))

    def one_step(self, loss_of_step: Callable[[TrainingLoop], Tensor]) -> float:
        """One update of model and average; returns the loss. JobError for one that is not finite."""
        config = self.config
        rate = learning_rate(self.step, config.steps, config.peak_lr, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        loss = loss_of_step(self)
        if not torch.isfinite(loss):
            raise JobError(f"loss is {loss.item()} at step {self.step}", "lower --lr")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        self.update_ema()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def update_ema(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value, 1 - decay)
            else:
                self.ema[name].copy_(value)

    def with_ema(self, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Run `evaluate` with the averaged weights in the model, then put the trained ones back."""
        trained = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        self.model.eval()
        try:
            with torch.no_grad():
                return evaluate()
        finally:
            self.model.load_state_dict(trained)

    def log(self, values: dict[str, float], pace_s: float | None = None) -> None:
        record = {"step": self.step, "seconds": round(self.seconds, 1), **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        text = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        if pace_s is not None:
            left = pace_s * (self.config.steps - self.step)
            text += f"  {pace_s:.2f} s/step  {left / 60:.0f} min left"
        self.report(f"step {self.step}/{self.config.steps}  {text}")


@contextmanager
def finish_step_on_interrupt() -> Iterator[list[int]]:
    """Context manager: the first ctrl-C is recorded in the list instead of interrupting a step.

    A second one interrupts at once.
    """
    interrupted: list[int] = []

    def remember(number: int, _: object) -> None:
        interrupted.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
