"""Extractors: which network makes features of pictures, told apart by name, hash of the weights, and resizer.

Only numbers of equal extractors may be compared, and only those of the standard Inception network have the names FID,
sFID, KID and Inception Score.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tandem.errors import CheckpointError
from tandem_workers.features.resizers import PILLOW, resize
from tandem_workers.models.sources import LocalFile, local_file

if TYPE_CHECKING:
    import torch

FEATURES, LOGITS, SPATIAL = "features", "logits", "spatial"  # columns of feature files
INCEPTION, EFFICIENTNET_LITE0, EMBEDDED = EXTRACTORS = ("inception", "efficientnet-lite0", "embedded")
Quantity = Literal[
    "Fréchet distance",
    "spatial Fréchet distance",
    "kernel distance",
    "classifier score",
    "precision",
    "recall",
    "density",
    "coverage",
    "agreement with the label",
    "accuracy after training on the dataset",
    "accuracy after training on real pictures",
    "difference of these accuracies",
]
Columns = dict[str, NDArray[np.float32]]


class Network(Protocol):
    """A network on a device."""

    def __call__(self, pixels: NDArray[Any]) -> Columns:
        """[B, size, size, 3], values 0 to 255 -> for each column float32 [B, F]."""


@dataclass(frozen=True)
class Extractor(ABC):
    """Which network, without the network: actors get it and load it.

    Attributes:
        name: for folders and messages.
        title: for reports.
        source: address of the weights: a path, s3://, hf:// or https://.
        sha256: of the weights file, in hex.
        input_size: side of the pictures that the network takes, in pixels.
        resizer: see `resizers`.
    """

    name: str
    title: str
    source: str
    sha256: str
    input_size: int
    resizer: str

    family: ClassVar[str]  # which code runs the weights
    own_resizer: ClassVar[str] = PILLOW  # the one that goes without saying
    standard_names: ClassVar[dict[Quantity, str]] = {}
    num_features: ClassVar[int | None] = None  # if known before the network is loaded
    class_names: ClassVar[Literal["imagenet", "embedded"] | None] = None  # that the logits stand for, if known

    @abstractmethod
    def load(self, device: torch.device) -> Network:
        """The network on a device. CheckpointError where the file is another than the one that was hashed."""

    def resized(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """A picture uint8 [H, W, 3] in the size that the network takes."""
        return resize(pixels, self.input_size, self.resizer)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes features. Whoever compares numbers compares this first."""
        weights = {"sha256": self.sha256, "input_size": self.input_size}
        return {"network": self.family, **weights, "resizer": self.resizer}

    @property
    def folder(self) -> str:
        """NAME-HASH8; the eight hex digits are of all of the identity."""
        text = json.dumps(self.identity, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def number_name(self, quantity: Quantity) -> str:
        """What a number of these features may be called, such as "FID" or "Fréchet distance (EfficientNet-Lite0)"."""
        resizer = "" if self.resizer == self.own_resizer else self.resizer
        if quantity in self.standard_names:
            name = self.standard_names[quantity]
            return f"{name} ({resizer})" if resizer else name
        return f"{quantity} ({', '.join(filter(None, (self.title, resizer)))})"

    def weights_file(self) -> Path:
        """The weights on this machine, fetched if need be. CheckpointError if they are others."""
        return check_file(local_file(self.source_here(), patient=True), self.sha256, self.name).path

    def source_here(self) -> str:
        """The source as this machine has it: packages may be installed in other places than the driver's."""
        return self.source


def check_file(file: LocalFile, sha256: str, name: str, hint: str | None = None) -> LocalFile:
    """The file itself. CheckpointError where it is missing, or has another hash than expected."""
    if not file.sha256:
        raise CheckpointError(f"{name}: expected a weights file, found nothing at {file.path}", hint)
    if file.sha256 != sha256:
        raise CheckpointError(
            f"{name}: expected the file with sha256 {sha256[:16]}…, {file.path} has {file.sha256[:16]}…", hint
        )
    return file
