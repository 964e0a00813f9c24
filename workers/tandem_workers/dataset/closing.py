"""Closing a dataset: card, contact sheet and `_SUCCESS`, by whoever finds every shard committed.

Several jobs may close at once, know of different shards, or have lost the place to another job. Any write can arrive
late, and only the put of a new name can be conditional. So a job that closes reads back after its own writes, until it
finds what it would write; committed shards only grow in number, so that all jobs agree in the end. `_SUCCESS` is put,
or removed and put, and never replaced: a late put changes nothing if the file exists.
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

LOOKS = 20  # of jobs that close at once, each undone by another
Render = Callable[[Sequence[ManifestEntry], Mapping[int, str]], Mapping[str, bytes]]


def no_files(*_: object) -> dict[str, bytes]:
    """For a dataset without files other than `_SUCCESS`."""
    return {}


def close_dataset(
    manifest: Manifest,
    num_shards: int,
    failed: Mapping[int, str] | None = None,
    render: Render = no_files,
    beside: Collection[str] = (),
) -> None:
    """Write the closing files of a dataset unless they exist. Any number of jobs may do it, any number of times.

    Args:
        manifest: of the job's own epoch.
        failed: shards that could not be made, and why; those that other jobs have made since are ignored.
        render: makes the other closing files from all entries and failed shards. Equal inputs give equal bytes.
        beside: see `is_closed`.

    Raises:
        JobError: shards are missing.
        OutputError: another job has taken the place.
    """
    files: dict[str, bytes] = {}
    try:
        _close(manifest, num_shards, dict(failed or {}), render, beside, files)
    except OutputError:
        if is_taken(manifest.store, manifest.epoch):
            _withdraw(manifest, files)
        raise


def _close(
    manifest: Manifest,
    num_shards: int,
    failed: Mapping[int, str],
    render: Render,
    beside: Collection[str],
    files: dict[str, bytes],
) -> None:
    """`close_dataset`; also fills `files` with the closing files that may have been put."""
    store, epoch = manifest.store, manifest.epoch
    written: frozenset[int] | None = None
    for _ in range(LOOKS):
        check_epoch(store, epoch)
        committed = manifest.committed(range(num_shards), failed)
        if is_closed(manifest, num_shards, committed, beside):
            publish_job(store, epoch)
            if written is not None:
                store.clean(closing=True)
            return
        left = {shard: cause for shard, cause in failed.items() if shard not in committed}
        check_epoch(store, epoch)  # whose entries may have been removed before they were listed
        check_complete(num_shards, committed, left)
        if written is None:
            _keep_changed(manifest)
        _take_back(manifest)
        if committed != written:
            entries = manifest.entries(committed)
            check_epoch(store, epoch)
            check_complete(num_shards, {entry.shard for entry in entries}, left)
            try:
                files.update(render(entries, left))
            except (JobError, OSError):
                check_epoch(store, epoch)  # whose files may have been removed while they were read
                raise
            written = committed
        _write(manifest, entries, files, left)
    raise JobError(f"{store.uri}: other jobs close it as well and do not agree", "run the same command again")


def is_closed(manifest: Manifest, num_shards: int, committed: Collection[int], beside: Collection[str] = ()) -> bool:
    """Whether `_SUCCESS` is of this epoch, speaks of the shards that are there, and the files beside it are right.

    `beside`: what has to stand beside a `_SUCCESS` of an older version, which does not name it.
    """
    closing = read_success(manifest.store)
    if closing is None or closing["epoch"] != manifest.epoch:
        return False
    failed = set(range(num_shards)) - set(committed)
    if closing["failed_shards"] != failed or closing["shards"] not in (None, num_shards - len(failed)):
        return False
    hashes = closing["files"]
    if hashes is None:
        return all(map(manifest.store.exists, beside))
    return all(_hash(manifest.store, path) == sha256 for path, sha256 in hashes.items())


def reopen(manifest: Manifest, added: int | None = None) -> None:
    """Take `_SUCCESS` back where shards are to be added, or one was added that it counts as failed.

    It stays if it says of this epoch that none is missing.
    """
    closing = read_success(manifest.store)
    if added is not None and (closing is None or added not in closing["failed_shards"]):
        return
    if closing is None or closing["epoch"] != manifest.epoch or closing["failed_shards"]:
        _take_back(manifest)


def _take_back(manifest: Manifest) -> None:
    """Remove `_SUCCESS`, if there is one. OutputError where it is that of a job that has taken the place."""
    closing = read_success(manifest.store)
    if closing and closing["epoch"] > manifest.epoch:
        raise taken(manifest.store)
    if closing or manifest.store.exists(layout.SUCCESS):
        manifest.store.remove(layout.SUCCESS)


def _keep_changed(manifest: Manifest) -> None:
    """Copy closing files that differ from their hash in `_SUCCESS` before they are rewritten, such as a card that was
    edited by hand."""
    closing = read_success(manifest.store)
    if closing is None or closing["epoch"] != manifest.epoch:
        return
    for path, sha256 in (closing["files"] or {}).items():
        if path in layout.BESIDE_SUCCESS and _hash(manifest.store, path) != sha256:
            keep(manifest.store, path)


def sweep(manifest: Manifest, entries: Sequence[ManifestEntry]) -> None:
    """Remove files that can never belong to the dataset: those of dead epochs, and those of committed shards that the
    entries do not name. Their writers died before removing them, and readers' glob patterns would match them.
    """
    store, epoch = manifest.store, manifest.epoch
    paths = store.list_files()
    remove_older(store, paths, epoch)
    firsts = [entry.first_index for entry in entries]
    by_shard = {entry.shard: entry for entry in entries}
    met_damage = {entry.shard for entry in entries if any(layout.is_named_by_content(f.path) for f in entry.files)}
    named = {file.path for shard in met_damage for file in by_shard[shard].files}

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
        if entry.shard in met_damage or layout.is_named_by_content(path):
            store.remove(path)


def _write(
    manifest: Manifest, entries: Sequence[ManifestEntry], files: Mapping[str, bytes], failed: Mapping[int, str]
) -> None:
    store, epoch = manifest.store, manifest.epoch
    sweep(manifest, entries)
    publish_job(store, epoch)
    for path in layout.BESIDE_SUCCESS:
        check_epoch(store, epoch)
        if path in files:
            _put_anew(store, epoch, path, files[path])
        elif epoch:  # of an older epoch
            store.remove(path)
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    totals = replace(add_up(entries, failed), epoch=epoch, files=hashes)
    check_epoch(store, epoch)
    store.put_once(layout.SUCCESS, totals.to_json())


def _withdraw(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Remove files that a job put after another job had taken the place and cleaned it."""
    store, closing = manifest.store, read_success(manifest.store)
    if closing and closing["epoch"] == manifest.epoch:
        store.remove(layout.SUCCESS)
    theirs = (closing and closing["files"]) or {}
    for path, data in files.items():
        sha256 = hashlib.sha256(data).hexdigest()
        if theirs.get(path) != sha256 and _hash(store, path) == sha256:
            store.remove(path)


def _put_anew(store: Store, epoch: int, path: str, data: bytes) -> None:
    if store.put_once(path, data).sha256 != hashlib.sha256(data).hexdigest():
        check_epoch(store, epoch)
        store.remove(path)
        store.put_once(path, data)


def _hash(store: Store, path: str) -> str | None:
    try:
        return hashlib.sha256(store.read(path)).hexdigest()
    except FileNotFoundError:
        return None
