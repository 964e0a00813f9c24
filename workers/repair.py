"""Healing a dataset: what is damaged is moved to `damaged/`, so that the same command makes it again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from workers import layout
from workers.job_record import NoJobError, find_epoch, read_record
from workers.manifest import Manifest
from workers.seal import mend, open_sealed, seal
from workers.store import Store
from workers.verify import Problem

DAMAGED = "damaged"


@dataclass
class Repair:
    """What was done. Nothing is lost: files that were moved are `damaged/HASH/PATH`."""

    aside: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def repair(store: Store, problems: Sequence[Problem]) -> Repair:
    """Move damaged files out of the way and remove those of dead epochs. No job may write to the place meanwhile.
    Records of the job are left to `heal_job`.

    `_SUCCESS` goes first, entries before their files: cut short, it leaves a dataset that is incomplete, not one that
    seems complete.
    """
    done = Repair()
    aside = {path for problem in problems for path in problem.aside if not layout.is_record(path)}
    if aside or any(problem.leftovers for problem in problems):
        aside.add(layout.SUCCESS)
    order = {layout.SUCCESS: 0, layout.MANIFEST: 1}
    for path in sorted(aside, key=lambda path: (order.get(path.split("/")[0], 2), path)):
        if set_aside(store, path):
            done.aside.append(path)
    for path in (path for problem in problems for path in problem.leftovers):
        store.remove(path)
        done.removed.append(path)
    return done


def set_aside(store: Store, path: str) -> bool:
    """Move a file to `damaged/`, under the first digits of its hash. Whether there was one."""
    try:
        data = store.read(path)
    except FileNotFoundError:
        return False
    store.put_once(f"{DAMAGED}/{hashlib.sha256(data).hexdigest()[:8]}/{path}", data)
    store.remove(path)
    return True


def heal_job(store: Store) -> list[str]:
    """Mend `job.json` and the record of the epoch, where they are damaged: by each other, or by their own hash where
    one byte has changed. Otherwise a placeholder takes their place, which `--overwrite` can replace.

    Returns a line for each file that was replaced.
    """
    epoch = find_epoch(store, 0)
    paths = [layout.JOB, *([layout.overwrite_path(epoch)] if epoch else [])]
    damaged = [path for path in paths if not _is_of(store, path, epoch)]
    if not damaged or not (epoch or store.exists(layout.JOB)):
        return []
    how, record = "mended by its own hash", None
    if whole := [path for path in paths if path not in damaged]:
        how, record = f"replaced by {whole[0]}", store.read(whole[0])
    for path in damaged:
        if record is None and store.exists(path) and (mended := mend(store.read(path))):
            record = mended if open_sealed(mended, ()).get("epoch", 0) == epoch else None
    if record is None:
        if not Manifest(store, epoch).committed():
            return []  # maybe no place of ours
        how = "beyond repair: the same command with --overwrite makes everything again"
        record = seal({"identity": {}, "info": {"damaged": True}, "epoch": epoch})
    for path in damaged:
        set_aside(store, path)
        store.replace(path, record)
    return [f"{path}: {how}" for path in damaged]


def _is_of(store: Store, path: str, epoch: int) -> bool:
    try:
        return bool(read_record(store, path)["epoch"] == epoch)
    except (FileNotFoundError, NoJobError):
        return False
