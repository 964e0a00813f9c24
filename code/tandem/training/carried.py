"""Weights on their way to the workers of a training run: arrays that a node holds once and workers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tandem.assembly import assemble_var, assemble_vqvae
from tandem.config import VarConfig, VqvaeConfig
from tandem.var import Var
from tandem.vqvae import Vqvae


@dataclass(frozen=True)
class Weights:
    """A model's config and its tensors as arrays. Can be pickled without copying."""

    config: VarConfig | VqvaeConfig
    arrays: Mapping[str, NDArray[np.generic]]

    @classmethod
    def of(cls, model: Var | Vqvae) -> Weights:
        """Those of a model with plain float32 or float16 parameters on the CPU."""
        return cls(model.config, {name: value.detach().numpy() for name, value in model.state_dict().items()})

    def tensor(self, name: str) -> Tensor:
        # the array may be in shared memory that must not change
        return torch.from_numpy(np.array(self.arrays[name]))

    def var(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Var:
        """A transformer with plain parameters."""
        assert isinstance(self.config, VarConfig)
        return assemble_var(self.config, self.tensor, dtype, device, preparation=None)

    def vqvae(self, device: torch.device) -> Vqvae:
        """A tokenizer with plain float32 parameters."""
        assert isinstance(self.config, VqvaeConfig)
        return assemble_vqvae(self.config, self.tensor, torch.float32, device, preparation=None)
