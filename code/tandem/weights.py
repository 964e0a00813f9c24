"""Checkpoints: published `.pth` files and safetensors, loaded strictly; what a file is; its hash.

A checkpoint of ours is safetensors with a JSON header (kind, config, classes). A published one has no header, so
its config is read off the shapes. Either way every tensor must be there, with the expected shape, and none besides.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tandem.assembly import PLAIN, Preparation, assemble_var, assemble_vqvae, build_empty
from tandem.config import PATCH_NUMS_256, PATCH_NUMS_512, VarConfig, VqvaeConfig, from_dict, to_dict
from tandem.errors import CheckpointError, InputError
from tandem.var import Var
from tandem.vqvae import Vqvae

# Buffers of the published checkpoints that hold nothing learned: they follow from the config
DERIVED = re.compile(r"lvl_1L|attn_bias_for_masking|quantize\.ema_vocab_hit_SV|blocks\.\d+\.attn\.zero_k_bias")
METADATA_KEY = "tandem"


@dataclass(frozen=True)
class Checkpoint:
    """An opened weights file: its tensors are memory-mapped, none is copied yet."""

    path: Path
    kind: str  # "vqvae" or "var"
    config: VqvaeConfig | VarConfig
    tensors: dict[str, Tensor]
    header: dict[str, Any] = field(default_factory=dict)  # ours alone: kind, config, classes

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in label order, where the file knows them."""
        return tuple(self.header["classes"]) if "classes" in self.header else None

    @property
    def num_parameters(self) -> int:
        return sum(t.numel() for name, t in self.tensors.items() if not DERIVED.fullmatch(name))

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def check(self) -> Checkpoint:
        """Raise CheckpointError unless the tensors are just those of the config. Reads no values."""
        check_tensors(build_empty(self.config), self)
        return self

    @property
    def dtypes(self) -> list[str]:
        return sorted({str(t.dtype).removeprefix("torch.") for t in self.tensors.values()})


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a `.pth` or safetensors file and find out what it is. Raises CheckpointError, naming file and cause."""
    path = Path(path)
    tensors, header = read_tensors(path)
    if "encoder.conv_in.weight" in tensors:
        kind = "vqvae"
    elif "word_embed.weight" in tensors:
        kind = "var"
    else:
        raise CheckpointError(
            f"{path}: expected a VQVAE (encoder.conv_in.weight) or a VAR (word_embed.weight), "
            f"got tensors {sorted(tensors)[:3]}"
        )
    try:
        if header:
            config = from_dict(VqvaeConfig if kind == "vqvae" else VarConfig, header["config"])
        else:
            config = vqvae_config(tensors) if kind == "vqvae" else var_config(tensors)
    except (KeyError, IndexError, TypeError, InputError) as error:
        raise CheckpointError(f"{path}: cannot tell the config of this {kind}: {error}") from error
    return Checkpoint(path, kind, config, tensors, header)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, memory-mapped, and the header of our own files (else empty)."""
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a weights file, found {'a folder' if path.is_dir() else 'nothing'}")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                metadata = file.metadata() or {}
            return tensors, json.loads(metadata.get(METADATA_KEY, "{}"))
        except (SafetensorError, json.JSONDecodeError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    try:
        # files of torch before 1.6 are no zip archives and cannot be mapped
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        cause = str(error).splitlines()[0]
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it wants to run {name[1]}" if name else cause
        raise CheckpointError(f"{path}: not plain weights: {what}", "only files of tensors are loaded") from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise CheckpointError(f"{path}: corrupt or not a torch file: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        found = sorted(loaded)[:5] if isinstance(loaded, dict) else type(loaded).__name__
        raise CheckpointError(f"{path}: expected tensors by name, got {found}")
    return loaded, {}


def count_prefixed(tensors: dict[str, Tensor], pattern: str) -> int:
    """How many different numbers stand at the place of the group in `pattern`."""
    return len({m[1] for name in tensors if (m := re.match(pattern, name))})


def var_config(tensors: dict[str, Tensor]) -> VarConfig:
    """Config of a VAR from its tensors' names and shapes."""
    width, latent_channels = tensors["word_embed.weight"].shape
    heads = tensors["blocks.0.attn.scale_mul_1H11"].shape[1]
    depth = count_prefixed(tensors, r"blocks\.(\d+)\.")
    num_tokens, num_scales = tensors["pos_1LC"].shape[1], tensors["lvl_embed.weight"].shape[0]
    known = {(680, 10): PATCH_NUMS_256, (2240, 10): PATCH_NUMS_512}
    if "lvl_1L" in tensors:
        counts = tensors["lvl_1L"].flatten().bincount().tolist()
        patch_nums = tuple(math.isqrt(n) for n in counts)
    elif (num_tokens, num_scales) in known:
        patch_nums = known[num_tokens, num_scales]
    else:
        raise InputError(f"no lvl_1L, and {num_tokens} tokens in {num_scales} scales is no published pyramid")
    return VarConfig(
        depth=depth,
        num_classes=tensors["class_emb.weight"].shape[0] - 1,
        vocab_size=tensors["head.weight"].shape[0],
        latent_channels=latent_channels,
        patch_nums=patch_nums,
        shared_adaln="shared_ada_lin.1.weight" in tensors,
        head_dim=width // heads,
        num_heads=0 if heads == depth else heads,
        mlp_ratio=tensors["blocks.0.ffn.fc1.weight"].shape[0] // width,
    )


def vqvae_config(tensors: dict[str, Tensor]) -> VqvaeConfig:
    """Config of a VQVAE from its tensors. The file does not tell the pyramid: it is that of its transformers."""
    base, folded = tensors["encoder.conv_in.weight"].shape[:2]
    levels = count_prefixed(tensors, r"encoder\.down\.(\d+)\.")
    widths = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    vocab_size, latent_channels = tensors["quantize.embedding.weight"].shape
    return VqvaeConfig(
        vocab_size=vocab_size,
        latent_channels=latent_channels,
        base_channels=base,
        channel_mult=tuple(width // base for width in widths),
        num_res_blocks=count_prefixed(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        num_phi=count_prefixed(tensors, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
        stem_patch=math.isqrt(folded // 3),
    )


def check_tensors(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless the file has just the tensors of the model, each of its shape."""
    where = checkpoint.path
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in checkpoint.tensors.items() if not DERIVED.fullmatch(name)}
    if missing := sorted(set(expected) - set(found)):
        raise CheckpointError(f"{where}: missing {listed(missing)}")
    if surplus := sorted(set(found) - set(expected)):
        raise CheckpointError(f"{where}: surplus {listed(surplus)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"{where}: {name}: expected shape {list(shape)}, got {list(found[name])}")
        if not checkpoint.tensors[name].is_floating_point():
            raise CheckpointError(f"{where}: {name}: expected floats, got {checkpoint.tensors[name].dtype}")


def listed(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(names[:limit])}{more}"


def load_var(
    source: str | Path | Checkpoint,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    expected: VarConfig | None = None,
    how: Preparation | None = PLAIN,
) -> Var:
    """Load a VAR of any depth. `expected` (a preset, say) must then be what the file holds.

    It computes as `how` says and is fit for inference alone. With None it has plain parameters, as in the file.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    check_config(checkpoint, "var", expected)
    assert isinstance(checkpoint.config, VarConfig)
    checkpoint.check()
    return assemble_var(checkpoint.config, checkpoint.tensors.__getitem__, dtype, torch.device(device), how)


def load_vqvae(
    source: str | Path | Checkpoint,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    patch_nums: tuple[int, ...] | None = None,
    prepared: bool = True,
) -> Vqvae:
    """Load a VQVAE. `patch_nums` is the pyramid of its transformers; published files do not hold it.

    `prepared`, it is fit for inference alone; without, it has plain float32 parameters, as in the file.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    check_config(checkpoint, "vqvae", None)
    config = checkpoint.config
    assert isinstance(config, VqvaeConfig)
    checkpoint.check()
    if patch_nums is not None:
        config = replace(config, patch_nums=tuple(patch_nums))
    return assemble_vqvae(config, checkpoint.tensors.__getitem__, dtype, torch.device(device), prepared)


def check_config(checkpoint: Checkpoint, kind: str, expected: VarConfig | None) -> None:
    if checkpoint.kind != kind:
        raise CheckpointError(f"{checkpoint.path}: expected a {kind} checkpoint, got a {checkpoint.kind}")
    if expected is None:
        return
    theirs, ours = to_dict(checkpoint.config), to_dict(expected)
    if wrong := [f"{k}: expected {ours[k]}, got {theirs[k]}" for k in ours if ours[k] != theirs[k]]:
        raise CheckpointError(f"{checkpoint.path}: {'; '.join(wrong)}")


def save_checkpoint(path: Path, model: Vqvae | Var, extra: dict[str, Any], dtype: torch.dtype) -> None:
    """Write safetensors with config and `extra` in the header, aside and then renamed.

    Raises ValueError for a model that was prepared for inference, whose weights are no longer those of the file.
    """
    if model.state_dict().keys() != build_empty(model.config).state_dict().keys():
        raise ValueError(
            "expected a model with plain parameters, got one prepared for inference (load it with how=None)"
        )
    kind = "vqvae" if isinstance(model, Vqvae) else "var"
    header = {"kind": kind, "config": to_dict(model.config), **extra}
    tensors = {name: t.detach().to(dtype).contiguous() for name, t in model.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(header, sort_keys=True)})
    temporary.replace(path)
