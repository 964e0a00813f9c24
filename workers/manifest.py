"""Which shards of a dataset are done, and whose dataset it is.

A shard is done when its manifest entry exists; the entry is put once, after the shard's files. `job.json`
says which job a place belongs to: the same job resumes there, any other is refused.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tandem.errors import JobError, OutputError
from workers import layout
from workers.entry import SUCCESS_KEYS, ManifestEntry, Totals
from workers.seal import DamagedError, open_sealed, seal
from workers.shards import ShardPlan, ShardRows
from workers.store import Store, Stored

MAX_NAMED = 12  # shards or fields in a message
MAX_VALUE_CHARS = 60
READS_AT_ONCE = 16
REPAIR = "'tandem verify --repair' sets it aside, and the same command makes what is missing"
JOB_KEYS = ("identity", "info")
RENAMED = (
    "its class names are those of its weights, or numbers (--class-names numbers goes on with these); choose another "
    "--out, or replace that job with --overwrite"
)


class Manifest:
    """The commit markers of a store. Knows nothing by heart: every question looks at the store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def committed(self) -> frozenset[int]:
        """Ids of the shards that are done, from the names alone."""
        shards = map(layout.manifest_shard, self.store.list_files(layout.MANIFEST))
        return frozenset(shard for shard in shards if shard is not None)

    def entry(self, shard: int) -> ManifestEntry | None:
        """The entry of a shard, None while it is not done. JobError if it cannot be read."""
        path = layout.manifest_path(shard)
        try:
            entry = ManifestEntry.from_json(self.store.read(path))
            if entry.shard != shard:
                raise DamagedError(f"is that of shard {entry.shard}")
            return entry
        except FileNotFoundError:
            return None
        except DamagedError as error:
            problem = str(error)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"is not a manifest entry: {error!r}"
        raise JobError(f"{path} in {self.store.uri} {problem}", hint=REPAIR)

    def entries(self) -> list[ManifestEntry]:
        """All entries in shard order."""
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:  # on S3 each is a request of some milliseconds
            return [entry for entry in pool.map(self.entry, sorted(self.committed())) if entry]

    def commit_shard(
        self, shard_id: int, files: Sequence[Stored], rows: ShardRows, seconds: Mapping[str, float]
    ) -> ManifestEntry:
        """Declare a shard done whose files are stored. Returns what stands, maybe another writer's entry."""
        entry = ManifestEntry(
            shard=shard_id,
            rows=len(rows),
            first_index=int(rows.index.min()),
            last_index=int(rows.index.max()),
            labels=dict(sorted(Counter(rows.label.tolist()).items())),
            files=tuple(files),
            size_bytes=sum(file.size_bytes for file in files),
            seconds={stage: round(value, 4) for stage, value in seconds.items()},
        )
        stored = self.store.put_once(layout.manifest_path(shard_id), entry.to_json())
        return entry if stored.created else self.entry(shard_id) or entry

    def totals(self, failed: Mapping[int, str] | None = None, entries: Sequence[ManifestEntry] | None = None) -> Totals:
        """Sums over the shards that are done, beside those that have failed. Reads the entries if nobody has."""
        entries = self.entries() if entries is None else entries
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

    def check_complete(self, num_shards: int, failed: Mapping[int, str] | None = None) -> None:
        """JobError naming the shards that are not done, failed ones apart."""
        if missing := sorted(set(range(num_shards)) - self.committed() - set(failed or {})):
            more = ", ..." if len(missing) > MAX_NAMED else ""
            named = ", ".join(map(str, missing[:MAX_NAMED])) + more
            raise JobError(
                f"{len(missing)} of {num_shards} shards are missing: {named}",
                hint="run the same command again",
            )

    def finish(
        self,
        num_shards: int,
        failed: Mapping[int, str] | None = None,
        entries: Sequence[ManifestEntry] | None = None,
    ) -> Totals:
        """Write `_SUCCESS`, the last file of a dataset. JobError while shards are missing. Repeatable."""
        self.check_complete(num_shards, failed)
        totals = self.totals(failed, entries)
        self.store.put_once(layout.SUCCESS, seal(asdict(totals)))
        self.store.clean(closing=True)
        return totals


class Format(Protocol):
    """How a shard becomes files. Equal rows have to give equal bytes."""

    def files(self, shard: Any) -> list[tuple[str, bytes]]:
        """(path in the dataset, bytes) of every file of a shard."""


def store_shard(store: Store, manifest: Manifest, shard: ShardRows, fmt: Format, plan: ShardPlan) -> ManifestEntry:
    """Write a shard and commit it. Doing it twice, here or elsewhere, changes nothing.

    Raises:
        JobError: the record is not a whole shard of the plan.
        OutputError: the place cannot be written.
    """
    plan.check_whole(shard)
    if done := manifest.entry(shard.shard):
        return done
    start = time.perf_counter()
    files = store.put_many(fmt.files(shard))
    return manifest.commit_shard(shard.shard, files, shard, {**shard.seconds, "store": time.perf_counter() - start})


