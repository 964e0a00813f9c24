"""The shard: the rows that travel together through every stage and are written as one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tandem.errors import JobError
from tandem_workers.dataset.fallbacks import Fallback
from tandem_workers.dataset.identity import Identity
from tandem_workers.dataset.ran import Ran
from tandem_workers.dataset.start_times import ReplicaStart
from tandem_workers.storage.layout import MAX_ROWS

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True)
class ShardPlan:
    """How a job of `num_rows` images is cut into shards: shard s starts at s * shard_size, the last may be short."""

    num_rows: int
    shard_size: int

    @classmethod
    def of(cls, identity: Identity) -> ShardPlan:
        """The plan of a job, from the identity in its `job.json`. ValueError if it has none."""
        rows, size = identity.rows, identity.shard_size
        if type(rows) is not int or type(size) is not int or not 0 <= rows <= MAX_ROWS or size < 1:
            raise ValueError(f"expected 0 to {MAX_ROWS} rows in shards of 1 or more, got {rows!r:.40} and {size!r:.40}")
        return cls(rows, size)

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.shard_size)

    def indices(self, shard: int) -> range:
        """Image indices of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_rows))

    def check_whole(self, shard: ShardRows) -> None:
        """JobError unless the record holds exactly the rows that its shard should have, in order."""
        expected = self.indices(shard.shard) if 0 <= shard.shard < self.num_shards else range(0)
        if list(expected) != shard.index.tolist():
            first, last = (shard.index[0], shard.index[-1]) if len(shard) else ("-", "-")
            raise JobError(
                f"shard {shard.shard}: expected {len(expected)} rows with index {expected.start} to "
                f"{expected.stop - 1}, got {len(shard)} rows with index {first} to {last}",
                hint="shards have to reach the sink whole; a stage before it has merged, split or lost rows",
            )


@dataclass(kw_only=True)
class ShardRows:
    """The fields of every kind of shard. n rows.

    Attributes:
        shard: shard id.
        index: int64 [n], position of each image in the job.
        label: int32 [n].
        tokens: uint16 [n, L], the refiner's token ids, or None if not requested.
        source: of edits, uint16 [n, L], token ids of the pictures that are edited.
        drawn: of edits, uint8 [n, ceil(h w / 8)], the latent cells that are drawn anew, a bit each, row by row; padding
            bits at the end are 0. Source and drawn come together.
        extra: carried columns, n values each. Arrow arrays keep their type; for lists it is inferred, which fails for
            a column of nulls.
        seconds: time spent in each stage so far.
        ran: how each stage that computes on a device ran.
        warnings: warnings of the actors that worked on it.
        fallbacks: stages of these actors that do not run as requested.
        starts: the starts of actors whose first shard it is.

    Raises:
        JobError: a column whose length or type is not the above.
    """

    shard: int
    index: NDArray[np.int64]
    label: NDArray[np.int32]
    tokens: NDArray[np.uint16] | None = None
    source: NDArray[np.uint16] | None = None
    drawn: NDArray[np.uint8] | None = None
    extra: Mapping[str, pa.Array | Sequence[Any]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    ran: Mapping[str, Ran] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    fallbacks: Sequence[Fallback] = ()
    starts: Sequence[ReplicaStart] = ()

    def __post_init__(self) -> None:
        self._check_array("index", self.index, "int64", 1)
        self._check_array("label", self.label, "int32", 1)
        for name, dtype in (("tokens", "uint16"), ("source", "uint16"), ("drawn", "uint8")):
            if (array := getattr(self, name)) is not None:
                self._check_array(name, array, dtype, 2)
        self.extra = {name: _arrow(column) for name, column in self.extra.items()}
        for name, column in self.extra.items():
            self._check_length(name, len(column))

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def of(cls, rows: ShardRows, **values: Any) -> Self:
        """The rows of an earlier stage, with what this stage adds or changes."""
        kept = {f.name: getattr(rows, f.name) for f in fields(ShardRows)}
        return cls(**{**kept, **values})

    def _check_array(self, name: str, array: NDArray[Any], dtype: str, ndim: int) -> None:
        if array.dtype != dtype or array.ndim != ndim:
            raise JobError(
                f"shard {self.shard}: {name}: expected {dtype} of {ndim} dimensions, "
                f"got {array.dtype} {list(array.shape)}"
            )
        self._check_length(name, len(array))

    def _check_length(self, name: str, length: int) -> None:
        if length != len(self):
            raise JobError(f"shard {self.shard}: {name}: expected {len(self)} rows, got {length}")


@dataclass(kw_only=True)
class PrefixShard(ShardRows):
    """From the drafter to the refiner. `prefix`: uint16 [n, P], ids of the first `draft_steps` scales."""

    prefix: NDArray[np.uint16]
    draft_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_array("prefix", self.prefix, "uint16", 2)


@dataclass(kw_only=True)
class PixelShard(ShardRows):
    """From the refiner to the encoder. `pixels` is uint8 [n, H, W, 3], RGB."""

    pixels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_array("pixels", self.pixels, "uint8", 4)


@dataclass(kw_only=True)
class EncodedShard(ShardRows):
    """From the encoder to the store. `images` holds n image files."""

    images: Sequence[bytes]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_length("images", len(self.images))


@dataclass(kw_only=True)
class FailedShard(ShardRows):
    """A shard that could not be made; it has no rows and passes through the remaining stages.

    `cause` is one line: the stage, and what it raised.
    """

    cause: str


def _arrow(column: pa.Array | pa.ChunkedArray | Sequence[Any]) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks()
    return column if isinstance(column, pa.Array) else pa.array(column)
