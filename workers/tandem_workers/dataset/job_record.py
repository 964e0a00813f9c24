"""Records of the jobs that own a store. The first job has epoch 0 and `job.json`; each job that replaces another
(`--overwrite`) has the next epoch: 1 with `overwrites/00001.json`, and so on.

Epochs have no gaps and their records are put once and never removed, so the highest is found by probing them in order,
without a listing, which may lag. All files of an epoch have its number in their names, so a writer of a dead epoch
cannot touch the current one.
"""

from __future__ import annotations

from typing import Any

from tandem.errors import OutputError
from tandem_workers.dataset.identity import Identity
from tandem_workers.dataset.seal import DamagedError, open_sealed
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

REPAIR = "'tandem verify --repair' sets it aside, and the same command makes what is missing"
KEYS = ("identity", "info", "epoch")


class NoJobError(OutputError):
    """A record that is not of a Tandem job, or is damaged."""


def read_job(store: Store) -> dict[str, Any]:
    """Identity, info and epoch of the job that owns a store. FileNotFoundError if no job has begun.

    A late write may have restored `job.json` of a replaced job, so its epoch is only the start of the search.
    """
    try:
        job = read_record(store, layout.JOB)
    except (FileNotFoundError, NoJobError):
        if not is_taken(store, 0):
            raise
        job = {"epoch": 0}
    epoch = find_epoch(store, job["epoch"])
    return job if epoch == job["epoch"] else read_record(store, layout.overwrite_path(epoch))


def read_identity(store: Store) -> Identity:
    """Identity of the job that a place belongs to. FileNotFoundError where no job has begun."""
    return Identity(read_job(store)["identity"])


def find_epoch(store: Store, start: int) -> int:
    """The highest epoch that has begun; the search begins at `start`."""
    epoch = start
    while is_taken(store, epoch):
        epoch += 1
    return epoch


def is_taken(store: Store, epoch: int) -> bool:
    """Whether another job has begun the next epoch."""
    return store.exists(layout.overwrite_path(epoch + 1))


def check_epoch(store: Store, epoch: int) -> None:
    """OutputError if another job has taken over the store since this epoch began."""
    if is_taken(store, epoch):
        raise taken(store)


def taken(store: Store) -> OutputError:
    """The error for a job whose store another has taken over."""
    return OutputError(
        f"{store.uri}: another job has taken this place (--overwrite)",
        hint="choose another --out, or leave it to that job",
    )


def publish_job(store: Store, epoch: int) -> None:
    """Rewrite `job.json`, which people read, if it is of an older epoch, perhaps after a late write."""
    if not epoch:
        return
    try:
        there = read_record(store, layout.JOB)["epoch"]
    except (FileNotFoundError, NoJobError):
        there = -1
    if there < epoch:
        store.replace(layout.JOB, store.read(layout.overwrite_path(epoch)))


def read_record(store: Store, path: str) -> dict[str, Any]:
    """One record, parsed. FileNotFoundError, or NoJobError."""
    try:
        return parse_record(store.read(path))
    except DamagedError as error:
        hint = f"choose another --out; of a damaged job: {REPAIR}"
        raise NoJobError(f"{path} in {store.uri} {error}", hint) from None


def parse_record(data: bytes) -> dict[str, Any]:
    """Identity, info and epoch from the bytes of a record. DamagedError."""
    job = {"epoch": 0, **open_sealed(data, KEYS)}
    if missing := [key for key in KEYS if key not in job]:
        raise DamagedError(f"is not a Tandem job: {missing[0]} is missing")
    if isinstance(job["identity"], dict) and isinstance(job["info"], dict) and is_count(job["epoch"]):
        return job
    raise DamagedError("is not a Tandem job: identity and info have to be objects, epoch a number")


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
