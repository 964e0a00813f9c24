"""Any network in a TorchScript file, such as DINOv2 or CLIP: named by its file and told apart by its hash.

The network takes float32 [B, 3, size, size] and gives features [B, F], or a tuple of features and logits. Its input is
described by a file `preprocessing.json` in the archive (`torch.jit.save(..., _extra_files=...)`), which the hash covers
too: {"title": "CLIP ViT-B/32", "size": 224, "mean": [0.481, 0.458, 0.408], "std": [0.269, 0.261, 0.276]}. What it
lacks is that of ImageNet networks.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError
from torch import Tensor

from tandem.errors import CheckpointError, InputError, one_line
from tandem.precision import full_precision
from tandem.user_files import MAX_TEXT_BYTES, parse_json
from tandem_workers.features.extractors import FEATURES, LOGITS, Columns, Extractor, check_file
from tandem_workers.features.network_input import as_array, as_input, load_torchscript
from tandem_workers.features.resizers import PILLOW
from tandem_workers.models.sources import local_file

DESCRIPTION = "preprocessing.json"
MAX_SIDE = 4096


class Preprocessing(BaseModel):
    """What a network takes; mean and std are of values from 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field("", max_length=80)
    size: int = Field(224, ge=1, le=MAX_SIDE)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TorchScript(Extractor):
    """The features, and the logits if there are any, of a network that the user brings."""

    family: ClassVar[str] = "torchscript"

    def load(self, device: torch.device) -> TorchScriptNetwork:
        path = self.weights_file()
        return TorchScriptNetwork(load_torchscript(path, device), read_preprocessing(path), device, self.name)


class TorchScriptNetwork:
    """The network on a device."""

    def __init__(self, module: Any, preprocessing: Preprocessing, device: torch.device, name: str) -> None:
        self.module, self.device, self.name = module, device, name
        self.mean, self.std = (_in_bytes(values) for values in (preprocessing.mean, preprocessing.std))

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[Any]) -> Columns:
        with full_precision():
            made = self.module(as_input(pixels, self.device, self.mean, self.std))
        parts = made if isinstance(made, tuple | list) else (made,)
        shapes = [list(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        if not 1 <= len(parts) <= 2 or not all(isinstance(s, list) and len(s) == 2 for s in shapes):
            got = ", ".join(map(str, shapes))
            raise InputError(f"{self.name}: expected features [B, F], or a tuple of features and logits, got {got}")
        return {name: as_array(part) for name, part in zip((FEATURES, LOGITS), parts, strict=False)}


def _in_bytes(values: tuple[float, float, float]) -> tuple[float, float, float]:
    red, green, blue = values
    return 255 * red, 255 * green, 255 * blue


def find_torchscript(source: str, resizer: str = PILLOW) -> TorchScript:
    """The network in a TorchScript file. InputError or CheckpointError where it is none."""
    file = local_file(source)
    check_file(file, file.sha256, "features")
    name = re.sub(r"[^\w.]+", "-", file.path.stem).strip("-.") or "file"
    preprocessing = read_preprocessing(file.path)
    return TorchScript(name, preprocessing.title or name, file.source, file.sha256, preprocessing.size, resizer)


def read_preprocessing(path: Path) -> Preprocessing:
    """The description in a TorchScript file, or that of ImageNet networks. CheckpointError for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not any(name.endswith("/constants.pkl") for name in names):
                raise CheckpointError(f"{path}: expected a TorchScript file, got an archive of other files")
            found = [name for name in names if name.endswith(f"/extra/{DESCRIPTION}")]
            if not found:
                return Preprocessing.model_validate({})
            with archive.open(found[0]) as file:
                text = file.read(MAX_TEXT_BYTES).decode()
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected a TorchScript file: {one_line(error)}") from None
    try:
        return Preprocessing.model_validate(parse_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}, {DESCRIPTION}: {place}: {first['msg']}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}, {DESCRIPTION}: {one_line(error)}") from None
