"""The features of one place: which images there are, and their features read block by block."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tandem.class_names import ClassNames
from tandem.errors import InputError
from tandem_jobs.evaluation.feature_arrays import SAMPLE, StoredRows, in_sample
from tandem_workers.features.extractors import FEATURES
from tandem_workers.features.feature_files import FeatureBlock, FeatureFiles
from tandem_workers.pictures.picture_block import PictureSource
from tandem_workers.storage.s3_parallel import in_parallel

READ_AHEAD = 2  # blocks
READS_AT_ONCE = 16  # of labels alone


@dataclass(frozen=True)
class FeatureSet:
    """Images of one place whose features are in files. Rows are in the order of blocks.

    Attributes:
        source, files: the pictures and their features.
        names: of the classes, or None where labels are numbers alone.
        index, label: int64 [n] and int32 [n]; labels are -1 where there is none.
        starts: first row of each block, and n.
        sizes: how many pictures had which size.
    """

    source: PictureSource
    files: FeatureFiles
    names: ClassNames | None
    index: NDArray[np.int64]
    label: NDArray[np.int32]
    starts: NDArray[np.int64]
    sizes: Counter[str]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def place(self) -> str:
        return self.source.place

    def blocks(self, columns: Collection[str] = (FEATURES,)) -> Iterator[tuple[slice, FeatureBlock]]:
        """Each block that has images, and its rows. The next blocks are read meanwhile."""
        todo = deque(np.flatnonzero(np.diff(self.starts)).tolist())
        coming: deque[tuple[int, Future[FeatureBlock]]] = deque()
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            while todo or coming:
                while todo and len(coming) < READ_AHEAD:
                    coming.append((todo[0], pool.submit(self.files.read, todo.popleft(), columns)))
                block, read = coming.popleft()
                yield slice(int(self.starts[block]), int(self.starts[block + 1])), read.result()

    def pictures(self, rows: Iterable[int]) -> dict[int, NDArray[np.uint8]]:
        """Pictures uint8 [H, W, 3] of some rows. Reads each of their blocks once, and decodes no others."""
        found: dict[int, NDArray[np.uint8]] = {}
        wanted = sorted({int(row) for row in rows})
        for number, group in groupby(wanted, key=lambda row: int(np.searchsorted(self.starts, row, side="right")) - 1):
            mine = list(group)
            chosen = self.source.read(number).part([row - int(self.starts[number]) for row in mine])
            found |= dict(zip(mine, chosen.decoded(), strict=True))
        return found


def open_features(source: PictureSource, files: FeatureFiles, names: ClassNames | None) -> FeatureSet:
    """The features of all blocks, which must be there. InputError with fewer than two images."""
    found = in_parallel(lambda block: files.read(block, ()), range(files.num_blocks), READS_AT_ONCE)
    lengths = [len(block) for block in found]
    if sum(lengths) < 2:
        raise InputError(f"{source.place}: expected two images or more, got {sum(lengths)}")
    sizes: Counter[str] = Counter()
    for block in found:
        sizes.update(block.sizes)
    index, label = (np.concatenate([getattr(block, name) for block in found]) for name in ("index", "label"))
    return FeatureSet(source, files, names, index, label, np.cumsum([0, *lengths]), sizes)


@dataclass(frozen=True)
class Sample:
    """Features of a sample of the images, in a file. `rows` int64 [s]: which images of the set."""

    features: StoredRows
    rows: NDArray[np.int64]


class SampleWriter:
    """Writes the features of a sample to a `.npy` file as blocks pass by, so that none stay in memory."""

    def __init__(self, features: FeatureSet, path: Path, size: int = SAMPLE):
        self.chosen = in_sample(features.index, size)
        self.path = path
        self.width: int | None = None
        self.file = path.open("wb")

    def add(self, rows: slice, features: NDArray[np.floating]) -> None:
        """Add the features [B, F] of consecutive rows."""
        if self.width is None:
            self.width = features.shape[1]
            header = {"descr": "<f4", "fortran_order": False, "shape": (int(self.chosen.sum()), self.width)}
            np.lib.format.write_array_header_1_0(self.file, header)
        self.file.write(np.ascontiguousarray(features[self.chosen[rows]], dtype="<f4").tobytes())

    def close(self) -> Sample:
        self.file.close()
        return Sample(StoredRows(self.path), np.flatnonzero(self.chosen))
