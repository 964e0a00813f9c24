"""Checks the arguments of the library's functions before the models compute.

Raises InputError, which is a ValueError, with expected and actual value. Checks of types and shapes cost nothing.
Values of labels and uniforms are read once, which on a GPU waits for queued work; meta tensors have none to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tandem.config import Pyramid, SamplingConfig, VarConfig
from tandem.errors import InputError

if TYPE_CHECKING:
    from tandem.edit_source import Source
    from tandem.quantizer import Quantizer

UNIFORM_BITS = 31  # of one random number
MAX_SEED = 2**64 - 1
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def describe(value: Any) -> str:
    """Type and shape of an argument: 'float32 [4, 91]', 'a list'."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"a {type(value).__name__}"


def check_whole(name: str, value: Any, least: int, most: int) -> int:
    """Check for an integer within bounds; booleans and floats are refused."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{name}: expected a whole number from {least} to {most}, got {value!r}")
    if not least <= int(value) <= most:
        raise InputError(f"{name}: expected {least} to {most}, got {value}")
    return int(value)


def check_batch(
    config: VarConfig,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    prefix_BL: Tensor,
    stop: int,
    sampling: SamplingConfig | Sequence[SamplingConfig],
) -> None:
    """Check types and shapes for `decode_scales`: labels [B], uniforms [B, L], ids [B, L'] of scales below `stop`."""
    pyramid = config.pyramid
    check_whole("stop", stop, 1, pyramid.num_scales)
    if not isinstance(labels_B, Tensor) or labels_B.ndim != 1 or labels_B.dtype not in INTEGERS or not len(labels_B):
        raise InputError(f"labels: expected one or more whole numbers [B], got {describe(labels_B)}")
    batch, tokens = len(labels_B), pyramid.num_tokens
    for name, value, length in (("uniforms", uniforms_BL, tokens), ("prefix", prefix_BL, None)):
        right = isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == 2
        if not right or len(value) != batch or length not in (None, value.shape[1]):
            columns = length or "tokens of whole scales"
            raise InputError(f"{name}: expected int64 [{batch}, {columns}], got {describe(value)}")
        if value.device != labels_B.device:
            raise InputError(f"{name}: expected the labels' device, {labels_B.device}, got {value.device}")
    lengths = pyramid.offsets[:stop]
    if prefix_BL.shape[1] not in lengths:
        raise InputError(f"prefix: expected whole scales, one of {list(lengths)} tokens, got {prefix_BL.shape[1]}")
    configs = [sampling] * batch if isinstance(sampling, SamplingConfig) else sampling
    if not isinstance(configs, Sequence) or len(configs) != batch:
        count = len(configs) if isinstance(configs, Sequence) else describe(configs)
        raise InputError(f"sampling: expected one SamplingConfig, or one for each of {batch} images, got {count}")


def check_values(num_classes: int, labels_B: Tensor, uniforms_BL: Tensor) -> None:
    """Check values: labels below the number of classes, uniforms in [0, 2^31)."""
    if labels_B.is_meta:
        return
    found = torch.stack([*labels_B.long().aminmax(), *uniforms_BL.aminmax()]).tolist()
    for name, (least, most), limit in (
        ("labels", found[:2], num_classes - 1),
        ("uniforms", found[2:], 2**UNIFORM_BITS - 1),
    ):
        if least < 0 or most > limit:
            raise InputError(f"{name}: expected 0 to {limit}, got {least if least < 0 else most}")


def check_pair(config: VarConfig, quantizer: Quantizer) -> None:
    """Check that a transformer predicts the ids of this tokenizer."""
    ours, theirs = (config.patch_nums, config.vocab_size), (quantizer.pyramid.patch_nums, quantizer.vocab_size)
    if ours != theirs:
        raise InputError(
            f"quantizer: expected the transformer's patch_nums {ours[0]} and {ours[1]} codes, "
            f"got {theirs[0]} and {theirs[1]}"
        )


def check_ids(pyramid: Pyramid, vocab_size: int, ids_BL: Tensor) -> None:
    """Check token ids of the first scales: int64 [B, L']. Values are checked only on a CPU."""
    right = isinstance(ids_BL, Tensor) and ids_BL.dtype == torch.int64 and ids_BL.ndim == 2 and len(ids_BL)
    if not right or ids_BL.shape[1] not in pyramid.offsets[1:]:
        lengths = list(pyramid.offsets[1:])
        raise InputError(f"ids: expected int64 [B, L] with L one of {lengths}, got {describe(ids_BL)}")
    if ids_BL.device.type == "cpu":
        least, most = (int(value) for value in ids_BL.aminmax())
        if least < 0 or most >= vocab_size:
            raise InputError(f"ids: expected 0 to {vocab_size - 1}, got {least if least < 0 else most}")


def check_source(pyramid: Pyramid, vocab_size: int, source: Source, batch_B: Tensor) -> None:
    """Check that a source fits a batch of as many images on the same device."""
    check_ids(pyramid, vocab_size, source.ids_BL)
    batch, grid = len(batch_B), pyramid.grid
    if source.ids_BL.shape != (batch, pyramid.num_tokens):
        raise InputError(f"source: expected ids [{batch}, {pyramid.num_tokens}], got {describe(source.ids_BL)}")
    cells_Bhw = source.drawn_Bhw
    right = isinstance(cells_Bhw, Tensor) and cells_Bhw.dtype == torch.bool
    if not right or cells_Bhw.shape != (batch, grid, grid):
        raise InputError(f"source: expected cells bool [{batch}, {grid}, {grid}], got {describe(cells_Bhw)}")
    for value in (source.ids_BL, cells_Bhw):
        if value.device != batch_B.device:
            raise InputError(f"source: expected the device of the batch, {batch_B.device}, got {value.device}")


def check_stream(seed: int | np.ndarray, index_B: np.ndarray, num_tokens: int) -> np.ndarray:
    """Check the arguments of `uniforms`; returns the indices as an array."""
    check_whole("num_tokens", num_tokens, 1, 2**31 - 1)
    index_B = np.asarray(index_B)
    if not isinstance(seed, np.ndarray):
        check_whole("seed", seed, 0, MAX_SEED)
    elif seed.dtype.kind not in "iu" or seed.shape != index_B.shape or (len(seed) and seed.min() < 0):
        raise InputError(f"seed: expected {len(index_B)} whole numbers >= 0, one per image, got {describe(seed)}")
    if index_B.dtype.kind not in "iu" or index_B.ndim != 1 or not len(index_B) or index_B.min() < 0:
        raise InputError(f"index: expected one or more whole numbers [B] >= 0, got {describe(index_B)}")
    return index_B
