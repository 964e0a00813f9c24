"""Verifies a dataset against its records: size and hash of every file, every row once, every sum."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tandem.errors import JobError, OutputError
from tandem.user_files import shown
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.job_record import NoJobError, read_identity, read_record
from tandem_workers.dataset.manifest import READS_AT_ONCE, Manifest
from tandem_workers.dataset.seal import DamagedError, is_sealed
from tandem_workers.dataset.shard_reader import read_checked, read_rows
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.dataset.success_file import parse_success
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

MAX_NAMED = 12  # shards or files in a message
SAME_COMMAND = "run the same command again"
REPAIR = "tandem verify --repair, then the same command"
START_OVER = "run the same command with --overwrite, which makes everything again"


@dataclass(frozen=True)
class Problem:
    """One problem and its remedy. A repair moves the files `aside` to `damaged/`, and removes the `leftovers`, which
    belong to no dataset."""

    text: str
    remedy: str = REPAIR
    aside: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()

    @property
    def is_healed(self) -> bool:
        """Whether a repair and the same command fix it."""
        return self.remedy in (SAME_COMMAND, REPAIR)

    def __str__(self) -> str:
        return f"{self.text} (to heal it: {self.remedy})"


@dataclass
class Verdict:
    """The findings of a verification."""

    shards: int = 0
    rows: int = 0
    files: int = 0
    size_bytes: int = 0
    complete: bool = False
    failed: list[int] = field(default_factory=list)  # shards that could not be made and that the job left out
    uncommitted: list[str] = field(default_factory=list)  # files that no entry names: left by a killed run, or in work
    unsealed: int = 0  # records without a hash of their own, of older versions
    problems: list[Problem] = field(default_factory=list)


def plan_of(store: Store) -> ShardPlan:
    """The shard plan of a dataset. Raises OutputError if there is none, NoJobError if its record is damaged."""
    try:
        return ShardPlan.of(read_identity(store))
    except FileNotFoundError:
        hint = "if it was one: tandem verify --repair" if Manifest(store, 0).committed() else None
        raise OutputError(f"{store.uri} holds no dataset: job.json is missing", hint) from None
    except ValueError as error:
        raise NoJobError(
            f"job.json in {store.uri} does not say how the dataset is cut: {shown(error)}",
            START_OVER,
        ) from None


def verify(store: Store, progress: Callable[[int], None] = lambda rows: None) -> Verdict:
    """Read everything once and compare. `progress` is called with the rows of each shard."""
    verdict = Verdict()
    try:
        plan = plan_of(store)
    except NoJobError as error:
        remedy = (
            START_OVER
            if error.hint == START_OVER
            else f"{REPAIR}; or another place, if this holds no dataset of Tandem"
        )
        verdict.problems.append(Problem(str(error), remedy, aside=(layout.JOB,)))
        return verdict
    verdict.shards = plan.num_shards
    manifest = Manifest(store)
    check_records(manifest, verdict)
    committed = manifest.committed()
    labels: Counter[int] = Counter()
    known: dict[int, set[str]] = {}
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        found = pool.map(lambda shard: examine(manifest, plan, shard), sorted(committed))
        for entry, unsealed, problems in found:
            verdict.problems += problems
            verdict.unsealed += unsealed
            if entry is not None:
                labels.update(entry.labels)
                known[entry.shard] = {file.path for file in entry.files}
                verdict.rows += entry.rows
                verdict.size_bytes += entry.size_bytes
                progress(entry.rows)
    verdict.files = sum(map(len, known.values()))
    shards_intact = not verdict.problems
    closing = check_closing(manifest, verdict, plan, committed)
    all_known = shards_intact and len(known) + len(verdict.failed) == plan.num_shards
    if closing is not None and all_known:
        totals = {"epoch": manifest.epoch, "shards": len(known), "rows": verdict.rows, "size_bytes": verdict.size_bytes}
        wrong = wrong_totals(closing, totals, labels)
        verdict.problems += [Problem(text, aside=(layout.SUCCESS,)) for text in wrong]
    check_leftovers(manifest, verdict, plan, known)
    return verdict


def check_records(manifest: Manifest, verdict: Verdict) -> None:
    """Check that `job.json` and the record of the epoch are readable and agree."""
    store, epoch = manifest.store, manifest.epoch
    for path in [layout.JOB, *([layout.overwrite_path(epoch)] if epoch else [])]:
        try:
            verdict.unsealed += not is_sealed(store.read(path))
            if read_record(store, path)["epoch"] != epoch:
                verdict.problems.append(Problem(f"{path} is not that of epoch {epoch}", aside=(path,)))
        except FileNotFoundError:
            verdict.problems.append(Problem(f"{path} is missing", aside=(path,)))
        except NoJobError as error:
            verdict.problems.append(Problem(str(error), aside=(path,)))


def read_entry(manifest: Manifest, shard: int) -> tuple[ManifestEntry | None, bool, list[Problem]]:
    """The entry of a listed shard, whether it lacks a hash of its own, and problems of reading it."""
    path = manifest.path(shard)
    try:
        data = manifest.store.read(path)
        return manifest.parse(shard, data), not is_sealed(data), []
    except FileNotFoundError:
        text = f"{path}: listed, but missing when read: its shard is unchecked"
        return None, False, [Problem(text, leftovers=(path,))]
    except JobError as error:
        return None, False, [Problem(str(error), aside=(path,))]


def examine(manifest: Manifest, plan: ShardPlan, shard: int) -> tuple[ManifestEntry | None, bool, list[Problem]]:
    """`read_entry`, and also problems of the shard's files."""
    entry, unsealed, problems = read_entry(manifest, shard)
    if entry is None:
        return None, unsealed, problems
    path = manifest.path(shard)
    if shard >= plan.num_shards:
        return None, unsealed, [Problem(f"{path}: expected none of this number, of {plan.num_shards}", aside=(path,))]
    rows: list[tuple[int, int]] = []
    for file in entry.files:
        try:
            rows += read_rows(file.path, read_checked(manifest.store, file))
        except DamagedError as error:
            problems.append(Problem(f"{file.path}: {error}", aside=(path, file.path)))
        except OutputError:  # the store failed
            raise
        except Exception as error:  # damaged bytes make readers raise anything
            text = f"{file.path}: cannot be read: {type(error).__name__}: {error}"
            problems.append(Problem(text, aside=(path, file.path)))
    if not problems:
        everything = (path, *(file.path for file in entry.files))
        problems += [Problem(text, aside=everything) for text in wrong_rows(entry, rows, list(plan.indices(shard)))]
    return entry, unsealed, problems


