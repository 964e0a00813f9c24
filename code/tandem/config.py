"""Frozen configurations of models and sampling, and the published presets.

Source: VAR (arXiv 2404.02905) and CoDe (arXiv 2411.17787), and the shapes of their published checkpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Any

import numpy as np

from tandem.errors import InputError
from tandem.user_files import shown

PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
MAX_STRENGTH = 1000  # of guidance; logits multiplied by very much more leave the range of float32
MIN_TEMPERATURE = 0.01  # logits divided by much less leave the range of float32
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclass(frozen=True)
class Pyramid:
    """The scales of next-scale prediction: scale k is a token map of patch_nums[k] x patch_nums[k].

    Attributes:
        patch_nums: two or more ascending sides. InputError otherwise.
    """

    patch_nums: tuple[int, ...]

    def __post_init__(self) -> None:
        steps = tuple(int(n) for n in self.patch_nums)
        if len(steps) < 2 or steps[0] < 1 or any(a > b for a, b in pairwise(steps)):
            raise InputError(f"patch_nums: expected two or more ascending sizes >= 1, got {self.patch_nums}")
        object.__setattr__(self, "patch_nums", steps)

    @property
    def num_scales(self) -> int:
        return len(self.patch_nums)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Position of the first token of each scale, and the total: num_scales + 1 numbers."""
        return (0, *accumulate(n * n for n in self.patch_nums))

    @property
    def num_tokens(self) -> int:
        return self.offsets[-1]

    @property
    def grid(self) -> int:
        """Side of the last token map, which is the side of the latent."""
        return self.patch_nums[-1]

    @property
    def default_draft_steps(self) -> int:
        """N if none is given: 0.7 K, rounded. The paper measures N = 6 to 9 of 10 scales."""
        return round(0.7 * self.num_scales)

    def check_draft_steps(self, draft_steps: int) -> int:
        """Returns N if it leaves work for both models: a whole number, 1 <= N <= K - 1. Else raises InputError."""
        whole = isinstance(draft_steps, Integral) and not isinstance(draft_steps, bool)
        if not whole or not 1 <= draft_steps < self.num_scales:
            raise InputError(
                f"draft_steps: expected 1 to {self.num_scales - 1} (the pyramid has {self.num_scales} scales), "
                f"got {draft_steps!r}"
            )
        return draft_steps


@dataclass(frozen=True)
class VqvaeConfig:
    """Image tokenizer.

    Attributes:
        vocab_size: V, codes of the codebook.
        latent_channels: channels of a code.
        base_channels: channels at full resolution.
        channel_mult: channels of each level over base_channels; each level but the last halves the resolution.
        num_res_blocks: residual blocks of a level.
        num_phi: convolutions after the codebook, shared by the scales.
        quant_resi: r in their output (1 - r) x + r conv(x).
        stem_patch: side of the squares of pixels that are folded into channels before the first convolution; 1: none.
        patch_nums: side of the token map of each scale.
    """

    vocab_size: int = 4096
    latent_channels: int = 32
    base_channels: int = 160
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    num_phi: int = 4
    quant_resi: float = 0.5
    stem_patch: int = 1
    patch_nums: tuple[int, ...] = PATCH_NUMS_256

    @property
    def pyramid(self) -> Pyramid:
        return Pyramid(self.patch_nums)

    @property
    def downsampling(self) -> int:
        return self.stem_patch * 2 ** (len(self.channel_mult) - 1)

    @property
    def image_size(self) -> int:
        """Side of the square image in pixels."""
        return self.patch_nums[-1] * self.downsampling


