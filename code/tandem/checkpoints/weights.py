"""Checkpoints: identifies and strictly loads published `.pth` files and safetensors.

Our own checkpoints are safetensors with a JSON header (kind, config, classes). Others have no header, so their config
is inferred from shapes. Either way every tensor must be there, with the expected shape, and no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tandem.assembly import PLAIN, Preparation, assemble_var, assemble_vqvae, build_empty
from tandem.checkpoints.checkpoint_reader import METADATA_KEY, one_line, read_weights
from tandem.checkpoints.fine_tuning import FineTuned, fine_tuned_in, sampling_in
from tandem.checkpoints.inferred_config import check_classes, config_of
from tandem.checkpoints.unwrapping import MARKERS, Part, choose_part, entries, explain_choice, find_parts
from tandem.config import SamplingConfig, VarConfig, VqvaeConfig, to_dict
from tandem.errors import CheckpointError
from tandem.var import Var
from tandem.vqvae import Vqvae

# Buffers of the published checkpoints that are not learned: they follow from the config
DERIVED = re.compile(r"lvl_1L|attn_bias_for_masking|quantize\.ema_vocab_hit_SV|blocks\.\d+\.attn\.zero_k_bias")


@dataclass(frozen=True)
class Checkpoint:
    """An opened weights file: its tensors are memory-mapped, none is copied yet."""

    path: Path
    kind: str  # "vqvae" or "var"
    config: VqvaeConfig | VarConfig
    tensors: dict[str, Tensor]
    header: dict[str, Any]  # of our own files only: kind, config, classes, fine_tuned, sampling, recipe
    part: Part = field(repr=False)  # its place in the file
    choice: str | None = None  # which part was chosen, if the file holds several of the kind

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in label order, if the file has them."""
        return tuple(self.header["classes"]) if "classes" in self.header else None

    @property
    def fine_tuned(self) -> FineTuned:
        """What it was fine-tuned for, if the file says so."""
        return fine_tuned_in(self.header, self.config.pyramid.num_scales if self.kind == "var" else None)

    @property
    def sampling(self) -> SamplingConfig | None:
        """How it samples unless asked otherwise, if the file says so."""
        return sampling_in(self.header)

    @property
    def num_parameters(self) -> int:
        return sum(t.numel() for name, t in self.tensors.items() if not DERIVED.fullmatch(name))

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def check(self) -> Checkpoint:
        """Raise CheckpointError unless the tensors are exactly those of the config. Reads no values."""
        check_tensors(build_empty(self.config), self)
        return self

    @property
    def dtypes(self) -> list[str]:
        return sorted({str(t.dtype).removeprefix("torch.") for t in self.tensors.values()})


def open_checkpoint(path: str | Path, kind: str | None = None, part: str | None = None) -> Checkpoint:
    """Open a weights file, wrapped or not, and identify its model.

    Args:
        path: .pth or .safetensors.
        kind: "var" or "vqvae": which model to take from a file that may hold both.
        part: which of several of that kind, by the dotted keys that lead to it; else the averaged weights (EMA)
            if the file has both averaged and plain ones.

    Raises CheckpointError, naming file and cause.
    """
    path = Path(path)
    parts, header = read_parts(path)
    kinds = sorted({found.kind for found in parts if part in (None, found.name)})
    if part is not None and not kinds:
        raise CheckpointError(f"{path}: expected the part {part!r}, got {', '.join(p.label for p in parts)}")
    if kind is None and len(kinds) > 1:
        raise CheckpointError(f"{path}: holds a VAR and a VQVAE: expected a choice of one", "--role drafter or vqvae")
    if kind is not None and kind not in kinds:
        raise CheckpointError(f"{path}: expected a {kind} checkpoint, got a {' and a '.join(kinds)}")
    return checkpoint_of(path, parts, header, kind or kinds[0], part)


def open_all(path: str | Path) -> list[Checkpoint]:
    """The models in a file: one, or a VAR and a VQVAE. Raises CheckpointError."""
    path = Path(path)
    parts, header = read_parts(path)
    return [checkpoint_of(path, parts, header, kind) for kind in dict.fromkeys(part.kind for part in parts)]


def read_parts(path: Path) -> tuple[list[Part], dict[str, Any]]:
    """Every model in a file, at least one, and the header of our own files."""
    loaded, header = read_weights(path)
    try:
        parts = find_parts(loaded)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not parts:
        raise CheckpointError(
            f"{path}: expected a VQVAE ({MARKERS['vqvae']}) or a VAR ({MARKERS['var']}), got {entries(loaded)}"
        )
    return parts, header


def checkpoint_of(
    path: Path, parts: Sequence[Part], header: dict[str, Any], kind: str, name: str | None = None
) -> Checkpoint:
    try:
        chosen = choose_part(parts, kind, name)
        config = config_of(kind, chosen.tensors, header)
        check_classes(header, config.num_classes if isinstance(config, VarConfig) else None)
        fine_tuned_in(header, config.pyramid.num_scales if isinstance(config, VarConfig) else None)
        sampling_in(header)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}", error.hint) from None
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        cause = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
        raise CheckpointError(f"{path}: cannot infer the config of this {kind}: {cause}") from error
    return Checkpoint(path, kind, config, chosen.tensors, header, chosen, explain_choice(parts, chosen))


