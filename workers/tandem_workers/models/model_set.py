"""Which weights a job uses, and how a worker gets them: embedded, a file, an address, or random ones."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from tandem.assembly import PLAIN, Preparation
from tandem.checkpoints.fine_tuning import AS_TRAINED, FineTuned
from tandem.checkpoints.weights import load_var, load_vqvae, open_checkpoint
from tandem.class_names import ClassNames
from tandem.config import VAR_PRESETS, VQVAE_PRESET, SamplingConfig, VarConfig, VqvaeConfig, numbers
from tandem.errors import CheckpointError, JobError
from tandem.hashing import FileHash
from tandem.initial import random_var, random_vqvae
from tandem.timing import timed
from tandem.var import Var
from tandem.vqvae import Vqvae
from tandem.zoo import EMBEDDED_SAMPLING, FILES, weights_path
from tandem_workers.models.class_files import choose_class_names
from tandem_workers.models.fetch import is_remote
from tandem_workers.models.sources import PUBLISHED, is_in_cache, local_file

Role = Literal["vqvae", "drafter", "refiner"]
EMBEDDED, EMBEDDED_D3 = "embedded", "embedded-d3"
VQVAE_PRESET_NAME = "vae_ch160v4096z32"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelRef:
    """One model of a job: its role, where its weights come from, and their hash. Small enough to send anywhere."""

    role: Role
    source: str  # an embedded model's name, a preset's, a path or an address that names one version where it can
    file_hash: FileHash  # of the recipe for random weights
    random_seed: int | None = None
    part: str = ""  # of the file, where it holds more than this model; role and file determine it

    @property
    def sha256(self) -> str:
        """Hex sha256 of the file, or of the recipe; waits until the file has been hashed."""
        return self.file_hash.sha256

    @property
    def label(self) -> str:
        """Source and part, for people."""
        return f"{self.source}, part {self.part}" if self.part else self.source

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Context manager: the weights as a local file, to be loaded inside. Remote ones are fetched once per machine.

        A file that this machine has hashed for this job is not hashed again. Another copy is, by a thread, as hashing
        takes as long as loading; on exit a wrong hash raises CheckpointError, in place of any error of loading."""
        if self.source in FILES:
            yield weights_path(self.role, self.source)
            return
        path = self.file_hash.unchanged
        if path and (not is_remote(self.source) or is_in_cache(path)):
            yield path
            return
        if not is_remote(self.source) and not Path(self.source).is_file():
            raise CheckpointError(
                f"{self.source}: no such file on node {platform.node()}",
                "weights by path have to be on every node; addresses are fetched by each",
            )
        file = local_file(self.source, patient=True)
        try:
            yield file.path
        finally:
            self.check_hash(file.sha256)

    def check_hash(self, found: str) -> None:
        """Raise CheckpointError if this is the hash of another file."""
        if found != self.sha256:
            raise CheckpointError(f"{self.source}: expected sha256 {self.sha256[:12]}…, got {found[:12]}… on this node")


@dataclass(frozen=True)
class ModelSet:
    """The models of a job and values derived from them. `tandem draft` has no refiner."""

    drafter: ModelRef
    refiner: ModelRef | None
    vqvae: ModelRef
    drafter_config: VarConfig
    refiner_config: VarConfig | None
    vqvae_config: VqvaeConfig
    class_names: ClassNames
    names_sha256: str | None  # of the class names, if they are not those of the weights
    sampling: SamplingConfig  # the drafter's own, else the published settings; cfg 0 if none needs guidance
    fine_tuned: Mapping[str, FineTuned]  # of the transformers, by role

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.drafter_config.pyramid.grid * self.vqvae_config.downsampling

    @property
    def default_draft_steps(self) -> int:
        """N if none is given: what the drafter, else the refiner, was fine-tuned for; else that of the pyramid."""
        tuned = (found.draft_steps for found in self.fine_tuned.values() if found.draft_steps is not None)
        return next(tuned, self.drafter_config.pyramid.default_draft_steps)

    def describe(self, ref: ModelRef) -> str:
        """Origin of a model, and what it was fine-tuned for."""
        about = str(self.fine_tuned.get(ref.role, ""))
        return f"{ref.label}, {about}" if about else ref.label

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        return tuple(ref for ref in (self.drafter, self.refiner, self.vqvae) if ref)

    def ref(self, role: Role) -> ModelRef:
        """The model of a role, which the job must have."""
        return next(ref for ref in self.refs if ref.role == role)

    @property
    def hashes(self) -> dict[str, str]:
        """By role. Files are hashed from the moment they are found; waits for what is left of it."""
        return {ref.role: ref.sha256 for ref in self.refs}

    @property
    def record(self) -> dict[str, Any]:
        """Origins of the weights, pyramid and class names: for job.json, not compared on resume (hashes are)."""
        return {
            "weights": {ref.role: ref.label for ref in self.refs},
            "sources": {ref.role: ref.source for ref in self.refs},
            "patch_nums": list(self.drafter_config.patch_nums),
            "class_names": list(self.class_names),
        }


