"""Repairs a dataset: moves damaged files to `damaged/`, so that the same command makes them again."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from tandem_workers.dataset.aside import keep, set_aside
from tandem_workers.dataset.job_record import find_epoch, parse_record
from tandem_workers.dataset.seal import DamagedError, mend, seal
from tandem_workers.dataset.verify import Verdict
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store


@dataclass
class Repair:
    """The result of a repair. No data is lost: moved files are at `damaged/HASH/PATH`."""

    aside: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def repair(store: Store, verdict: Verdict) -> Repair:
    """Move damaged files away and remove those of dead epochs. No job may write to the store meanwhile.

    Files that no entry names are moved too, because they may be incomplete. `_SUCCESS` is moved first, and entries
    before their files, so that an interrupted repair leaves an incomplete dataset, never one that seems complete.
    `heal_job` repairs the records of the job.
    """
    done = Repair()
    aside = {path for problem in verdict.problems for path in problem.aside if not layout.is_record(path)}
    if any(path.startswith(layout.MANIFEST) or path in layout.CLOSING_FILES for path in aside):
        aside.add(layout.SUCCESS)
    if verdict.problems:
        aside.update(verdict.uncommitted)
    order = {layout.SUCCESS: 0, layout.MANIFEST: 1}
    for path in sorted(aside, key=lambda path: (order.get(path.split("/")[0], 2), path)):
        if set_aside(store, path):
            done.aside.append(path)
    for path in (path for problem in verdict.problems for path in problem.leftovers):
        store.remove(path)
        done.removed.append(path)
    return done


def heal_job(store: Store) -> list[str]:
    """Restore `job.json` and the record of the epoch if they are damaged or lost: from each other, or from their own
    hash if one byte has changed. Otherwise write a placeholder, which `--overwrite` can replace.

    Returns a line for each replaced file.
    """
    epoch = find_epoch(store, 0)
    sources = [*([layout.overwrite_path(epoch)] if epoch else []), layout.JOB]
    found = [record for path in sources if (record := _find_record(store, path)) and record.epoch >= epoch]
    if found:
        best = max(found, key=lambda record: (record.epoch, record.is_whole))
    elif epochs := [of for path in store.list_files(layout.MANIFEST) if (of := layout.epoch_of(path)) is not None]:
        epoch, action = max(epoch, *epochs), "beyond repair: the same command with --overwrite makes everything again"
        best = _Record(epoch, True, seal({"identity": {}, "info": {"damaged": True}, "epoch": epoch}), action)
    else:
        return []  # perhaps not a dataset of ours
    lines = []
    for path in [layout.JOB, *([layout.overwrite_path(best.epoch)] if best.epoch else [])]:
        if not store.exists(path) or store.read(path) != best.data:
            keep(store, path)  # a copy, not a move, which could be interrupted and leave no record
            store.replace(path, best.data)
            lines.append(f"{path}: {best.action}")
    return lines


@dataclass(frozen=True)
class _Record:
    epoch: int
    is_whole: bool
    data: bytes
    action: str


def _find_record(store: Store, path: str) -> _Record | None:
    """A record as stored, or restored by its hash."""
    try:
        data = store.read(path)
        with suppress(DamagedError):
            return _Record(parse_record(data)["epoch"], True, data, f"replaced by {path}")
        if mended := mend(data):
            return _Record(parse_record(mended)["epoch"], False, mended, "mended by its own hash")
        return None
    except (FileNotFoundError, DamagedError):
        return None
