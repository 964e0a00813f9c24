"""`tandem train vqvae|var`: train a tokenizer and transformers on a folder of labelled pictures.

Both can be resumed: the same command continues from the last checkpoint and sees the same batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from tandem.checkpoint_reader import read_state
from tandem.config import VarConfig, VqvaeConfig
from tandem.errors import InputError
from tandem.hashing import file_sha256
from tandem.initial import init_var, init_vqvae
from tandem.losses import residual_vectors, revive_codes, var_loss, vqvae_loss
from tandem.training import LoopConfig, TrainingLoop
from tandem.training_pictures import PictureSet, augment, draw, load_pictures, to_float
from tandem.user_files import parse_json, read_text, repeated
from tandem.var import Var
from tandem.vqvae import Vqvae
from tandem.weights import load_vqvae, save_checkpoint
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.progress import say

EXAMPLES = """examples: the embedded model
  tandem pictures --out pictures
  tandem train vqvae --data pictures --out runs/vqvae
  tandem train var --data pictures --vqvae runs/vqvae/vqvae.safetensors --out runs/drafter
  tandem train var --data pictures --vqvae runs/vqvae/vqvae.safetensors --out runs/refiner \\
      --depth 2 --lr 2.5e-3 --steps 4000

The same command resumes from the last checkpoint in --out."""

# Options that change no weights, or that name files, which are identified by their hash
NOT_IDENTITY = {"spec", "out", "threads", "checkpoint_every", "data", "vqvae"}


class TrainSpec(Spec):
    """Options of both trainings."""

    data: Path = Field(description="folder with train/<class>/<image> and heldout/<class>/<image>")
    out: Path = Field(description="folder for checkpoints, log and the final weights")
    seed: int = Field(0, description="seed of weights, batches and augmentation")
    threads: PositiveInt = Field(2, description="CPU threads")
    checkpoint_every: PositiveInt = Field(250, description="steps between checkpoints")


class TrainVqvaeSpec(TrainSpec):
    """Train the image tokenizer (VQVAE). The defaults made the embedded model's."""

    steps: PositiveInt = Field(6000, description="optimiser steps")
    batch: PositiveInt = Field(16, description="pictures per step")
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
    vocab_size: PositiveInt = Field(2048, description="codes in the codebook")
    latent_channels: PositiveInt = Field(16, description="channels of a code")
    base_channels: PositiveInt = Field(128, description="channels at full resolution, a multiple of 32")
    channel_mult: tuple[PositiveInt, ...] = Field((1, 1), description="channels of each level, in base channels")
    num_res_blocks: PositiveInt = Field(1, description="residual blocks per level")
    stem_patch: PositiveInt = Field(4, description="side of the pixel patches that are first folded into channels")
    patch_nums: tuple[PositiveInt, ...] = Field((1, 2, 3, 4, 5, 6, 8), description="sides of the token maps")
    continuous_steps: int = Field(100, ge=0, description="first steps without quantisation")

    def config(self) -> VqvaeConfig:
        names = ("vocab_size", "latent_channels", "base_channels", "channel_mult", "num_res_blocks")
        values = {name: getattr(self, name) for name in (*names, "stem_patch", "patch_nums")}
        return VqvaeConfig(num_phi=4, **values)


class TrainVarSpec(TrainSpec):
    """Train a transformer on the token maps of a trained tokenizer. The defaults made the embedded drafter."""

    vqvae: Path = Field(description="the trained tokenizer (safetensors)")
    steps: PositiveInt = Field(5000, description="optimiser steps")
    batch: PositiveInt = Field(32, description="pictures per step")
    depth: PositiveInt = Field(4, description="layers; width is 64 x depth")
    lr: float = Field(1.2e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay of matrices")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of labels replaced by 'no class', for guidance")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the cross-entropy")
    token_sets: PositiveInt = Field(28_000, description="augmented pictures tokenised once, before training")


def load_splits(data: Path) -> tuple[PictureSet, PictureSet]:
    """Training and held-out pictures; the class order is that of DATA/pictures.json if it exists.

    Prints notes on skipped files. Raises InputError; a class may lack held-out pictures, but not training pictures.
    """
    train = load_pictures(data / "train", described_classes(data / "pictures.json"))
    heldout = load_pictures(data / "heldout", train.classes, allow_empty=True)
    if heldout.pixels.shape[1:] != train.pixels.shape[1:]:
        expected, got = (list(pictures.pixels.shape[-2:]) for pictures in (train, heldout))
        raise InputError(f"expected held-out pictures of {expected} pixels, like those to train on, got {got}")
    for note in (*train.notes, *heldout.notes):
        say(note)
    if len(train.classes) == 1:
        say(f"one class only: {train.classes[0]}")
    return train, heldout