@dataclass(frozen=True)
class VarConfig:
    """Next-scale transformer.

    Attributes:
        depth: blocks.
        num_classes: labels are 0 to num_classes - 1; num_classes itself is "no class".
        vocab_size: V, codes of the tokenizer.
        latent_channels: channels of a code.
        patch_nums: side of the token map of each scale.
        shared_adaln: one AdaLN layer for all blocks, instead of one in each.
        head_dim: channels of an attention head.
        num_heads: heads; 0: as many as blocks, the published rule. The width is num_heads x head_dim.
        mlp_ratio: hidden channels of the MLP over the width.
        l2_norm: whether attention normalises queries and keys (L2) and learns a scale per head, as published models do.
    """

    depth: int = 16
    num_classes: int = 1000
    vocab_size: int = 4096
    latent_channels: int = 32
    patch_nums: tuple[int, ...] = PATCH_NUMS_256
    shared_adaln: bool = False
    head_dim: int = 64
    num_heads: int = 0  # 0: as many as layers, the published rule
    mlp_ratio: int = 4
    l2_norm: bool = True

    @property
    def pyramid(self) -> Pyramid:
        return Pyramid(self.patch_nums)

    @property
    def heads(self) -> int:
        return self.num_heads or self.depth

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Trainable parameters, counted from the shapes (no model is built)."""
        c, v, d = self.width, self.vocab_size, self.depth
        modulation = 6 * c if self.shared_adaln else 6 * c * c + 6 * c
        attention = 3 * c * c + 2 * c + c * c + c + (self.heads if self.l2_norm else 0)
        mlp = 2 * self.mlp_ratio * c * c + self.mlp_ratio * c + c
        shared = 6 * c * c + 6 * c if self.shared_adaln else 0
        positions = c * (1 + self.pyramid.num_tokens + self.pyramid.num_scales + self.num_classes + 1)
        entry = self.latent_channels * c + c
        exit_ = 2 * c * c + 2 * c + c * v + v
        return d * (modulation + attention + mlp) + shared + positions + entry + exit_


LINEAR, CONSTANT, OFF_AFTER = "linear", "constant", re.compile("off-after:([1-9][0-9]{0,3})")
SCHEDULES = f"{LINEAR}, {CONSTANT}, off-after:k or a strength >= 0 for each scale, such as 0,1,2,3"
NEWER = {"cfg_schedule": LINEAR, "refiner_cfg": None}  # defaults of fields of `SamplingConfig`


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is drawn from logits. Raises InputError for values out of bounds.

    Attributes:
        cfg: strength of classifier-free guidance (CFG) as `cfg_schedule` has it; 0: none.
        cfg_schedule: how strong it is at each scale: "linear", from 0 at the first to cfg at the last, as published;
            "constant"; "off-after:k", linear up to scale k of K and 0 after it; or the strengths themselves, "0,1.5,3"
            for K = 3, of drafter and refiner.
        refiner_cfg: cfg of the scales that the refiner makes, by the same schedule; None: the same.
        top_k: keep the k likeliest codes; 0: all.
        top_p: keep the likeliest codes up to this probability; 0 or 1: all.
        temperatures: one per scale; shorter tuples repeat the last.
    """

    cfg: float = 1.5
    top_k: int = 600  # 0: keep all
    top_p: float = 0.96  # 0 or 1: keep all
    temperatures: tuple[float, ...] = field(default=(1.1,) * 7 + (1.0,))
    cfg_schedule: str = LINEAR
    refiner_cfg: float | None = None

    def __post_init__(self) -> None:
        for name in ("cfg", "refiner_cfg"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= MAX_STRENGTH:
                raise InputError(f"{name}: expected 0 to {MAX_STRENGTH:g}, got {value}")
        named = self.cfg_schedule in (LINEAR, CONSTANT) or OFF_AFTER.fullmatch(self.cfg_schedule)
        if not named and (not (given := numbers(self.cfg_schedule)) or not all(0 <= t <= MAX_STRENGTH for t in given)):
            raise InputError(f"cfg_schedule: expected {SCHEDULES}, got {shown(repr(self.cfg_schedule))}")
        if self.top_k < 0:
            raise InputError(f"top_k: expected >= 0 (0 keeps all), got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top_p: expected 0 to 1, got {self.top_p}")
        if not self.temperatures or not all(MIN_TEMPERATURE <= t < math.inf for t in self.temperatures):
            raise InputError(f"temperatures: expected one or more values >= {MIN_TEMPERATURE}, got {self.temperatures}")

    def temperature(self, scale: int) -> float:
        """Temperature of a scale (0-based)."""
        return self.temperatures[min(scale, len(self.temperatures) - 1)]

    def changed(self, **given: Any) -> SamplingConfig:
        """With other settings, as options or a request give them; None is not given. A cfg takes the place of strengths
        of all scales. InputError for a strength beside these."""
        given = {name: value for name, value in given.items() if value is not None}
        schedule = given.get("cfg_schedule", self.cfg_schedule)
        if numbers(schedule):
            if "cfg" in given and "cfg_schedule" not in given:
                return replace(self, **given, cfg_schedule=LINEAR)
            check_alone(schedule, given)
        return replace(self, **given)

    @property
    def guidance(self) -> str:
        """Its guidance in words: "cfg 3", "cfg 3, off-after:5, refiner 0"."""
        if numbers(self.cfg_schedule):
            return f"cfg {self.cfg_schedule}"
        schedule = "" if self.cfg_schedule == LINEAR else f", {self.cfg_schedule}"
        return f"cfg {self.cfg:g}{schedule}" + ("" if self.refiner_cfg is None else f", refiner {self.refiner_cfg:g}")

    @property
    def of_refiner(self) -> SamplingConfig:
        """The same for the scales that the refiner makes."""
        return self if self.refiner_cfg is None else replace(self, cfg=self.refiner_cfg, refiner_cfg=None)

    def strengths(self, num_scales: int) -> tuple[float, ...]:
        """Strength t of guidance at each of K scales, cond + t (cond - uncond), in float32. InputError for a schedule
        of other scales."""
        schedule = self.cfg_schedule
        if given := numbers(schedule):
            if len(given) != num_scales:
                raise InputError(f"cfg_schedule: expected {num_scales} strengths, one for each scale, got {len(given)}")
            return tuple(np.array(given, np.float32).tolist())
        shares = np.ones(num_scales, np.float32)
        if schedule != CONSTANT:
            shares = (np.arange(num_scales) / (num_scales - 1)).astype(np.float32)
        if found := OFF_AFTER.fullmatch(schedule):
            if int(found[1]) > num_scales:
                raise InputError(f"cfg_schedule: expected off-after:k with k of 1 to {num_scales}, got {schedule}")
            shares[int(found[1]) :] = 0
        return tuple((np.float32(self.cfg) * shares).tolist())


def check_alone(schedule: str, given: Collection[str]) -> None:
    """InputError if cfg or refiner_cfg is given beside strengths of all scales, which say it all."""
    for name in ("cfg", "refiner_cfg"):
        if name in given and numbers(schedule):
            raise InputError(f"{name}: expected none beside the strengths of all scales, {schedule}")


def numbers(text: str) -> list[float]:
    """Numbers between commas; none if it is another text."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


VAR_PRESETS: dict[str, VarConfig] = {
    "d16": VarConfig(depth=16),
    "d20": VarConfig(depth=20),
    "d24": VarConfig(depth=24),
    "d30": VarConfig(depth=30),
    "d36": VarConfig(depth=36, patch_nums=PATCH_NUMS_512, shared_adaln=True),
}
VQVAE_PRESET = VqvaeConfig()


def to_dict(config: VqvaeConfig | VarConfig | SamplingConfig) -> dict[str, Any]:
    """Plain JSON-ready dictionary of a config (tuples become lists). Fields that older versions did not have are there
    only where they say something, so that an identity stays what it was."""
    fields = asdict(config).items()
    said = {k: v for k, v in fields if k not in NEWER or v != NEWER[k]}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in said.items()}


def from_dict(cls: type[Any], values: dict[str, Any]) -> Any:
    """Config of class `cls` from the output of `to_dict`. Unknown keys are an InputError."""
    known = set(cls.__dataclass_fields__)
    if unknown := set(values) - known:
        raise InputError(f"{cls.__name__}: unknown fields {sorted(unknown)}, expected some of {sorted(known)}")
    return replace(cls(), **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
