"""Arrays of a study that are made once and kept in its folder, with everything that they depend on."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.errors import one_line
from tandem_jobs.run.progress import say

KEY = "key"
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError)  # of np.load


def kept_arrays(
    path: Path, key: Mapping[str, Any], make: Callable[[], dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """The arrays in an `.npz` file if they were made with the same key, else new ones, which are put there."""
    text = json.dumps(key, sort_keys=True, default=str)
    if (known := read_kept(path, text)) is not None:
        return known
    arrays = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    everything: dict[str, Any] = {**arrays, KEY: np.array(text)}
    with aside.open("wb") as file:
        np.savez(file, **everything)
    aside.replace(path)
    return arrays


def read_kept(path: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file with this key; None if there is none. One that a power cut has damaged is none either."""
    try:
        with np.load(path, allow_pickle=False) as found:
            if KEY in found and str(found[KEY]) == key:
                return {name: np.asarray(found[name]) for name in found.files if name != KEY}
    except FileNotFoundError:
        pass
    except DAMAGED as error:
        say(f"{path} is damaged, so it is made again: {one_line(error)}")
    return None
