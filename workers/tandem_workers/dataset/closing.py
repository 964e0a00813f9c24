"""Closing a dataset: card, contact sheet and `_SUCCESS`, written by any job that finds every shard committed.

Several jobs may close at once, see different shards, or have lost the store to another job. Any write can arrive late,
and only the put of a new name can be conditional. So a closing job reads back its writes until it finds what it would
write; the set of committed shards only grows, so all jobs agree in the end. `_SUCCESS` is put, or removed and put,
never replaced: a late put changes nothing if the file exists.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from tandem.errors import JobError, OutputError
from tandem_workers.dataset.aside import keep
from tandem_workers.dataset.claim import remove_older
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.job_record import check_epoch, is_taken, publish_job, taken
from tandem_workers.dataset.manifest import Manifest, check_complete
from tandem_workers.dataset.success_file import add_up, read_success
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

MAX_ROUNDS = 20  # attempts while other jobs that close at once undo them
Render = Callable[[Sequence[ManifestEntry], Mapping[int, str]], Mapping[str, bytes]]


def no_files(*_: object) -> dict[str, bytes]:
    """For a dataset without files other than `_SUCCESS`."""
    return {}


def close_dataset(
    manifest: Manifest,
    num_shards: int,
    failed: Mapping[int, str] | None = None,
    render: Render = no_files,
    required: Collection[str] = (),
) -> None:
    """Write the closing files of a dataset unless they exist. Any number of jobs may do it, any number of times.

    Args:
        manifest: of the job's own epoch.
        failed: shards that could not be made, and why; shards that other jobs have made since are ignored.
        render: makes the other closing files from all entries and failed shards. Equal inputs give equal bytes.
        required: see `is_closed`.

    Raises:
        JobError: shards are missing.
        OutputError: another job has taken over the store.
    """
    files: dict[str, bytes] = {}
    try:
        _close(manifest, num_shards, dict(failed or {}), render, required, files)
    except OutputError:
        if is_taken(manifest.store, manifest.epoch):
            _withdraw(manifest, files)
        raise


def _close(
    manifest: Manifest,
    num_shards: int,
    failed: Mapping[int, str],
    render: Render,
    required: Collection[str],
    files: dict[str, bytes],
) -> None:
    """`close_dataset`; also fills `files` with the closing files that may have been put."""
    store, epoch = manifest.store, manifest.epoch
    written: frozenset[int] | None = None
    for _ in range(MAX_ROUNDS):
        check_epoch(store, epoch)
        committed = manifest.committed(range(num_shards), failed)
        if is_closed(manifest, num_shards, committed, required):
            publish_job(store, epoch)
            if written is not None:
                store.clean(closing=True)
            return
        left = {shard: cause for shard, cause in failed.items() if shard not in committed}
        check_epoch(store, epoch)  # a newer job may have removed entries before they were listed
        check_complete(num_shards, committed, left)
        if written is None:
            _keep_edited(manifest)
        _remove_success(manifest)
        if committed != written:
            entries = manifest.entries(committed)
            check_epoch(store, epoch)
            check_complete(num_shards, {entry.shard for entry in entries}, left)
            try:
                files.update(render(entries, left))
            except (JobError, OSError):
                check_epoch(store, epoch)  # a newer job may have removed files while they were read
                raise
            written = committed
        _write(manifest, entries, files, left)
    raise JobError(f"{store.uri}: other jobs keep closing it with other content", "run the same command again")


def is_closed(manifest: Manifest, num_shards: int, committed: Collection[int], required: Collection[str] = ()) -> bool:
    """Whether `_SUCCESS` is of this epoch and matches the committed shards and the other closing files.

    `required`: files that must exist with a `_SUCCESS` of an older version, which does not name them.
    """
    closing = read_success(manifest.store)
    if closing is None or closing["epoch"] != manifest.epoch:
        return False
    failed = set(range(num_shards)) - set(committed)
    if closing["failed_shards"] != failed or closing["shards"] not in (None, num_shards - len(failed)):
        return False
    hashes = closing["files"]
    if hashes is None:
        return all(map(manifest.store.exists, required))
    return all(_hash(manifest.store, path) == sha256 for path, sha256 in hashes.items())


def reopen(manifest: Manifest, added: int | None = None) -> None:
    """Remove `_SUCCESS` if shards are to be added, or if shard `added` is one that it counts as failed.

    It stays if it is of this epoch and no shard is missing.
    """
    closing = read_success(manifest.store)
    if added is not None and (closing is None or added not in closing["failed_shards"]):
        return
    if closing is None or closing["epoch"] != manifest.epoch or closing["failed_shards"]:
        _remove_success(manifest)


def _remove_success(manifest: Manifest) -> None:
    """Remove `_SUCCESS`, if there is one. OutputError if it belongs to a job that has taken over the store."""
    closing = read_success(manifest.store)
    if closing and closing["epoch"] > manifest.epoch:
        raise taken(manifest.store)
    if closing or manifest.store.exists(layout.SUCCESS):
        manifest.store.remove(layout.SUCCESS)


def _keep_edited(manifest: Manifest) -> None:
    """Keep copies of closing files that differ from their hash in `_SUCCESS`, such as a card edited by hand."""
    closing = read_success(manifest.store)
    if closing is None or closing["epoch"] != manifest.epoch:
        return
    for path, sha256 in (closing["files"] or {}).items():
        if path in layout.CLOSING_FILES and _hash(manifest.store, path) != sha256:
            keep(manifest.store, path)


def sweep(manifest: Manifest, entries: Sequence[ManifestEntry]) -> None:
    """Remove files that can never belong to the dataset: files of dead epochs, and files of committed shards that no
    entry names. Their writers died before removing them, and readers' glob patterns would match them.
    """
    store, epoch = manifest.store, manifest.epoch
    paths = store.list_files()
    remove_older(store, paths, epoch)
    firsts = [entry.first_index for entry in entries]
    by_shard = {entry.shard: entry for entry in entries}
    damaged = {entry.shard for entry in entries if any(layout.is_named_by_content(f.path) for f in entry.files)}
    named = {file.path for shard in damaged for file in by_shard[shard].files}

    def entry_of(path: str) -> ManifestEntry | None:
        shard, index = layout.data_shard(path), layout.data_index(path)
        if index is None:
            return None if shard is None else by_shard.get(shard)
        at = bisect_right(firsts, index) - 1
        return entries[at] if at >= 0 and index <= entries[at].last_index else None

    for path in paths:
        entry = entry_of(path)
        if entry is None or layout.epoch_of(path) != epoch or path in named:
            continue
        if entry.shard in damaged or layout.is_named_by_content(path):
            store.remove(path)


def _write(
    manifest: Manifest, entries: Sequence[ManifestEntry], files: Mapping[str, bytes], failed: Mapping[int, str]
) -> None:
    store, epoch = manifest.store, manifest.epoch
    sweep(manifest, entries)
    publish_job(store, epoch)
    for path in layout.CLOSING_FILES:
        check_epoch(store, epoch)
        if path in files:
            put_anew(store, epoch, path, files[path])
        elif epoch:  # may be left from an older epoch
            store.remove(path)
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    totals = replace(add_up(entries, failed), epoch=epoch, files=hashes)
    check_epoch(store, epoch)
    store.put_once(layout.SUCCESS, totals.to_json())


def _withdraw(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Remove files that this job put after another job had taken over the store and cleaned it."""
    store, closing = manifest.store, read_success(manifest.store)
    if closing and closing["epoch"] == manifest.epoch:
        store.remove(layout.SUCCESS)
    theirs = (closing and closing["files"]) or {}
    for path, data in files.items():
        sha256 = hashlib.sha256(data).hexdigest()
        if theirs.get(path) != sha256 and _hash(store, path) == sha256:
            store.remove(path)


def put_anew(store: Store, epoch: int, path: str, data: bytes) -> None:
    """Put a closing file in place of an older one. OutputError if another job has taken over the store."""
    if store.put_once(path, data).sha256 != hashlib.sha256(data).hexdigest():
        check_epoch(store, epoch)
        store.remove(path)
        store.put_once(path, data)


def _hash(store: Store, path: str) -> str | None:
    try:
        return hashlib.sha256(store.read(path)).hexdigest()
    except FileNotFoundError:
        return None
