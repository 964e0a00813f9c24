"""What both decoding stages of a job have to agree on."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.assembly import PLAIN, Preparation
from tandem.config import SamplingConfig


@dataclass(frozen=True)
class DecodeSettings:
    """How a job decodes. All of it may change bytes, but for CUDA graphs and `on_gpu`."""

    seed: int
    draft_steps: int
    sampling: SamplingConfig
    batch: int  # rows of every forward; a short last batch is padded to it
    dtype: str
    threads: int  # CPU threads of an actor, set explicitly: results depend on it
    preparation: Preparation = PLAIN  # of both transformers
    row_settings: tuple[str, ...] = ()  # columns of a shard that are settings of its rows, in place of those above
    on_gpu: bool | None = False  # where its actors compute; None: GPUs are yet to come, with whichever they find
