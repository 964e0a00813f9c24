"""Losses and the training loop of the tokenizer and the transformer.

Shapes: B batch, L tokens, C channels, D latent channels, h w latent grid, V codes.
Source of the losses: VAR (arXiv 2404.02905) and its published code; the loop is plain AdamW with EMA.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.errors import InputError, JobError
from tandem.quantizer import Quantizer
from tandem.var import Var
from tandem.vqvae import AttnBlock, ResnetBlock, Vqvae

COMMITMENT = 0.25


def quantize_with_gradient(quantizer: Quantizer, f_BChw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents -> (f_hat with straight-through gradient, codebook + commitment loss, ids [B, L])."""
    target = f_BChw.detach()
    with torch.no_grad():
        ids_BL = quantizer.encode(target)
    f_hat, loss = torch.zeros_like(target), target.new_zeros(())
    for scale, ids_Bl in enumerate(quantizer.split(ids_BL)):
        f_hat = f_hat + quantizer.residual(ids_Bl, scale)
        loss = loss + COMMITMENT * F.mse_loss(f_hat.detach(), f_BChw) + F.mse_loss(f_hat, target)
    return f_BChw + (f_hat - f_BChw).detach(), loss / quantizer.pyramid.num_scales, ids_BL


def reconstruction_loss(recon_B3HW: Tensor, pixels_B3HW: Tensor) -> Tensor:
    """0.3 L1 + 4 L2: mostly what PSNR measures, with some weight on small errors."""
    error = recon_B3HW - pixels_B3HW
    return 0.3 * error.abs().mean() + 4 * error.square().mean()


def vqvae_loss(vqvae: Vqvae, pixels_B3HW: Tensor, quantize: bool) -> tuple[Tensor, Tensor | None]:
    """Loss of a batch and its ids; without `quantize` the continuous latents pass (the first steps)."""
    f_BChw = vqvae.latents(pixels_B3HW)
    if not quantize:
        return reconstruction_loss(vqvae.decode_latents(f_BChw), pixels_B3HW), None
    f_hat_BChw, codebook_loss, ids_BL = quantize_with_gradient(vqvae.quantize, f_BChw)
    return reconstruction_loss(vqvae.decode_latents(f_hat_BChw), pixels_B3HW) + codebook_loss, ids_BL


@torch.no_grad()
def residual_vectors(quantizer: Quantizer, f_BChw: Tensor, generator: torch.Generator, count: int) -> Tensor:
    """`count` vectors [count, D] that the quantizer had to code, drawn evenly over the scales."""
    rest, vectors = f_BChw, []
    each = -(-count // quantizer.pyramid.num_scales)
    for scale, size in enumerate(quantizer.pyramid.patch_nums):
        pooled = F.interpolate(rest, size=(size, size), mode="area").permute(0, 2, 3, 1).flatten(0, 2)
        vectors.append(pooled[torch.randint(len(pooled), (each,), generator=generator)])
        ids_Bl = quantizer.nearest_code(
            F.interpolate(rest, size=(size, size), mode="area").permute(0, 2, 3, 1).reshape(-1, rest.shape[1])
        ).view(len(rest), -1)
        rest = rest - quantizer.residual(ids_Bl, scale)
    stacked = torch.cat(vectors)
    return stacked[torch.randperm(len(stacked), generator=generator)[:count]]


@torch.no_grad()
def revive_codes(
    quantizer: Quantizer,
    optimizer: torch.optim.Optimizer,
    dead_V: Tensor,
    f_BChw: Tensor,
    generator: torch.Generator,
) -> int:
    """Put residuals of the batch in the place of unused codes; returns how many."""
    count = int(dead_V.sum())
    if count:
        weight = quantizer.embedding.weight
        fresh = residual_vectors(quantizer, f_BChw, generator, count)
        weight[dead_V] = fresh + 0.01 * fresh.std() * torch.randn(fresh.shape, generator=generator)
        for value in optimizer.state.get(weight, {}).values():
            if value.shape == weight.shape:
                value[dead_V] = 0
    return count


@torch.no_grad()
def init_vqvae(vqvae: Vqvae) -> None:
    """Every residual branch starts at zero: on the embedded model's data, 1 dB ahead after 100 steps."""
    for module in vqvae.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(cast(Tensor, module.conv2.bias))
        elif isinstance(module, AttnBlock):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(cast(Tensor, module.proj_out.bias))


def init_var(var: Var, head_scale: float = 0.02) -> None:
    """Initial weights by the rule of the published code: truncated normals, small head, gates near zero."""
    width, depth = var.config.width, var.config.depth
    std = math.sqrt(1 / width / 3)
    for module in var.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    for table in (var.pos_start, var.pos_1LC):
        nn.init.trunc_normal_(table, std=std)
    with torch.no_grad():
        var.head.weight.mul_(head_scale)
        cast(nn.Linear, var.head_nm.ada_lin[1]).weight.mul_(0.5)
        for block in var.layers:
            block.attn.proj.weight.div_(math.sqrt(2 * depth))
            block.ffn.fc2.weight.div_(math.sqrt(2 * depth))
            if not var.config.shared_adaln:
                modulation = cast(nn.Linear, block.ada_lin[1]).weight
                modulation[2 * width :].mul_(0.5)
                modulation[: 2 * width].mul_(1e-5)


def var_loss(
    var: Var, quantizer: Quantizer, ids_BL: Tensor, labels_B: Tensor, drop_B: Tensor, smoothing: float
) -> Tensor:
    """Cross-entropy of all tokens; labels where `drop_B` is set are replaced by "no class" (for CFG)."""
    with torch.no_grad():
        _, inputs_BlD = quantizer.unroll(ids_BL)
    labels_B = torch.where(drop_B, var.config.num_classes, labels_B)
    logits_BLV = var(labels_B, inputs_BlD)
    return F.cross_entropy(logits_BLV.flatten(0, 1), ids_BL.flatten(), label_smoothing=smoothing)


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
    """Length and pace of a training run. A run that was cut off goes on from its last checkpoint."""

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
        state = torch.load(self.checkpoint, weights_only=True)
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
    """Until the end of the block, the first ctrl-C fills the list instead of breaking off in mid-step.

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