@dataclass(frozen=True)
class JobRecord:
    """A job's hold on a place. `committed` are the shards that need not be made again."""

    identity: dict[str, Any]
    info: dict[str, Any]
    committed: frozenset[int]


def open_job(
    store: Store, identity: Mapping[str, Any], info: Mapping[str, Any] | None = None, overwrite: bool = False
) -> JobRecord:
    """Take a place for a job, or find how far the same job has come there.

    Args:
        store: where the dataset is or shall be.
        identity: whatever changes bytes, as JSON values. `job.json` keeps it and a later run has to match it.
        info: what else is worth knowing (versions, command, time). Kept from the first run, never compared.
        overwrite: remove the files of the job that is there, whichever it is, and start anew. Files that no
            job writes stay.

    Raises:
        OutputError: another job is there (the message lists the fields), or files of no job, or a job.json
            that is not ours. Overwriting needs a readable job.json too.
    """
    store.clean()
    here = as_json(identity)
    content = seal({"identity": here, "info": dict(info or {})})
    if not store.exists(layout.JOB):
        foreign = store.list_files()
        if foreign and not store.exists(layout.JOB):  # asked again: another process may have begun
            raise OutputError(
                f"{store.uri} is not empty and holds no job (files: {len(foreign)}, such as {foreign[0]})",
                hint="choose another --out",
            )
        store.put_once(layout.JOB, content)
    elif overwrite:
        read_job(store)
        _remove_job(store)
        store.replace(layout.JOB, content)
    there = read_job(store)  # another process may have been first
    if differences := diff_identity(there["identity"], here):
        raise OutputError(
            f"{store.uri} holds another job. Fields that differ:\n" + _render(differences),
            hint=RENAMED if is_renamed(differences) else "choose another --out, or replace that job with --overwrite",
        )
    return JobRecord(here, there["info"], Manifest(store).committed())


def is_renamed(differences: Sequence[tuple[str, Any, Any]]) -> bool:
    """Whether a job differs from ours only in that its classes have the names that its weights give them."""
    return [(field, there) for field, there, _ in differences] == [("class_names_sha256", None)]


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as `job.json` gives it back."""
    return dict(json.loads(json.dumps(dict(identity))))


def diff_identity(there: Any, here: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted field, value there, value here) of each difference of two JSON values; None where missing."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            difference
            for key in [*there, *(key for key in here if key not in there)]
            for difference in diff_identity(there.get(key), here.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if there == here else [(name, there, here)]


def _render(differences: Sequence[tuple[str, Any, Any]]) -> str:
    lines = [f"  {name}: there {_short(there)}, here {_short(here)}" for name, there, here in differences]
    more = len(lines) - MAX_NAMED
    return "\n".join(lines[:MAX_NAMED] + ([f"  and {more} more"] if more > 0 else []))


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "…"


def read_job(store: Store) -> dict[str, Any]:
    """Identity and info of the job that a place belongs to. FileNotFoundError where no job has begun."""
    try:
        job = open_sealed(store.read(layout.JOB), JOB_KEYS)
        if isinstance(job["identity"], dict) and isinstance(job["info"], dict):
            return job
        problem = "is not a Tandem job: identity and info have to be objects"
    except DamagedError as error:
        problem = str(error)
    except KeyError as error:
        problem = f"is not a Tandem job: {error!r}"
    raise OutputError(f"job.json in {store.uri} {problem}", hint=f"choose another --out; of a damaged job: {REPAIR}")


def reopen(store: Store) -> None:
    """Take back what closes a dataset, where shards are to be added: those that had failed are tried again."""
    if store.exists(layout.SUCCESS):
        for path in (layout.SUCCESS, layout.CARD, layout.CONTACT_SHEET, layout.IMAGE_TABLE):
            store.remove(path)


def is_closed(store: Store, num_shards: int, committed: frozenset[int], beside: Sequence[str]) -> bool:
    """Whether `_SUCCESS` speaks of the shards that are there, and the files that belong beside it are there too."""
    try:
        closing = open_sealed(store.read(layout.SUCCESS), SUCCESS_KEYS)
        failed = set(map(int, closing["failed_shards"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    return failed == set(range(num_shards)) - committed and all(map(store.exists, beside))


def _remove_job(store: Store) -> None:
    """In an order that leaves a resumable job of the old identity behind if it is cut short."""
    order = {layout.SUCCESS: 0, layout.MANIFEST: 1}
    ours = [path for path in store.list_files() if layout.is_ours(path) and path != layout.JOB]
    for path in sorted(ours, key=lambda path: order.get(path.split("/")[0], 2)):
        store.remove(path)
