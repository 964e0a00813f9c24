"""The manifest: which shards of a dataset are committed.

A shard is done when its manifest entry exists; the entry is put once, after the shard's files, and never removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from tandem.errors import JobError, OutputError
from tandem.user_files import shown
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.job_record import REPAIR, read_job
from tandem_workers.dataset.seal import DamagedError
from tandem_workers.dataset.shards import ShardRows
from tandem_workers.dataset.success_file import Totals, add_up
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store, Stored

MAX_NAMED = 12  # shards in a message
READS_AT_ONCE = 16
PUT_ATTEMPTS = 3  # if an entry exists when it is put, and is gone when it is read


class Manifest:
    """The commit markers of one epoch of a store. Nothing is cached: every call reads the store.

    Writers pass their `epoch`. For readers it defaults to the epoch of the current job, determined at first use.
    """

    def __init__(self, store: Store, epoch: int | None = None) -> None:
        self.store = store
        self._epoch = epoch

    @property
    def epoch(self) -> int:
        if self._epoch is None:
            try:
                self._epoch = int(read_job(self.store)["epoch"])
            except FileNotFoundError:  # no job has begun
                return 0
        return self._epoch

    def path(self, shard: int) -> str:
        """Path of a shard's entry."""
        return layout.manifest_path(shard, self.epoch)

    def committed(self, expected: Iterable[int] = (), failed: Collection[int] = ()) -> frozenset[int]:
        """Ids of the committed shards, from names alone.

        A listing may lag. So `failed` shards that it lacks are probed by name, and `expected` ones up to the first that
        does not exist: in an unfinished dataset most do not.
        """
        epoch = self.epoch
        shards = (layout.manifest_shard(path, epoch) for path in self.store.list_files(layout.MANIFEST))
        listed = frozenset(shard for shard in shards if shard is not None)
        lacking = sorted(set(expected) - listed - set(failed))
        return (
            listed | self._standing(lacking) | self._standing([s for s in failed if s not in listed], to_the_end=True)
        )

    def entry(self, shard: int) -> ManifestEntry | None:
        """The entry of a shard, None if it is not committed. JobError if it cannot be read."""
        try:
            return self.parse(shard, self.store.read(self.path(shard)))
        except FileNotFoundError:
            return None

    def parse(self, shard: int, data: bytes) -> ManifestEntry:
        """The entry of a shard from its file. JobError if it is not one."""
        try:
            entry = ManifestEntry.from_json(data)
            if entry.shard != shard:
                raise DamagedError(f"is that of shard {entry.shard}")
            return entry
        except DamagedError as error:
            problem = str(error)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"is not a manifest entry: {shown(repr(error))}"
        raise JobError(f"{self.path(shard)} in {self.store.uri} {problem}", hint=REPAIR)

    def entries(self, shards: Iterable[int] | None = None) -> list[ManifestEntry]:
        """Entries in shard order, of all committed shards or of the given ones. Leaves out missing ones."""
        wanted = sorted(self.committed() if shards is None else shards)
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:  # on S3 each is a request of some milliseconds
            return [entry for entry in pool.map(self.entry, wanted) if entry]

    def commit_shard(
        self, shard_id: int, files: Sequence[Stored], rows: ShardRows, seconds: Mapping[str, float]
    ) -> ManifestEntry:
        """Commit a shard whose files are stored. Returns the stored entry, perhaps another writer's."""
        entry = ManifestEntry(
            shard=shard_id,
            rows=len(rows),
            first_index=int(rows.index.min()),
            last_index=int(rows.index.max()),
            labels=dict(sorted(Counter(rows.label.tolist()).items())),
            files=tuple(files),
            size_bytes=sum(file.size_bytes for file in files),
            seconds={stage: round(value, 4) for stage, value in seconds.items()},
            ran=rows.ran,
        )
        path = self.path(shard_id)
        for _ in range(PUT_ATTEMPTS):
            if self.store.put_once(path, entry.to_json()).created:
                return entry
            if standing := self.entry(shard_id):
                return standing
        raise OutputError(f"{path} in {self.store.uri} was removed while it was put", hint="run the same command again")

    def totals(self, failed: Mapping[int, str] | None = None) -> Totals:
        """Sums over the committed shards, with the failed ones listed."""
        return add_up(self.entries(), failed)

    def _standing(self, shards: Sequence[int], to_the_end: bool = False) -> frozenset[int]:
        """Shards that have an entry, probed one by one up to the first that has none."""
        found: set[int] = set()
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            for start in range(0, len(shards), READS_AT_ONCE):
                chunk = shards[start : start + READS_AT_ONCE]
                there = list(pool.map(self.store.exists, map(self.path, chunk)))
                found.update(shard for shard, stands in zip(chunk, there, strict=True) if stands)
                if not all(there) and not to_the_end:
                    break
        return frozenset(found)


def check_complete(num_shards: int, committed: Collection[int], failed: Collection[int] = ()) -> None:
    """JobError naming the shards that are neither committed nor failed."""
    if missing := sorted(set(range(num_shards)) - set(committed) - set(failed)):
        more = ", ..." if len(missing) > MAX_NAMED else ""
        named = ", ".join(map(str, missing[:MAX_NAMED])) + more
        raise JobError(
            f"{len(missing)} of {num_shards} shards are missing: {named}",
            hint="run the same command again",
        )