def wrong_rows(entry: ManifestEntry, found: list[tuple[int, int]], expected: list[int]) -> Iterator[str]:
    """Errors in (index, label) of the rows in a shard's files, and in the counts of its entry."""
    indices = [index for index, _ in found]
    if sorted(indices) != expected:
        surplus, lost = sorted(set(indices) - set(expected)), sorted(set(expected) - set(indices))
        twice = len(indices) - len(set(indices))
        yield f"shard {entry.shard}: indices lost {lost[:5]}, surplus {surplus[:5]}, twice {twice}"
    if differs := difference(entry.labels, Counter(label for _, label in found)):
        yield f"shard {entry.shard}: label {differs[0]}: the entry counts {differs[1]}, its files hold {differs[2]}"
    recorded = (entry.rows, entry.first_index, entry.last_index, entry.size_bytes)
    found_sums = (len(expected), expected[0], expected[-1], sum(file.size_bytes for file in entry.files))
    if recorded != found_sums:
        sums = "rows, first and last index and bytes"
        yield f"shard {entry.shard}: {sums}: expected {found_sums}, the entry says {recorded}"


def difference(one: dict[int, int], other: dict[int, int]) -> tuple[int, int, int] | None:
    """The first label whose counts differ, and both counts; None if all are equal."""
    labels = sorted({*one, *other})
    return next(((n, one.get(n, 0), other.get(n, 0)) for n in labels if one.get(n, 0) != other.get(n, 0)), None)


