"""Names all shards of a dataset at once, for its card: by a pattern, a range, or a list if neither fits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.storage import layout

PATTERNS = {"webdataset": "shards/*{}.tar", "parquet": "shards/*{}.parquet", "folder": "images/**"}


@dataclass(frozen=True)
class ShardNames:
    """Endings of shard names: `tag`, and others for shards whose usual name a damaged file had."""

    tag: str = ""
    others: Mapping[int, str] = field(default_factory=dict)  # by shard

    @classmethod
    def of(cls, epoch: int, entries: Sequence[ManifestEntry]) -> ShardNames:
        tag, others = layout.tag(epoch), {}
        for entry in entries:
            for file in entry.files:
                if layout.is_named_by_content(file.path) and layout.data_shard(file.path) is not None:
                    others[entry.shard] = file.path.split("/")[1].split(".")[0].removeprefix(f"{entry.shard:05d}")
        return cls(tag, others)

    def patterns(self, name: str) -> str | list[str]:
        """Glob patterns of the data files of a format; a single one if possible."""
        pattern = PATTERNS[name].format(self.tag)
        if name == "folder" or not self.tag or not self.others:
            return pattern
        extension = pattern.rpartition(".")[2]
        return [pattern, *(layout.shard_path(shard, extension, tag) for shard, tag in self.others.items())]

    def tars(self, num_shards: int, failed: Collection[int]) -> str:
        """All shards as webdataset takes them, in Python: a range, or their names where some are called otherwise."""
        if not failed and not self.others:
            return f'"shards/{{00000..{num_shards - 1:05d}}}{self.tag}.tar"'
        tag = f"{{ {dict(self.others)}.get(i, {self.tag!r}) }}" if self.others else self.tag
        there = f" if i not in {sorted(failed)}" if failed else ""
        return f'[f"shards/{{i:05d}}{tag}.tar" for i in range({num_shards}){there}]'
