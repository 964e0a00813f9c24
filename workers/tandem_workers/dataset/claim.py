"""Claims a store for a job: a new store, one where the same job has begun, or another job's to overwrite.

`job.json` says which job a store belongs to: the same job resumes there, any other is refused. `--overwrite` begins a
new epoch (see `dataset.job_record`) and removes the files of older ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tandem.errors import OutputError
from tandem_workers.dataset.identity import CLASS_NAMES, DECODING, PREPARATION
from tandem_workers.dataset.job_record import is_taken, publish_job, read_job
from tandem_workers.dataset.manifest import MAX_NAMED, READS_AT_ONCE, Manifest
from tandem_workers.dataset.seal import seal
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

MAX_VALUE_CHARS = 60
RENAMED = (
    "its class names are those of its weights, or numbers (resume with --class-names numbers); choose another --out, "
    "or replace that job with --overwrite"
)
COMPILED = "it was made with --compile, which was removed, so it cannot be resumed; choose another --out"
OTHER = "choose another --out, or replace that job with --overwrite"


@dataclass(frozen=True)
class JobRecord:
    """A job that owns a store. `committed`: shards that need not be made again."""

    identity: dict[str, Any]
    info: dict[str, Any]
    committed: frozenset[int]
    epoch: int = 0

    @property
    def path(self) -> str:
        """Path of the job's record."""
        return layout.overwrite_path(self.epoch) if self.epoch else layout.JOB


def open_job(
    store: Store, identity: Mapping[str, Any], info: Mapping[str, Any] | None = None, overwrite: bool = False
) -> JobRecord:
    """Claim a store for a job, or find which shards the same job has committed there.

    Args:
        store: where the dataset is or will be.
        identity: everything that changes bytes, as JSON values. `job.json` keeps it and a later run has to match it.
        info: further information (versions, command, time). Kept from the first run, never compared.
        overwrite: begin a new epoch, whichever job owns the store, and remove files of older ones. Writers of
            that job stop; their late writes are ignored. Files that no job writes stay.

    Raises:
        OutputError: the store holds another job (the message lists the fields), other files, or a job.json that is
            not ours. Overwriting needs a readable job.json too.
    """
    store.clean()
    here = as_json(identity)
    content = {"identity": here, "info": dict(info or {})}
    if store.exists(layout.JOB) or is_taken(store, 0):
        if overwrite:
            _begin_epoch(store, content)
    else:
        foreign = store.list_files()
        if foreign and not store.exists(layout.JOB):  # checked again: another process may have begun
            raise OutputError(
                f"{store.uri} is not empty and holds no job (files: {len(foreign)}, such as {foreign[0]})",
                hint="choose another --out",
            )
        store.put_once(layout.JOB, seal(content))
    there = read_job(store)  # another process may have been first
    if differences := diff_identity(there["identity"], here):
        raise OutputError(
            f"{store.uri} holds another job. Fields that differ:\n" + render_differences(differences),
            hint=hint_for(differences),
        )
    epoch = there["epoch"]
    publish_job(store, epoch)
    return JobRecord(here, there["info"], Manifest(store, epoch).committed(), epoch)


def hint_for(differences: Sequence[tuple[str, Any, Any]]) -> str:
    """The remedy if the stored job differs from ours in these fields."""
    there = [(field, value) for field, value, _ in differences]
    if there == [(CLASS_NAMES, None)]:
        return RENAMED
    preparation = f"{DECODING}.{PREPARATION}"
    compiled = (f"{preparation}.compile", True), (preparation, {"compile": True})
    return COMPILED if any(one in there for one in compiled) else OTHER


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity after a round trip through JSON, to compare with `job.json`."""
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


def render_differences(differences: Sequence[tuple[str, Any, Any]]) -> str:
    lines = [f"  {name}: there {_short(there)}, here {_short(here)}" for name, there, here in differences]
    more = len(lines) - MAX_NAMED
    return "\n".join(lines[:MAX_NAMED] + ([f"  and {more} more"] if more > 0 else []))


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "…"


def remove_older(store: Store, paths: Iterable[str], epoch: int) -> None:
    """Remove the files of dead epochs, markers first. Safe at any time, as nothing reads their names again. An S3
    request takes some milliseconds, and there may be a million files, so several are removed at once.
    """
    older = [path for path in paths if (epoch_of_path := layout.epoch_of(path)) is not None and epoch_of_path < epoch]
    markers = {path for path in older if path.startswith(f"{layout.MANIFEST}/")}
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        for group in (sorted(markers), [path for path in older if path not in markers]):
            list(pool.map(store.remove, group))


def _begin_epoch(store: Store, content: Mapping[str, Any]) -> None:
    """Begin the next epoch, whichever job owns the store."""
    epoch = read_job(store)["epoch"] + 1
    while True:
        record = seal({**content, "epoch": epoch})
        stored = store.put_once(layout.overwrite_path(epoch), record)
        # it is also ours if the response was lost, or if the same command was started twice
        if stored.created or store.read(stored.path) == record:
            break
        epoch += 1
    publish_job(store, epoch)
    for path in (layout.SUCCESS, *layout.CLOSING_FILES):
        if is_taken(store, epoch):  # the file belongs to a job that has replaced this one
            return
        store.remove(path)
    remove_older(store, store.list_files(), epoch)
