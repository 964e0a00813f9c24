"""`_SUCCESS`, the last file of a finished dataset: its content and its parser. `dataset.closing` writes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.seal import open_sealed, seal
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store


@dataclass(frozen=True)
class Totals:
    """Sums over all shards of an epoch; the content of `_SUCCESS`. `seconds` adds up over replicas.

    `failed_shards`: shards that could not be made, and why, if the job may leave them out. `files`: hashes of the other
    closing files, None in files of older versions.
    """

    shards: int
    rows: int
    size_bytes: int
    labels: dict[int, int]
    seconds: dict[str, float]
    failed_shards: dict[int, str] = field(default_factory=dict)
    epoch: int = 0
    files: dict[str, str] | None = None

    def to_json(self) -> bytes:
        """Indented JSON with a hash of itself."""
        return seal(asdict(self))


SUCCESS_KEYS = tuple(field.name for field in fields(Totals))


def add_up(entries: Sequence[ManifestEntry], failed: Mapping[int, str] | None = None) -> Totals:
    """Sums over committed shards, with the failed ones listed."""
    labels: Counter[int] = Counter()
    seconds: Counter[str] = Counter()
    for entry in entries:
        labels.update(entry.labels)
        for stage, value in entry.seconds.items():
            seconds[stage] += value  # type: ignore[assignment]
    return Totals(
        shards=len(entries),
        rows=sum(entry.rows for entry in entries),
        size_bytes=sum(entry.size_bytes for entry in entries),
        labels=dict(sorted(labels.items())),
        seconds={stage: round(value, 4) for stage, value in seconds.items()},
        failed_shards=dict(failed or {}),
    )


def read_success(store: Store) -> dict[str, Any] | None:
    """The content of `_SUCCESS`, see `parse_success`; None if it is missing or invalid."""
    try:
        return parse_success(store.read(layout.SUCCESS))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def parse_success(data: bytes) -> dict[str, Any]:
    """`Totals`, with failed_shards as ids. ValueError, KeyError, TypeError or AttributeError for other content.

    Older versions had no `files` (hashes of the other closing files) or no failed shards, and only epoch 0.
    """
    closing = {"epoch": 0, "shards": None, "files": None, "failed_shards": {}} | open_sealed(data, SUCCESS_KEYS)
    failed, hashes = set(map(int, closing["failed_shards"])), closing["files"]
    files = None if hashes is None else {str(path): str(sha256) for path, sha256 in hashes.items()}
    return closing | {"failed_shards": failed, "files": files}