def check_tensors(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless the file has exactly the tensors of the model, with their shapes."""
    path = checkpoint.path
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in checkpoint.tensors.items() if not DERIVED.fullmatch(name)}
    if missing := sorted(set(expected) - set(found)):
        raise CheckpointError(f"{path}: missing {listed(missing)}")
    if surplus := sorted(set(found) - set(expected)):
        raise CheckpointError(f"{path}: surplus {listed(surplus)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"{path}: {name}: expected shape {list(shape)}, got {list(found[name])}")
        tensor = checkpoint.tensors[name]
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name}: expected floats, got {tensor.dtype}")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(f"{path}: {name}: expected a dense tensor with values, got {tensor.layout}")


def listed(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(names[:limit])}{more}"


def load_var(
    source: str | Path | Checkpoint,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    expected: VarConfig | None = None,
    preparation: Preparation | None = PLAIN,
) -> Var:
    """Load a VAR of any depth, for inference.

    Args:
        source: weights file, or an opened checkpoint.
        dtype: of weights and activations.
        device: of the model.
        expected: config (a preset, say) that the file must hold; None: any.
        preparation: for inference; None: plain parameters as in the file, for training.

    Raises CheckpointError, naming file and cause.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, "var")
    check_config(checkpoint, "var", expected)
    assert isinstance(checkpoint.config, VarConfig)
    checkpoint.check()
    return assemble_var(checkpoint.config, checkpoint.tensors.__getitem__, dtype, torch.device(device), preparation)


def load_vqvae(
    source: str | Path | Checkpoint,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    patch_nums: tuple[int, ...] | None = None,
    preparation: Preparation | None = PLAIN,
) -> Vqvae:
    """Load a VQVAE, for inference.

    Args:
        source: weights file, or an opened checkpoint.
        dtype: of weights and activations.
        device: of the model.
        patch_nums: pyramid of its transformers, which published files do not hold; None: the file's.
        preparation: for inference: kernels and graphs; None: plain float32 parameters as in the file, for training.

    Raises CheckpointError, naming file and cause.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, "vqvae")
    check_config(checkpoint, "vqvae", None)
    config = checkpoint.config
    assert isinstance(config, VqvaeConfig)
    checkpoint.check()
    if patch_nums is not None:
        config = replace(config, patch_nums=tuple(patch_nums))
    return assemble_vqvae(config, checkpoint.tensors.__getitem__, dtype, torch.device(device), preparation)


def check_config(checkpoint: Checkpoint, kind: str, expected: VarConfig | None) -> None:
    if checkpoint.kind != kind:
        raise CheckpointError(f"{checkpoint.path}: expected a {kind} checkpoint, got a {checkpoint.kind}")
    if expected is None:
        return
    theirs, ours = to_dict(checkpoint.config), to_dict(expected)
    if wrong := [f"{k}: expected {ours[k]}, got {theirs[k]}" for k in ours if ours[k] != theirs[k]]:
        raise CheckpointError(f"{checkpoint.path}: {'; '.join(wrong)}")


def save_checkpoint(path: Path, model: Vqvae | Var, extra: dict[str, Any], dtype: torch.dtype) -> None:
    """Write safetensors with config and `extra` in the header, under a temporary name first.

    Raises ValueError for a model prepared for inference, which no longer has the weights of its file.
    """
    if model.state_dict().keys() != build_empty(model.config).state_dict().keys():
        raise ValueError(
            "expected a model with plain parameters, got one prepared for inference (load it with preparation=None)"
        )
    kind = "vqvae" if isinstance(model, Vqvae) else "var"
    header = {"kind": kind, "config": to_dict(model.config), **extra}
    write_tensors(path, {name: t.detach() for name, t in model.state_dict().items()}, header, dtype)


def convert_checkpoint(checkpoint: Checkpoint, path: Path, dtype: torch.dtype | None, made_from: str) -> None:
    """Write one model as safetensors with a header, without derived buffers. A header of ours is kept as it is.

    Args:
        dtype: of the floats in the file; None leaves them as they are, memory-mapped, so that none is copied.
        made_from: origin of the model, for the header of a file that had none.
    """
    tensors = {name: t for name, t in checkpoint.tensors.items() if not DERIVED.fullmatch(name)}
    plain = {"kind": checkpoint.kind, "config": to_dict(checkpoint.config), "made_from": made_from}
    write_tensors(path, tensors, checkpoint.header or plain, dtype)


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any], dtype: torch.dtype | None) -> None:
    """Write safetensors under a temporary name, then rename. Tensors that share memory are written separately."""
    dense, places = {}, set()
    for name, tensor in tensors.items():
        place = (tensor := tensor.to(dtype or tensor.dtype).contiguous()).untyped_storage().data_ptr()
        dense[name] = tensor.clone() if place in places else tensor
        places.add(place)
    temporary = aside(path)
    try:
        save_file(dense, temporary, metadata={METADATA_KEY: json.dumps(header, sort_keys=True)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def aside(path: Path) -> Path:
    """Temporary path of a file until it is complete."""
    return path.with_name(f".{path.name}.tmp")
