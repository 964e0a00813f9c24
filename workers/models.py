"""Which weights a job uses, and how a worker gets them: embedded, a file, an S3 address, or random ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from tandem.config import VAR_PRESETS, VQVAE_PRESET, SamplingConfig, VarConfig, VqvaeConfig
from tandem.errors import CheckpointError
from tandem.initial import init_var
from tandem.var import Var
from tandem.vqvae import Vqvae
from tandem.weights import file_sha256, load_var, load_vqvae, open_checkpoint
from tandem.zoo import EMBEDDED_SAMPLING, weights_path
from workers.fetch import fetch, is_remote

Role = Literal["vqvae", "drafter", "refiner"]
EMBEDDED = "embedded"
VQVAE_PRESET_NAME = "vae_ch160v4096z32"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelRef:
    """One model of a job: its role, where its weights come from, and their hash. Small enough to send anywhere."""

    role: Role
    source: str  # "embedded", a preset's name, a path or an s3:// address
    sha256: str  # of the file; of the recipe for random weights
    random_seed: int | None = None

    def local_path(self) -> Path:
        """The weights as a file on this machine, its hash checked. Remote ones are fetched once per machine."""
        if self.source == EMBEDDED:
            return weights_path(self.role)
        path = fetch(self.source) if is_remote(self.source) else Path(self.source)
        if (found := file_sha256(path)) != self.sha256:
            raise CheckpointError(f"{self.source}: expected sha256 {self.sha256[:12]}…, got {found[:12]}… on this node")
        return path


@dataclass(frozen=True)
class ModelSet:
    """The three models of a job and what follows from them."""

    drafter: ModelRef
    refiner: ModelRef
    vqvae: ModelRef
    drafter_config: VarConfig
    refiner_config: VarConfig
    vqvae_config: VqvaeConfig
    class_names: tuple[str, ...]
    sampling: SamplingConfig  # the embedded drafter's own, else the published settings

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.drafter_config.pyramid.grid * self.vqvae_config.downsampling

    @property
    def hashes(self) -> dict[str, str]:
        return {ref.role: ref.sha256 for ref in (self.drafter, self.refiner, self.vqvae)}


@dataclass(frozen=True)
class Resolved:
    """One model, looked at and not loaded. Class names where its file knows them."""

    ref: ModelRef
    config: VarConfig | VqvaeConfig
    class_names: tuple[str, ...] | None = None


def resolve(role: Role, source: str, random_weights: bool) -> Resolved:
    """Find a model's weights and check them against their shapes. Raises CheckpointError."""
    if config := preset(role, source):
        if not random_weights:
            raise CheckpointError(
                f"{role}: {source} is a preset, which has no weights of its own",
                "give a file or an s3:// address, or add --random-weights to try its size and speed",
            )
        recipe = hashlib.sha256(f"random/{role}/{source}".encode()).hexdigest()
        return Resolved(ModelRef(role, source, recipe, random_seed=int(recipe[:8], 16)), config)
    if source == EMBEDDED:
        path = weights_path(role)
    elif is_remote(source):
        path = fetch(source)
    else:
        path = Path(source).expanduser().resolve()
        source = str(path)
    checkpoint = open_checkpoint(path)
    kind = "vqvae" if role == "vqvae" else "var"
    if checkpoint.kind != kind:
        raise CheckpointError(f"{role}: expected a {kind} checkpoint, got a {checkpoint.kind}: {source}")
    checkpoint.check()
    return Resolved(ModelRef(role, source, file_sha256(path)), checkpoint.config, checkpoint.classes)


def preset(role: Role, source: str) -> VarConfig | VqvaeConfig | None:
    if role == "vqvae":
        return VQVAE_PRESET if source == VQVAE_PRESET_NAME else None
    return VAR_PRESETS.get(source)


def resolve_models(drafter: str, refiner: str, vqvae: str, random_weights: bool) -> ModelSet:
    """Look at all three and check that they fit each other. Raises CheckpointError naming what does not."""
    roles = resolve("drafter", drafter, random_weights), resolve("refiner", refiner, random_weights)
    tokenizer = resolve("vqvae", vqvae, random_weights)
    drafter_config, refiner_config, vqvae_config = roles[0].config, roles[1].config, tokenizer.config
    assert isinstance(drafter_config, VarConfig) and isinstance(refiner_config, VarConfig)
    assert isinstance(vqvae_config, VqvaeConfig)
    for name, meaning in (
        ("patch_nums", "pyramid"),
        ("vocab_size", "vocabulary"),
        ("num_classes", "classes"),
        ("latent_channels", "latent channels"),
    ):
        ours, theirs = getattr(drafter_config, name), getattr(refiner_config, name)
        if ours != theirs:
            raise CheckpointError(
                f"drafter and refiner of different {meaning}: {ours} in {drafter}, {theirs} in {refiner}"
            )
        tokenizers = getattr(vqvae_config, name) if name in ("vocab_size", "latent_channels") else ours
        if ours != tokenizers:
            raise CheckpointError(
                f"models and VQVAE of different {meaning}: {ours} in {drafter}, {tokenizers} in {vqvae}"
            )
    names = roles[0].class_names
    if names != roles[1].class_names:
        raise CheckpointError(f"drafter and refiner of different class names: {names} and {roles[1].class_names}")
    return ModelSet(
        roles[0].ref,
        roles[1].ref,
        tokenizer.ref,
        drafter_config,
        refiner_config,
        vqvae_config,
        names or tuple(str(label) for label in range(drafter_config.num_classes)),
        EMBEDDED_SAMPLING if drafter == EMBEDDED else SamplingConfig(),
    )


def load_transformer(ref: ModelRef, dtype: torch.dtype, device: torch.device) -> Var:
    """The drafter or refiner of a job, ready to run."""
    if ref.random_seed is None:
        return load_var(ref.local_path(), dtype, device)
    torch.manual_seed(ref.random_seed)
    var = Var(VAR_PRESETS[ref.source])
    init_var(var, head_scale=1.0)
    return var.requires_grad_(False).eval().to(device=device, dtype=dtype)


def load_tokenizer(ref: ModelRef, patch_nums: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Vqvae:
    """The VQVAE of a job, with the pyramid of its transformers."""
    if ref.random_seed is None:
        return load_vqvae(ref.local_path(), dtype, device, patch_nums)
    torch.manual_seed(ref.random_seed)
    vqvae = Vqvae(replace(VQVAE_PRESET, patch_nums=patch_nums))
    return vqvae.requires_grad_(False).eval().to(device).set_dtype(dtype)


def pick_device() -> torch.device:
    """The GPU that Ray gave to this process, or the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