def described_classes(path: Path) -> tuple[str, ...] | None:
    """Class names in label order, if the file exists. InputError for other content."""
    if not path.exists():
        return None
    try:
        classes = parse_json(read_text(path))["classes"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected an object with a list 'classes', got {error!r}") from None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or repeated(classes):
        raise InputError(f"{path}: expected 'classes' to be a list of different names")
    return tuple(classes)


def start_loop(
    spec: TrainVqvaeSpec | TrainVarSpec,
    model: Vqvae | Var,
    made_of: dict[str, str],
    weight_decay: float,
    beta2: float = LoopConfig.beta2,
) -> TrainingLoop:
    """A training run in OUT, new or resumed. `made_of`: hashes of the data and models that it is trained on."""
    config = LoopConfig(
        spec.steps,
        spec.lr,
        weight_decay=weight_decay,
        beta2=beta2,
        checkpoint_every=spec.checkpoint_every,
        seed=spec.seed,
    )
    loop = TrainingLoop(model, config, spec.out, say)
    if loop.resume(spec.model_dump(exclude=NOT_IDENTITY, mode="json") | made_of):
        say(f"resumed {spec.out} at step {loop.step}")
    return loop


def save_average(loop: TrainingLoop, model: Vqvae | Var, path: Path, train: PictureSet) -> dict[str, Any]:
    """Write the averaged weights of a finished run; returns a summary."""
    model.load_state_dict(loop.ema)
    save_checkpoint(path, model, {"classes": list(train.classes)}, torch.float16)
    say(f"wrote {path}")
    return {"file": str(path), "steps": loop.step, "seconds": loop.seconds}


def psnr(recon_B3HW: Tensor, pixels_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture, for pixels in [-1, 1]: float [B]."""
    mse_B = (recon_B3HW.clamp(-1, 1) - pixels_B3HW).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse_B.clamp_min(1e-10))


def check_size(pictures: PictureSet, size: int, source: str) -> None:
    """InputError unless the pictures are squares of `size` pixels."""
    height, width = pictures.pixels.shape[-2:]
    if (height, width) != (size, size):
        raise InputError(f"{source} {size} x {size} px, the pictures have {width} x {height} px")


def reconstruct(vqvae: Vqvae, pixels_B3HW: Tensor) -> Tensor:
    """Pixels [-1, 1] -> ids -> pixels [-1, 1]."""
    f_hat, _ = vqvae.quantize.unroll(vqvae.encode(pixels_B3HW))
    return vqvae.decode(f_hat) * 2 - 1


def train_vqvae(spec: TrainVqvaeSpec) -> dict[str, Any]:
    """Train, and write OUT/vqvae.safetensors. Returns the last evaluation."""
    torch.set_num_threads(spec.threads)
    train, heldout = load_splits(spec.data)
    config = spec.config()
    check_size(train, config.image_size, "these levels and patch_nums make")
    torch.manual_seed(spec.seed)
    vqvae = Vqvae(config)
    init_vqvae(vqvae)
    vqvae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loop = start_loop(spec, vqvae, {"data_sha256": train.digest}, weight_decay=0.01, beta2=0.99)
    loop.extra.setdefault("hits_V", torch.zeros(config.vocab_size))
    weights = train.file_weights(0.5)
    result: dict[str, float] = {}

    def loss_of_step(loop: TrainingLoop) -> Tensor:
        generator = loop.generator()
        pixels = to_float(train.pixels[draw(train, weights, spec.batch, generator)])
        pixels = augment(pixels, generator, strength=1.0, flip=True, colour=0.25, resampled=0.3)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if loop.step == spec.continuous_steps:
            fresh = residual_vectors_of(vqvae, pixels, generator)
            with torch.no_grad():
                vqvae.quantize.embedding.weight.copy_(fresh)
                loop.ema["quantize.embedding.weight"].copy_(fresh)
        loss, ids = vqvae_loss(vqvae, pixels, quantize=loop.step >= spec.continuous_steps)
        if ids is not None:
            hits_V = loop.extra["hits_V"]
            hits_V += torch.bincount(ids.flatten(), minlength=config.vocab_size)
            if loop.step % 50 == 49:
                if loop.step < 0.8 * spec.steps:
                    with torch.no_grad():
                        latents = vqvae.latents(pixels)
                    revive_codes(vqvae.quantize, loop.optimizer, hits_V == 0, latents, loop.generator(salt=1))
                hits_V.zero_()
        return loss

    def evaluate() -> dict[str, float]:
        real = to_float(heldout.pixels)
        values = torch.cat([psnr(reconstruct(vqvae, chunk), chunk) for chunk in real.split(64)])
        used = torch.cat([vqvae.encode(chunk) for chunk in real.split(64)]).unique()
        result.update({"heldout_psnr": values.mean().item(), "codes_used": len(used) / config.vocab_size})
        return result

    loop.run(loss_of_step, evaluate)
    return save_average(loop, vqvae, spec.out / "vqvae.safetensors", train) | result


def residual_vectors_of(vqvae: Vqvae, pixels_B3HW: Tensor, generator: torch.Generator) -> Tensor:
    """The first codebook: residual vectors of the batch, coded so far with a random codebook of its latents."""
    with torch.no_grad():
        latents = vqvae.latents(pixels_B3HW)
        flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
        picks = torch.randint(len(flat), (vqvae.config.vocab_size,), generator=generator)
        vqvae.quantize.embedding.weight.copy_(flat[picks])
        return residual_vectors(vqvae.quantize, latents, generator, vqvae.config.vocab_size)


def tokenise(spec: TrainVarSpec, vqvae: Vqvae, train: PictureSet) -> tuple[Tensor, Tensor]:
    """Token maps int16 [n, L] and labels int64 [n] of augmented pictures, made once and kept in OUT/tokens.pt."""
    cache, made_of = spec.out / "tokens.pt", f"{spec.token_sets} {file_sha256(spec.vqvae)} {train.digest}"
    if cache.exists():
        state = read_state(cache, ("made_of", "ids", "labels"))
        if state["made_of"] == made_of:
            return state["ids"], state["labels"]
    weights, ids, labels = train.weights(0.5), [], []
    for start in range(0, spec.token_sets, 128):
        generator = torch.Generator().manual_seed((spec.seed << 32) + start)
        picks = draw(train, weights, min(128, spec.token_sets - start), generator)
        pixels = augment(to_float(train.pixels[picks]), generator, 0.4, flip=False, colour=0.0, resampled=0.5)
        with torch.no_grad():
            ids.append(vqvae.encode(pixels).to(torch.int16))
        labels.append(train.labels[picks])
        if start % 2048 == 0:
            say(f"tokenised {start} of {spec.token_sets} augmented pictures")
    state = {"ids": torch.cat(ids), "labels": torch.cat(labels), "made_of": made_of}
    spec.out.mkdir(parents=True, exist_ok=True)
    torch.save(state, cache.with_suffix(".tmp"))
    cache.with_suffix(".tmp").replace(cache)
    return state["ids"], state["labels"]


def train_var(spec: TrainVarSpec) -> dict[str, Any]:
    """Train, and write OUT/var.safetensors. Returns the last evaluation."""
    torch.set_num_threads(spec.threads)
    train, heldout = load_splits(spec.data)
    vqvae = load_vqvae(spec.vqvae)
    check_size(train, vqvae.config.image_size, "the tokenizer takes")
    ids, labels = tokenise(spec, vqvae, train)
    config = VarConfig(
        depth=spec.depth,
        num_classes=len(train.classes),
        vocab_size=vqvae.config.vocab_size,
        latent_channels=vqvae.config.latent_channels,
        patch_nums=vqvae.config.patch_nums,
    )
    torch.manual_seed(spec.seed)
    var = Var(config)
    init_var(var)
    made_of = {"vqvae_sha256": file_sha256(spec.vqvae), "data_sha256": train.digest}
    loop = start_loop(spec, var, made_of, weight_decay=spec.weight_decay)
    with torch.no_grad():
        heldout_ids = torch.cat([vqvae.encode(chunk) for chunk in to_float(heldout.pixels).split(64)])
    result: dict[str, float] = {}

    def loss_of_step(loop: TrainingLoop) -> Tensor:
        generator = loop.generator()
        picks = torch.randint(len(ids), (spec.batch,), generator=generator)
        drop_B = torch.rand(spec.batch, generator=generator) < spec.dropout
        return var_loss(var, vqvae.quantize, ids[picks].long(), labels[picks], drop_B, spec.smoothing)

    def evaluate() -> dict[str, float]:
        chunks = zip(heldout_ids.split(64), heldout.labels.split(64), strict=True)
        losses = [
            var_loss(var, vqvae.quantize, i, c, torch.zeros(len(c), dtype=torch.bool), 0.0) * len(c) for i, c in chunks
        ]
        result["heldout_loss"] = (torch.stack(losses).sum() / len(heldout)).item()
        return result

    loop.run(loss_of_step, evaluate)
    return save_average(loop, var, spec.out / "var.safetensors", train) | result