@dataclass(frozen=True)
class Resolved:
    """One model whose file was inspected, not loaded. Class names are None if the file has none."""

    ref: ModelRef
    config: VarConfig | VqvaeConfig
    class_names: tuple[str, ...] | None = None
    fine_tuned: FineTuned = AS_TRAINED
    sampling: SamplingConfig | None = None  # its own, if it is known


def resolve(role: Role, source: str, random_weights: bool) -> Resolved:
    """Find a model's weights and check them against their shapes. Raises CheckpointError."""
    config = preset(role, source)
    if config and (random_weights or source not in PUBLISHED):  # the VQVAE's preset and its file share a name
        if not random_weights:
            raise CheckpointError(
                f"{role}: {source} is a preset, which has no weights of its own",
                f"var_{source} is the published file; or give a file or an address (tandem models), or add "
                "--random-weights to try its size and speed",
            )
        recipe = hashlib.sha256(f"random/{role}/{source}".encode()).hexdigest()
        return Resolved(ModelRef(role, source, FileHash.known(recipe), random_seed=int(recipe[:8], 16)), config)
    is_embedded = source in FILES
    if is_embedded and role not in FILES[source]:
        raise CheckpointError(f"{role}: expected one of {', '.join(FILES[source])}, which {source} has")
    file = local_file(str(weights_path(role, source)) if is_embedded else source)
    try:
        checkpoint = open_checkpoint(file.path, "vqvae" if role == "vqvae" else "var").check()
    except CheckpointError as error:
        raise CheckpointError(f"{role}: {error}", error.hint) from error
    ref = ModelRef(role, source if is_embedded else file.source, file.file_hash, part=checkpoint.part.name)
    tuned = PUBLISHED[source].fine_tuned if source in PUBLISHED else checkpoint.fine_tuned
    own = EMBEDDED_SAMPLING if is_embedded and role != "vqvae" else checkpoint.sampling
    return Resolved(ref, checkpoint.config, checkpoint.classes, tuned, own)


def preset(role: Role, source: str) -> VarConfig | VqvaeConfig | None:
    if role == "vqvae":
        return VQVAE_PRESET if source == VQVAE_PRESET_NAME else None
    return VAR_PRESETS.get(source)


def suited(sampling: SamplingConfig, fine_tuned: Mapping[str, FineTuned]) -> SamplingConfig:
    """The usual sampling, without guidance for models that need none."""
    free = {role for role, found in fine_tuned.items() if found.needs_no_guidance}
    if free and (strengths := numbers(sampling.cfg_schedule)):
        sampling = sampling.changed(cfg=max(strengths))
    if free >= fine_tuned.keys():
        return replace(sampling, cfg=0.0)
    if "refiner" in free:
        return replace(sampling, refiner_cfg=0.0)
    return replace(sampling, cfg=0.0, refiner_cfg=sampling.cfg) if "drafter" in free else sampling


