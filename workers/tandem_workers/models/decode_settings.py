"""Settings that both decoding stages of a job share."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.assembly import PLAIN, Preparation
from tandem.config import SamplingConfig


@dataclass(frozen=True)
class DecodeSettings:
    """How a job decodes. Everything but CUDA graphs and `on_gpu` may change bytes."""

    seed: int
    draft_steps: int
    sampling: SamplingConfig
    batch: int  # rows of every forward; a short last batch is padded to it
    dtype: str
    threads: int  # CPU threads of an actor, set explicitly because they affect rounding
    preparation: Preparation = PLAIN  # of both transformers
    row_settings: tuple[str, ...] = ()  # columns of a shard that override these settings for their row
    on_gpu: bool | None = False  # whether its actors compute on GPUs; None: nodes have not joined, actors choose
