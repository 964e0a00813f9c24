"""The conditioning of a batch, and the types of calls through the blocks of a transformer.

Shapes: R rows (with CFG: conditional then unconditional), L tokens, l tokens of the last scale, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Hidden = Callable[..., Tensor]  # `Var.hidden`
# Hidden states [R, l, C] of the last scale, from the tokens [R, L, C] of one or more scales and their sizes
Forward = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of a batch on its classes, computed once and used at every scale."""

    class_RC: Tensor
    blocks: list[Tensor]  # [R, 6, C] each
    head_R2C: Tensor
