"""The record of a committed shard: its manifest entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from tandem_workers.dataset.ran import Ran
from tandem_workers.dataset.seal import open_sealed, seal
from tandem_workers.storage import layout
from tandem_workers.storage.store import Stored

MAX_SECONDS = 1e12  # of a stage, so that sums stay finite


@dataclass(frozen=True)
class ManifestEntry:
    """The record of a committed shard. Rows are counted per label, so that the card needs no images."""

    shard: int
    rows: int
    first_index: int
    last_index: int
    labels: dict[int, int]
    files: tuple[Stored, ...]
    size_bytes: int
    seconds: dict[str, float]
    ran: Mapping[str, Ran] = field(default_factory=dict)  # by stage; empty in entries of older versions

    def to_json(self) -> bytes:
        """Indented JSON for people and programs."""
        values = asdict(self)
        values["files"] = [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in self.files]
        return seal(values)

    @classmethod
    def from_json(cls, data: bytes) -> ManifestEntry:
        """The inverse of `to_json`. ValueError, KeyError, TypeError or AttributeError for other content."""
        values = open_sealed(data, [field.name for field in fields(cls)])
        values["labels"] = {int(label): count for label, count in values["labels"].items()}
        values["files"] = tuple(Stored(**file, created=False) for file in values["files"])
        values["ran"] = {stage: Ran.parse(ran) for stage, ran in values.get("ran", {}).items()}
        entry = cls(**values)
        entry.check()
        return entry

    def check(self) -> None:
        """ValueError unless counts are whole numbers, and files have valid names and hashes."""
        numbers = [self.shard, self.rows, self.first_index, self.last_index, self.size_bytes]
        numbers += [*self.labels, *self.labels.values(), *(file.size_bytes for file in self.files)]
        if wrong := [number for number in numbers if type(number) is not int or number < 0]:
            raise ValueError(f"expected whole numbers, got {wrong[0]!r}")
        if not self.files:
            raise ValueError("expected files, got none")
        for file in self.files:
            if not layout.is_data(file.path) or not re.fullmatch("[0-9a-f]{64}", file.sha256):
                raise ValueError(f"expected a file of a dataset with its sha256, got {file.path!r}, {file.sha256!r}")
        if not all(type(s) in (int, float) and 0 <= s < MAX_SECONDS for s in self.seconds.values()):
            raise ValueError(f"expected seconds by stage, got {self.seconds}")
