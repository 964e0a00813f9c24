"""Training a tokenizer on small pictures: reconstruction by L1 + L2, and a codebook whose unused codes are replaced.

There is no perceptual or adversarial term, so large pictures blur: at 256 and 512 px take the published tokenizer.
Shapes: B batch, V codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tandem.config import VqvaeConfig
from tandem.training.batches import Batches, StepRows, Stream, generator
from tandem.training.parallel import Workers
from tandem.training.pictures import PictureSet, augment
from tandem.training.start import new_vqvae
from tandem.training.state import LoopSettings, LoopState
from tandem.training.sums import Sums
from tandem.training.task import Task
from tandem.training.vqvae_losses import residual_vectors, revive_codes, vqvae_loss
from tandem.vqvae import Vqvae, to_float

REVIVED_EVERY = 50  # steps; a code that no picture of them used is replaced
REVIVED_UNTIL = 0.8  # of all steps
EVALUATED_ROWS = 64  # at once
POWER = 0.5  # a class is drawn by (its files)^POWER


@dataclass(frozen=True)
class VqvaeData:
    """Pictures of the model's size, to learn from and to score on."""

    train: PictureSet
    heldout: PictureSet


class Autoencoder(nn.Module):
    """A tokenizer as it is trained: pixels to loss and ids."""

    def __init__(self, vqvae: Vqvae) -> None:
        super().__init__()
        self.vqvae = vqvae

    def forward(self, pixels_B3HW: Tensor, quantize: bool) -> tuple[Tensor, Tensor | None]:
        return vqvae_loss(self.vqvae, pixels_B3HW, quantize)


@dataclass
class VqvaeTask(Task):
    """The recipe of a tokenizer.

    model: makes it in float32, the same on every worker. continuous_steps: first ones, without quantisation; 0 for a
    tokenizer that has its codebook already.
    """

    model: Callable[[torch.device], Vqvae]
    continuous_steps: int = 100
    seed: int = 0

    partial = True  # the codebook has no gradient before it is used

    def build(self, device: torch.device) -> nn.Module:
        vqvae = self.model(device).requires_grad_(True)
        vqvae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Autoencoder(vqvae)

    def prepare(self, module: nn.Module, data: VqvaeData, device: torch.device) -> None:
        assert isinstance(module, Autoencoder)
        self.vqvae, self.data, self.device = module.vqvae, data, device
        self.used_V = torch.zeros(self.vqvae.config.vocab_size, device=device)

    def extra(self, module: nn.Module) -> dict[str, Tensor]:
        """How often each code was used since the unused ones were replaced last."""
        return {"hits_V": torch.zeros_like(self.used_V)}

    def batches(self, settings: LoopSettings) -> Batches:
        self.steps = settings.steps
        weights = self.data.train.file_weights(POWER).numpy()
        return Batches(settings.seed, len(self.data.train), settings.batch, weights)

    def before_step(self, state: LoopState, rows: StepRows) -> None:
        """Augment the whole batch, the same on every worker; make the first codebook when quantising begins."""
        random = generator(self.seed, Stream.TASK, state.step)
        pixels = augment(
            to_float(self.data.train.pixels[rows.index]), random, 1.0, flip=True, colour=0.25, resampled=0.3
        )
        self.pixels = pixels.to(self.device).contiguous(memory_format=torch.channels_last)
        if state.step == self.continuous_steps and self.continuous_steps:
            self.make_codebook(state, random)

    @torch.no_grad()
    def make_codebook(self, state: LoopState, random: torch.Generator) -> None:
        """The first codebook: residual vectors of the batch, coded so far with a random codebook of its latents."""
        codes_VD = self.vqvae.quantize.embedding.weight
        latents = self.vqvae.latents(self.pixels)
        flat_ND = latents.permute(0, 2, 3, 1).flatten(0, 2)
        codes_VD.copy_(flat_ND[torch.randint(len(flat_ND), (len(codes_VD),), generator=random)])
        codes_VD.copy_(residual_vectors(self.vqvae.quantize, latents, random, len(codes_VD)))
        from_first(codes_VD)
        state.average.tensors["vqvae.quantize.embedding.weight"].copy_(codes_VD)

    def loss(self, model: nn.Module, rows: StepRows, step: int, progress: float) -> tuple[Tensor, Sums]:
        loss, ids_BL = model(self.pixels[rows.place], step >= self.continuous_steps)
        if ids_BL is not None:
            self.used_V += torch.bincount(ids_BL.flatten(), minlength=len(self.used_V))
        return loss * len(rows), {}

    def after_step(self, state: LoopState, rows: StepRows) -> None:
        """Count the codes that all workers used, and replace those that none did."""
        hits_V = state.extra["hits_V"]
        if dist.is_initialized():
            dist.all_reduce(self.used_V)
        hits_V += self.used_V
        self.used_V.zero_()
        if state.step % REVIVED_EVERY == 0 and state.step > self.continuous_steps:
            if state.step < REVIVED_UNTIL * self.steps:
                with torch.no_grad():
                    latents = self.vqvae.latents(self.pixels)
                random = generator(self.seed, Stream.TASK + 1, state.step)
                revive_codes(self.vqvae.quantize, state.optimiser, hits_V == 0, latents, random)
                from_first(self.vqvae.quantize.embedding.weight)
            hits_V.zero_()

    def evaluate(self, model: nn.Module, workers: Workers) -> Sums:
        """Mean PSNR of held-out pictures through the tokenizer in dB, and the share of codes that they use."""
        pixels = self.data.heldout.pixels[workers.rank :: workers.world]
        used_V = torch.zeros_like(self.used_V)
        total = torch.zeros((), device=self.device)
        for part in pixels.split(EVALUATED_ROWS):
            real = to_float(part).to(self.device)
            used_V[self.vqvae.encode(real).flatten()] = 1
            total += psnr(reconstruct(self.vqvae, real), real).sum()
        count = torch.full_like(total, len(pixels))
        codes = (workers.sum(used_V) > 0).sum() / workers.world  # every worker adds its part
        return {
            "heldout_psnr": (total, count),
            "codes_used": (codes, torch.full_like(codes, len(used_V) / workers.world)),
        }


def from_first(tensor: Tensor) -> None:
    """Give all workers the first one's values: theirs may differ by rounding."""
    if dist.is_initialized():
        dist.broadcast(tensor.detach(), 0)


def reconstruct(vqvae: Vqvae, pixels_B3HW: Tensor) -> Tensor:
    """Pixels [-1, 1] -> ids -> pixels [-1, 1]."""
    f_hat_BChw, _ = vqvae.quantize.unroll(vqvae.encode(pixels_B3HW))
    return vqvae.decode(f_hat_BChw) * 2 - 1


def psnr(recon_B3HW: Tensor, pixels_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture, for pixels in [-1, 1]: float [B]."""
    mse_B = (recon_B3HW.clamp(-1, 1) - pixels_B3HW).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse_B.clamp_min(1e-10))


def loaded_vqvae(config: VqvaeConfig, average: dict[str, Tensor]) -> Vqvae:
    """The tokenizer of averaged weights, by the names of `Autoencoder`."""
    vqvae = new_vqvae(config, 0)
    vqvae.load_state_dict({name.removeprefix("vqvae."): value for name, value in average.items()})
    return vqvae
