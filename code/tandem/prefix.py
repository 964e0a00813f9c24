"""The prefix that a drafter passes to a refiner: token ids of the first N scales, 2 bytes per token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tandem.config import Pyramid
from tandem.errors import InputError
from tandem.transfers import upload


@dataclass(frozen=True)
class Prefix:
    """Token maps of scales 1..draft_steps of B images. f_hat is rebuilt from the ids when it is needed.

    Attributes:
        tokens: uint16 [B, L'], L' = tokens of the first draft_steps scales, small scale to large.
        draft_steps: N, the number of scales.
    """

    tokens: np.ndarray
    draft_steps: int

    def check(self, pyramid: Pyramid, vocab_size: int) -> Prefix:
        """Raise InputError unless the ids fit the pyramid and the codebook."""
        pyramid.check_draft_steps(self.draft_steps)
        expected = pyramid.offsets[self.draft_steps]
        if self.tokens.dtype != np.uint16 or self.tokens.ndim != 2 or self.tokens.shape[1] != expected:
            raise InputError(
                f"prefix of {self.draft_steps} scales: expected uint16 [B, {expected}], "
                f"got {self.tokens.dtype} {list(self.tokens.shape)}"
            )
        if self.tokens.size and int(self.tokens.max()) >= vocab_size:
            raise InputError(f"prefix: expected token ids below {vocab_size}, got {int(self.tokens.max())}")
        return self

    def ids(self, device: torch.device | None = None) -> Tensor:
        """Token ids as the models take them: int64 [B, L']."""
        return upload(torch.from_numpy(self.tokens.astype(np.int64)), device)

    @classmethod
    def from_ids(cls, ids_BL: Tensor, draft_steps: int) -> Prefix:
        return cls(to_tokens(ids_BL), draft_steps)


def to_tokens(ids_BL: Tensor) -> np.ndarray:
    """Token ids int64 -> uint16, the form in which they travel and are stored."""
    return ids_BL.cpu().numpy().astype(np.uint16)
