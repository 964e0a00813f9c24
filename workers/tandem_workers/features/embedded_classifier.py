"""The classifier that ships with the embedded model: 12 classes of 64 px pictures, for trying and testing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray

from tandem.hashing import file_sha256
from tandem.precision import full_precision
from tandem.training.classifier import Classifier, load_classifier
from tandem.zoo import CLASSIFIER
from tandem_workers.features.extractors import EMBEDDED, FEATURES, LOGITS, Columns, Extractor
from tandem_workers.features.network_input import as_array, as_input
from tandem_workers.features.resizers import PILLOW

SIZE = 64


@dataclass(frozen=True)
class EmbeddedClassifier(Extractor):
    """128 features and the logits of 12 classes."""

    family: ClassVar[str] = EMBEDDED
    num_features: ClassVar[int | None] = 128
    class_names: ClassVar[Literal["imagenet", "embedded"] | None] = "embedded"

    def source_here(self) -> str:
        return str(CLASSIFIER)

    def load(self, device: torch.device) -> EmbeddedNetwork:
        return EmbeddedNetwork(load_classifier(self.weights_file())[0].to(device), device)


class EmbeddedNetwork:
    """The classifier on a device."""

    def __init__(self, module: Classifier, device: torch.device) -> None:
        self.module, self.device = module, device

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[Any]) -> Columns:
        with full_precision():
            features_BF = self.module.features(as_input(pixels, self.device, 127.5, 127.5))
            logits = self.module.head(features_BF)
        return {FEATURES: as_array(features_BF), LOGITS: as_array(logits)}


@lru_cache(maxsize=1)
def embedded_class_names() -> tuple[str, ...]:
    """The classes of the logits, which are those of the embedded model."""
    return load_classifier(CLASSIFIER)[1]


def find_embedded(resizer: str = PILLOW) -> EmbeddedClassifier:
    """The classifier of this package."""
    return EmbeddedClassifier(EMBEDDED, "embedded classifier", CLASSIFIER.name, file_sha256(CLASSIFIER), SIZE, resizer)
