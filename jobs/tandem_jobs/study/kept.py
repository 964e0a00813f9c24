"""Arrays of a study that are made once and kept in its folder, with everything that they depend on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY = "key"


def kept_arrays(
    path: Path, key: Mapping[str, Any], make: Callable[[], dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """The arrays in an `.npz` file if they were made with the same key, else new ones, which are put there."""
    text = json.dumps(key, sort_keys=True, default=str)
    if path.exists():
        with np.load(path, allow_pickle=False) as found:
            if KEY in found and str(found[KEY]) == text:
                return {name: np.asarray(found[name]) for name in found.files if name != KEY}
    arrays = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    everything: dict[str, Any] = {**arrays, KEY: np.array(text)}
    with aside.open("wb") as file:
        np.savez(file, **everything)
    aside.replace(path)
    return arrays