def check_closing(
    manifest: Manifest, verdict: Verdict, plan: ShardPlan, committed: Collection[int]
) -> dict[str, Any] | None:
    """Compare `_SUCCESS` with the committed shards, and the closing files with its hashes. Returns its content."""
    store, closing, aside = manifest.store, None, (layout.SUCCESS,)
    try:
        data = store.read(layout.SUCCESS)
        verdict.complete = True
        verdict.unsealed += not is_sealed(data)
        closing = parse_success(data)
        verdict.failed = sorted(closing["failed_shards"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = str(error) if isinstance(error, DamagedError) else f"cannot be read: {error!r}"
        verdict.problems.append(Problem(f"_SUCCESS {text}", aside=aside))
    there = {shard for shard in {*committed, *verdict.failed} if 0 <= shard < plan.num_shards}
    if both := sorted(set(committed) & set(verdict.failed)):
        text = f"_SUCCESS counts shards {both[:MAX_NAMED]} as failed, which are committed"
        verdict.problems.append(Problem(text, SAME_COMMAND, aside=aside))
    if unknown := sorted(set(verdict.failed) - there):
        text = f"_SUCCESS counts shards {unknown[:MAX_NAMED]} as failed, of {plan.num_shards}"
        verdict.problems.append(Problem(text, aside=aside))
    if missing := plan.num_shards - len(there):
        named = list(islice((shard for shard in range(plan.num_shards) if shard not in there), MAX_NAMED))
        text = f"{missing} of {plan.num_shards} shards are missing, such as {named}"
        verdict.problems.append(Problem(text, SAME_COMMAND))
    if verdict.complete == bool(missing):
        text = "_SUCCESS was written too early" if missing else "_SUCCESS is missing"
        verdict.problems.append(Problem(text, SAME_COMMAND, aside=aside))
    for path, sha256 in ((closing and closing["files"]) or {}).items():
        if wrong := wrong_file(store, path, sha256):
            verdict.problems.append(Problem(wrong, aside=(path, *aside)))
    return closing


def wrong_totals(closing: dict[str, Any], expected: dict[str, int], labels: dict[int, int]) -> Iterator[str]:
    """Differences between `_SUCCESS` and the manifest entries."""
    for name, value in expected.items():
        if closing.get(name) not in (None, value):
            yield f"_SUCCESS: {name} is {closing[name]!r:.40}, by the manifest entries {value}"
    try:
        counted = {int(label): int(count) for label, count in closing.get("labels", labels).items()}
    except (ValueError, TypeError, AttributeError):
        yield "_SUCCESS does not count labels"
        return
    if differs := difference(counted, labels):
        yield f"_SUCCESS counts {differs[1]} images of label {differs[0]}, the manifest entries {differs[2]}"


def wrong_file(store: Store, path: str, sha256: str) -> str | None:
    """What is wrong with a file that `_SUCCESS` names; None if it is intact."""
    if path not in layout.CLOSING_FILES:
        return f"_SUCCESS names {path!r:.80}, which no dataset has"
    try:
        found = hashlib.sha256(store.read(path)).hexdigest()
    except FileNotFoundError:
        return f"{path}: missing"
    return None if found == sha256 else f"{path}: expected sha256 {sha256}, found {found}"


def check_leftovers(
    manifest: Manifest, verdict: Verdict, plan: ShardPlan, known: Mapping[int, Collection[str]]
) -> None:
    """Find files of dead epochs, and those that no entry names. `known`: files of each shard whose entry was read.

    Surplus files of a committed shard are a problem: readers' glob patterns would match them.
    """
    dead: list[str] = []
    later: list[str] = []
    surplus: list[str] = []
    for path in manifest.store.list_files():
        epoch, shard = layout.epoch_of(path), shard_of(path, plan)
        if epoch is not None and epoch != manifest.epoch:
            (dead if epoch < manifest.epoch else later).append(path)
        elif shard is not None and path not in known.get(shard, ()):
            verdict.uncommitted.append(path)
            if shard in known or shard >= plan.num_shards:
                surplus.append(path)
    if dead:
        text = f"{len(dead)} files are of an epoch before {manifest.epoch}, such as {dead[0]}"
        verdict.problems.append(Problem(text, leftovers=tuple(dead)))
    if later:
        text = f"{len(later)} files are of an epoch after {manifest.epoch} that has no record, such as {later[0]}"
        verdict.problems.append(Problem(text, "put the record back into overwrites/, or move them away"))
    if surplus:
        text = f"{len(surplus)} files have names of shards but are in no entry, such as {surplus[0]}"
        verdict.problems.append(Problem(text, aside=tuple(surplus)))


def shard_of(path: str, plan: ShardPlan) -> int | None:
    """The shard to which a data file belongs by its name, None for any other path."""
    shard, index = layout.data_shard(path), layout.data_index(path)
    return index // plan.shard_size if index is not None else shard
