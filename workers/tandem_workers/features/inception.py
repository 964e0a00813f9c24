"""The standard Inception network (2015-12-05) in TorchScript: what FID, sFID and Inception Score are defined with.

Sources: Heusel et al., 2017 (FID); Salimans et al., 2016 (IS, here as in its first implementation without the bias of
the last layer); Nash et al., 2021 (sFID), with the channels and their order of Dhariwal and Nichol's evaluator (ADM).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tandem.errors import CheckpointError, InputError
from tandem.precision import full_precision
from tandem_workers.features.extractors import (
    FEATURES,
    INCEPTION,
    LOGITS,
    SPATIAL,
    Columns,
    Extractor,
    Quantity,
    check_file,
)
from tandem_workers.features.network_input import as_array, as_input, load_torchscript
from tandem_workers.features.resizers import TENSORFLOW, resize
from tandem_workers.models.sources import local_file

FILE = "inception-2015-12-05.pt"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
# NVIDIA publishes the file without a hash. This one is in the sources of k-diffusion, which checks it after each
# download; several other evaluators name the same
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
VARIABLE = "TANDEM_INCEPTION"
SIZE = 299
SPATIAL_CHANNELS = 7  # of 768 at 17 x 17: with 2,023 values about as many as there are features
TOLERANCE = 1e-3  # of the largest feature


@dataclass(frozen=True)
class Inception(Extractor):
    """2,048 features, 2,023 spatial features (height, width, channel), 1,008 logits."""

    family: ClassVar[str] = INCEPTION
    own_resizer: ClassVar[str] = TENSORFLOW
    num_features: ClassVar[int | None] = 2048
    standard_names: ClassVar[dict[Quantity, str]] = {
        "Fréchet distance": "FID",
        "spatial Fréchet distance": "sFID",
        "kernel distance": "KID",
        "classifier score": "Inception Score",
        "precision": "Precision",
        "recall": "Recall",
        "density": "Density",
        "coverage": "Coverage",
    }

    def load(self, device: torch.device) -> InceptionNetwork:
        network = InceptionNetwork(load_torchscript(self.weights_file(), device), device)
        network.check()
        return network


class InceptionNetwork:
    """The network on a device, run layer by layer, so that one pass gives all columns."""

    def __init__(self, module: torch.jit.ScriptModule, device: torch.device) -> None:
        self.module, self.device = module, device

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[Any]) -> Columns:
        x_BChw = as_input(pixels, self.device, 128, 128)
        spatial = None
        with full_precision():
            for name, layer in self.module.layers.named_children():
                if name == "mixed_6":  # its first branch
                    spatial = layer.conv(x_BChw)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1)
                x_BChw = layer(x_BChw)
            features_BF: Tensor = x_BChw.flatten(1)
            logits = F.linear(features_BF, self.module.output.weight)
        assert spatial is not None
        return {FEATURES: as_array(features_BF), SPATIAL: as_array(spatial), LOGITS: as_array(logits)}

    def check(self) -> None:
        """CheckpointError unless the layers, run here, give what the network itself gives, resizing included."""
        picture = np.arange(40 * 50 * 3, dtype=np.int64).reshape(40, 50, 3) * 89 % 256
        pixels = picture.astype(np.uint8)
        try:
            with torch.inference_mode(), full_precision():
                whole = self.module(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.device), True)
            expected = as_array(whole)
            found = self(resize(pixels, SIZE, TENSORFLOW)[None])[FEATURES]
        except (RuntimeError, AttributeError, AssertionError) as error:
            raise CheckpointError(f"inception: expected the layers of {FILE}, got a network without them") from error
        limit = TOLERANCE * float(np.abs(expected).max())
        if found.shape != expected.shape or (off := float(np.abs(found - expected).max())) > limit:
            detail = f"shape {list(found.shape)}" if found.shape != expected.shape else f"a difference of {off:.3g}"
            raise CheckpointError(f"inception: expected its own forward's features, layer by layer, got {detail}")


def find_inception(file: str | None = None, resizer: str = TENSORFLOW, sha256: str = SHA256) -> Inception:
    """The network in a local or remote file, or in the one that the variable TANDEM_INCEPTION names.

    Raises InputError, or CheckpointError, that says what to fetch from where.
    """
    hint = f"fetch {URL} and give its path with {VARIABLE}"
    file = file or os.environ.get(VARIABLE)
    if not file:
        raise InputError(f"inception: expected the file {FILE}, which does not come with the package", hint)
    found = check_file(local_file(file), sha256, INCEPTION, hint)
    return Inception(INCEPTION, "Inception", found.source, sha256, SIZE, resizer)
