"""AdaLN without its weights: the modulation vectors of every class, computed once and kept in host memory.

The vectors depend only on the class, so a row per class replaces a third of the model on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.config import VarConfig
from tandem.linear import Linear


class ModulationTable:
    """Vectors [num_classes + 1, 6 x depth + 2, C]: six per block, and two for the norm before the head."""

    def __init__(self, config: VarConfig, dtype: torch.dtype, device: torch.device):
        """`device` is the model's. The table is in host memory, pinned for a GPU; on meta it has none."""
        shape = (config.num_classes + 1, 6 * config.depth + 2, config.width)
        host = "meta" if device.type == "meta" else "cpu"
        self.vectors = torch.empty(shape, dtype=dtype, device=host, pin_memory=device.type == "cuda")
        self.filled = 0

    def fold(self, layer: Linear, classes_KC: Tensor) -> None:
        """Fill in the next vectors: SiLU and a linear layer of the embeddings of all classes."""
        vectors = layer(F.silu(classes_KC)).view(len(classes_KC), -1, classes_KC.shape[1])
        self.vectors[:, self.filled : self.filled + vectors.shape[1]] = vectors
        self.filled += vectors.shape[1]

    def rows(self, labels_R: Tensor) -> Tensor:
        """Vectors of a batch on the device of its labels: [R, 6 x depth + 2, C]."""
        if self.vectors.is_meta:
            return self.vectors.index_select(0, labels_R)
        # under guidance half of the rows have no class, and a shard has few classes: copy each vector once
        classes_K, place_R = labels_R.to(self.vectors.device).unique(return_inverse=True)
        chosen = self.gather(classes_K).to(labels_R.device, non_blocking=True)
        return chosen.index_select(0, place_R.to(labels_R.device))

    def gather(self, classes_K: Tensor) -> Tensor:
        """Rows of the table in host memory, pinned for a GPU so that the host need not wait for the copy."""
        shape = len(classes_K), *self.vectors.shape[1:]
        chosen = torch.empty(shape, dtype=self.vectors.dtype, pin_memory=self.vectors.is_pinned())
        return torch.index_select(self.vectors, 0, classes_K, out=chosen)

    @property
    def num_bytes(self) -> int:
        """Bytes of host memory."""
        return self.vectors.numel() * self.vectors.element_size()
