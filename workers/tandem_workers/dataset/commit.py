"""Writing a shard: its files first, its manifest entry last. Any number of writers may do it, at any time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from tandem.errors import OutputError
from tandem_workers.dataset.closing import reopen
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.job_record import check_epoch
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shard_reader import check_shard_files
from tandem_workers.dataset.shards import ShardPlan, ShardRows
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store, Stored

File = tuple[str, bytes]  # path in the dataset, content
MAX_NAMES = 4  # names tried for a shard if damaged files have its own


class Format(Protocol):
    """Turns a shard into files. Equal rows must give equal bytes."""

    def files(self, shard: Any, tag: str = "") -> list[File]:
        """(path in the dataset, bytes) of every file of a shard; `tag` is part of each name."""


def store_shard(store: Store, manifest: Manifest, shard: ShardRows, fmt: Format, plan: ShardPlan) -> ManifestEntry:
    """Write a shard and commit it. Doing it twice, here or elsewhere, changes nothing.

    Raises:
        JobError: the record is not a whole shard of the plan.
        OutputError: the store cannot be written, or another job has taken it over.
    """
    plan.check_whole(shard)
    check_epoch(store, manifest.epoch)
    store.check_shared()
    if done := manifest.entry(shard.shard):
        return done
    start = time.perf_counter()
    tried: list[str] = []
    files = put_shard(store, manifest.epoch, shard, fmt, tried)
    seconds = {**shard.seconds, "store": time.perf_counter() - start}
    entry = manifest.commit_shard(shard.shard, files, shard, seconds)
    named = {file.path for file in entry.files}
    for path in tried:  # the entry is final, so files that it does not name are useless
        if path not in named:
            store.remove(path)
    if store.exists(layout.SUCCESS):  # the job may have given up this writer and closed without its shard
        reopen(manifest, shard.shard)
    return entry


def put_shard(store: Store, epoch: int, shard: ShardRows, fmt: Format, tried: list[str]) -> list[Stored]:
    """Put the files of a shard, or accept existing files that are a whole shard of this job. Adds names to `tried`.

    Existing files may hold other valid bytes, from another GPU or a halved batch, so they are read. Damaged files stay,
    and the shard is put under names with its content's hash: if a file were removed and put again, another writer's
    removal could hit the new one. Raises OutputError.
    """
    content = reason = ""
    for attempt in range(MAX_NAMES):
        tag = layout.tag(epoch, content)
        ours = fmt.files(shard, tag)
        tried += [path for path, _ in ours]
        stored = store.put_many(ours)
        reason = why_not_ours(store, stored, ours, shard, partial(fmt.files, tag=tag))
        if not reason:
            return stored
        content = hashlib.sha256(bytes([attempt]) + b"".join(hash_of(data) for _, data in ours)).hexdigest()[:8]
    hint = "tandem verify --repair moves them away; no job may write meanwhile"
    raise OutputError(f"{tried[-1]} in {store.uri} and other names of this shard hold something else: {reason}", hint)


def why_not_ours(store: Store, stored: Sequence[Stored], ours: Sequence[File], shard: ShardRows, files: Any) -> str:
    """Why the stored files are not a whole shard of this job; "" if they are."""
    both = list(zip(stored, ours, strict=True))
    if all(there.created or there.sha256 == hash_of(data).hex() for there, (_, data) in both):
        return ""
    try:
        found = [(path, data if there.created else store.read(path)) for there, (path, data) in both]
    except FileNotFoundError as error:  # removed by the writer that committed other files of this shard
        return f"{error} is gone"
    if [hash_of(data).hex() for _, data in found] != [there.sha256 for there in stored]:
        return "changed while it was read"
    return check_shard_files(found, shard, files) or ""


def hash_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
