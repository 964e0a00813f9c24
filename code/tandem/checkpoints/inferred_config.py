"""Configs from the names and shapes of a checkpoint's tensors; a header that contradicts them is refused."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import Tensor

from tandem.class_names import check_names
from tandem.config import PATCH_NUMS_256, PATCH_NUMS_512, Pyramid, VarConfig, VqvaeConfig, from_dict
from tandem.errors import InputError

HEAD_DIM = 64  # of all published models; assumed if no tensor shows the number of heads
BY_SHAPES = {  # what the tensors determine
    "var": (
        *("depth", "num_classes", "vocab_size", "latent_channels"),
        *("shared_adaln", "head_dim", "heads", "mlp_ratio", "l2_norm"),
    ),
    "vqvae": (
        *("vocab_size", "latent_channels", "base_channels", "channel_mult"),
        *("num_res_blocks", "num_phi", "stem_patch"),
    ),
}


def config_of(kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> VarConfig | VqvaeConfig:
    """The config of a model: from the header of our own files, checked against the shapes, else from the shapes.

    Raises InputError, LookupError, TypeError, ValueError, ArithmeticError or RuntimeError if it has none.
    """
    if header and header.get("kind") != kind:
        raise InputError(f"its header says {header.get('kind')!r}, its tensors are those of a {kind}")
    patch_nums = pyramid_in(header) if header else None
    shaped = vqvae_config(tensors) if kind == "vqvae" else var_config(tensors, patch_nums)
    if not header:
        return shaped
    config = from_dict(type(shaped), header["config"])
    if kind == "vqvae" and type(config.quant_resi) is not float:
        raise InputError(f"quant_resi in its header: expected a number, got {config.quant_resi!r:.60}")
    for name in BY_SHAPES[kind]:
        said, found = getattr(config, name), getattr(shaped, name)
        if type(said) is not type(found) or said != found:
            raise InputError(f"its header says {name} {said!r}, its tensors {found!r}")
    return config


def check_classes(header: dict[str, Any], num_classes: int | None) -> None:
    """Raise InputError unless class names in a header are text, one for each class."""
    if "classes" in header:
        check_names(header["classes"], num_classes, "classes in its header")


def count_prefixed(tensors: dict[str, Tensor], pattern: str) -> int:
    """Number of distinct values of the group in `pattern` among the names."""
    return len({m[1] for name in tensors if (m := re.match(pattern, name))})


def var_config(tensors: dict[str, Tensor], patch_nums: tuple[int, ...] | None = None) -> VarConfig:
    """Config of a VAR from its tensors' names and shapes; the pyramid, if not given, from its level buffer."""
    width, latent_channels = tensors["word_embed.weight"].shape
    scales = tensors.get("blocks.0.attn.scale_mul_1H11")
    heads = max(1, width // HEAD_DIM) if scales is None else scales.shape[1]
    depth = count_prefixed(tensors, r"blocks\.(\d+)\.")
    if patch_nums and Pyramid(patch_nums).num_tokens != tensors["pos_1LC"].shape[1]:
        raise InputError(
            f"patch_nums in its header: expected {tensors['pos_1LC'].shape[1]} tokens, got {patch_nums!r:.60}"
        )
    return VarConfig(
        depth=depth,
        num_classes=tensors["class_emb.weight"].shape[0] - 1,
        vocab_size=tensors["head.weight"].shape[0],
        latent_channels=latent_channels,
        patch_nums=patch_nums or pyramid_of(tensors),
        shared_adaln="shared_ada_lin.1.weight" in tensors,
        head_dim=width // heads,
        num_heads=0 if heads == depth else heads,
        mlp_ratio=tensors["blocks.0.ffn.fc1.weight"].shape[0] // width,
        l2_norm=scales is not None,
    )


def pyramid_of(tensors: dict[str, Tensor]) -> tuple[int, ...]:
    """Sides of the token maps: from the buffer of each token's level, which may be of any dtype, else the published
    pyramid with as many tokens and scales."""
    num_tokens, num_scales = tensors["pos_1LC"].shape[1], tensors["lvl_embed.weight"].shape[0]
    if "lvl_1L" in tensors:
        levels = tensors["lvl_1L"].flatten().long()
        if levels.numel() != num_tokens or levels.min() < 0 or levels.max() >= num_scales:
            raise InputError(f"lvl_1L: expected {num_tokens} levels below {num_scales}")
        return tuple(math.isqrt(n) for n in levels.bincount(minlength=num_scales).tolist())
    known = {(680, 10): PATCH_NUMS_256, (2240, 10): PATCH_NUMS_512}
    if (num_tokens, num_scales) not in known:
        raise InputError(f"no lvl_1L, and {num_tokens} tokens in {num_scales} scales is no published pyramid")
    return known[num_tokens, num_scales]


def pyramid_in(header: dict[str, Any]) -> tuple[int, ...]:
    """Sides of the token maps that a header names."""
    sizes = header["config"]["patch_nums"]
    if not isinstance(sizes, list) or not all(type(n) is int for n in sizes):
        raise InputError(f"patch_nums in its header: expected a list of whole numbers, got {sizes!r:.60}")
    return Pyramid(tuple(sizes)).patch_nums


def vqvae_config(tensors: dict[str, Tensor]) -> VqvaeConfig:
    """Config of a VQVAE from its tensors. The pyramid is not in the file: its transformers have it."""
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