@timed("models")
def resolve_models(
    drafter: str | Resolved, refiner: str | None, vqvae: str, random_weights: bool, class_names: str | None = None
) -> ModelSet:
    """Resolve all models and check that they are compatible. Raises CheckpointError naming the difference.

    A drafter that is already resolved, from its drafts, need not be on this machine. `class_names`: a file of names,
    "imagenet" or "numbers", to replace the names in the weights.
    """
    drafts = drafter if isinstance(drafter, Resolved) else resolve("drafter", drafter, random_weights)
    fine = resolve("refiner", refiner, random_weights) if refiner is not None else None
    tokenizer = resolve("vqvae", vqvae, random_weights)
    assert isinstance(drafts.config, VarConfig) and isinstance(tokenizer.config, VqvaeConfig)
    if fine is not None:
        check_partners(drafts, fine, class_names is None)
    for name in ("vocab_size", "latent_channels"):
        check_equal("models and VQVAE", name, drafts, tokenizer)
    own = drafts.class_names or (fine.class_names if fine else None)
    names = choose_class_names(own, class_names, drafts.config.num_classes)
    follows = names.are_numbers if own is None else names.names == own
    sampling = drafts.sampling or SamplingConfig()
    fine_tuned: dict[str, FineTuned] = {one.ref.role: one.fine_tuned for one in (drafts, fine) if one}
    sampling = suited(sampling, fine_tuned)
    return ModelSet(
        drafts.ref,
        fine.ref if fine else None,
        tokenizer.ref,
        drafts.config,
        fine.config if fine and isinstance(fine.config, VarConfig) else None,
        tokenizer.config,
        names,
        None if follows else names.digest,
        sampling,
        fine_tuned,
    )


FIELD_NAMES = {
    "patch_nums": "pyramid",
    "vocab_size": "vocabulary",
    "num_classes": "classes",
    "latent_channels": "latent channels",
}


def check_partners(drafter: Resolved, refiner: Resolved, named_by_weights: bool = True) -> None:
    """Raise CheckpointError unless the two can work on the same images."""
    for name in FIELD_NAMES:
        check_equal("drafter and refiner", name, drafter, refiner)
    names = [ClassNames(one.class_names) for one in (drafter, refiner) if one.class_names is not None]
    known = [one for one in names if not one.are_numbers]
    if named_by_weights and len(known) == 2 and known[0] != known[1]:
        raise CheckpointError(
            f"drafter and refiner of different class names: {drafter.class_names} and {refiner.class_names}"
        )


def check_equal(pair: str, name: str, ours: Resolved, theirs: Resolved) -> None:
    own, other = getattr(ours.config, name), getattr(theirs.config, name)
    if own != other:
        raise CheckpointError(
            f"{pair} of different {FIELD_NAMES[name]}: {own} in {ours.ref.source}, {other} in {theirs.ref.source}"
        )


@timed("weights")
def load_transformer(ref: ModelRef, dtype: torch.dtype, device: torch.device, preparation: Preparation = PLAIN) -> Var:
    """The drafter or refiner of a job, ready to run. InputError where `preparation` does not suit the model."""
    if ref.random_seed is None:
        with ref.opened() as path:
            return load_var(path, dtype, device, preparation=preparation)
    return random_var(VAR_PRESETS[ref.source], ref.random_seed, dtype, device, preparation)


@timed("weights")
def load_tokenizer(
    ref: ModelRef,
    patch_nums: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    preparation: Preparation = PLAIN,
) -> Vqvae:
    """The VQVAE of a job, with the pyramid of its transformers and their preparation."""
    if ref.random_seed is None:
        with ref.opened() as path:
            return load_vqvae(path, dtype, device, patch_nums, preparation)
    return random_vqvae(replace(VQVAE_PRESET, patch_nums=patch_nums), ref.random_seed, dtype, device, preparation)


def device_name(device: torch.device) -> str:
    """The name of a card, "cpu" for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@timed("device")
def pick_device(on_gpu: bool | None = None) -> torch.device:
    """The GPU that Ray assigned to this process, or the CPU, as the job requires; None: a GPU if there is one.

    CUDA alone cannot decide in an actor: Ray hides no card from actors without a GPU, and a job on GPUs must not
    silently fall back to the CPU. Raises JobError if the card is missing.
    """
    if on_gpu is False:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    if on_gpu:
        built = torch.version.cuda or "none"
        raise JobError(
            f"expected a CUDA device on node {platform.node()}, found none (torch {torch.__version__}, built for CUDA "
            f"{built})",
            "nvidia-smi there says whether the driver works; torch has to be a build for its CUDA",
        )
    return torch.device("cpu")
