"""Whether a dataset is what its records say: every file with its size and hash, every row once, every sum."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tandem.errors import JobError, OutputError
from workers import layout
from workers.closing import parse_closing
from workers.entry import ManifestEntry, add_up
from workers.job_record import NoJobError, read_job, read_record
from workers.manifest import READS_AT_ONCE, Manifest
from workers.seal import DamagedError, is_sealed
from workers.shard_reader import read_checked, read_rows
from workers.shards import ShardPlan
from workers.store import Store

MAX_NAMED = 12  # shards or files in a message
AGAIN = "run the same command again"
REPAIR = "tandem verify --repair, then the same command"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and how it is healed. A repair moves the files of `aside` out of the way, and removes
    the `leftovers`, which belong to no dataset."""

    text: str
    remedy: str = REPAIR
    aside: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.text} (to heal it: {self.remedy})"


@dataclass
class Verdict:
    """What was found."""

    shards: int = 0
    rows: int = 0
    files: int = 0
    size_bytes: int = 0
    complete: bool = False
    failed: list[int] = field(default_factory=list)  # shards that could not be made and that the job left out
    uncommitted: int = 0  # files of shards that no manifest entry names: left by a killed run, or being written
    unsealed: int = 0  # records without a hash of their own, of older versions
    problems: list[Problem] = field(default_factory=list)


def plan_of(store: Store) -> ShardPlan:
    """How the dataset of a place is cut. OutputError where there is none; NoJobError where its record is damaged."""
    try:
        return ShardPlan.of(read_job(store)["identity"])
    except FileNotFoundError:
        raise OutputError(f"{store.uri} holds no dataset: job.json is missing") from None
    except ValueError as error:
        raise NoJobError(
            f"job.json in {store.uri} does not say how the dataset is cut: {error}",
            "the same command with --overwrite, which makes everything again",
        ) from None


def verify(store: Store, progress: Callable[[int], None] = lambda rows: None) -> Verdict:
    """Read everything once and compare. `progress` is called with the rows of each shard."""
    verdict = Verdict()
    try:
        plan = plan_of(store)
    except NoJobError as error:
        verdict.problems.append(Problem(str(error), error.hint or REPAIR, aside=(layout.JOB,)))
        return verdict
    verdict.shards = plan.num_shards
    manifest = Manifest(store)
    check_records(manifest, verdict)
    committed = manifest.committed()
    entries, known = [], set()
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        found = pool.map(lambda shard: examine(manifest, plan, shard), sorted(committed))
        for shard, (entry, sealed, problems) in zip(sorted(committed), found, strict=True):
            verdict.problems += problems
            verdict.unsealed += not sealed
            if entry is not None and shard < plan.num_shards:
                entries.append(entry)
                known.update(file.path for file in entry.files)
                progress(entry.rows)
    verdict.rows = sum(entry.rows for entry in entries)
    verdict.size_bytes = sum(entry.size_bytes for entry in entries)
    verdict.files = len(known)
    sound = not verdict.problems
    missing = check_closing(manifest, verdict, plan, committed, entries)
    check_leftovers(manifest, verdict, known, whole=sound and not missing)
    return verdict


def check_records(manifest: Manifest, verdict: Verdict) -> None:
    """Whether `job.json`, and the record of the epoch, can be read and say the same."""
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


def examine(manifest: Manifest, plan: ShardPlan, shard: int) -> tuple[ManifestEntry | None, bool, list[Problem]]:
    """One shard's entry, whether it has a hash of its own, and what is wrong with it and its files."""
    store, path = manifest.store, manifest.path(shard)
    try:
        data = store.read(path)
        entry = manifest.parse(shard, data)
    except FileNotFoundError:
        text = f"{path}: listed, and cannot be read: its shard is unchecked"
        return None, True, [Problem(text, leftovers=(path,))]
    except JobError as error:
        return None, True, [Problem(str(error), aside=(path,))]
    if shard >= plan.num_shards:
        text = f"{path}: there are {plan.num_shards} shards"
        return entry, is_sealed(data), [Problem(text, aside=(path,))]
    problems: list[Problem] = []
    rows: list[tuple[int, int]] = []
    for file in entry.files:
        try:
            rows += read_rows(file.path, read_checked(store, file))
        except DamagedError as error:
            problems.append(Problem(f"{file.path}: {error}", aside=(path, file.path)))
        except OutputError:  # of the place
            raise
        except Exception as error:  # damaged bytes make readers raise anything
            text = f"{file.path}: cannot be read: {type(error).__name__}: {error}"
            problems.append(Problem(text, aside=(path, file.path)))
    if not problems:
        everything = (path, *(file.path for file in entry.files))
        problems += [Problem(text, aside=everything) for text in wrong_rows(entry, rows, list(plan.indices(shard)))]
    return entry, is_sealed(data), problems


def wrong_rows(entry: ManifestEntry, found: list[tuple[int, int]], expected: list[int]) -> Iterator[str]:
    """What is wrong with (index, label) of the rows in a shard's files, and with what its entry says of them."""
    indices = [index for index, _ in found]
    if sorted(indices) != expected:
        surplus, lost = sorted(set(indices) - set(expected)), sorted(set(expected) - set(indices))
        twice = len(indices) - len(set(indices))
        yield f"shard {entry.shard}: indices lost {lost[:5]}, surplus {surplus[:5]}, twice {twice}"
    if differs := difference(entry.labels, Counter(label for _, label in found)):
        yield f"shard {entry.shard}: label {differs[0]}: the entry counts {differs[1]}, its files hold {differs[2]}"
    said = (entry.rows, entry.first_index, entry.last_index, entry.size_bytes)
    holds = (len(expected), expected[0], expected[-1], sum(file.size_bytes for file in entry.files))
    if said != holds:
        yield f"shard {entry.shard}: rows, first and last index and bytes: expected {holds}, the entry says {said}"


def difference(one: dict[int, int], other: dict[int, int]) -> tuple[int, int, int] | None:
    """The first label of which there are not as many, and both counts."""
    labels = sorted({*one, *other})
    return next(((n, one.get(n, 0), other.get(n, 0)) for n in labels if one.get(n, 0) != other.get(n, 0)), None)


def check_closing(
    manifest: Manifest, verdict: Verdict, plan: ShardPlan, committed: Collection[int], entries: list[ManifestEntry]
) -> bool:
    """Compare `_SUCCESS` and what stands beside it with the shards. Whether shards are missing."""
    store, closing = manifest.store, None
    sound = not verdict.problems
    aside = (layout.SUCCESS,)
    try:
        data = store.read(layout.SUCCESS)
        verdict.complete = True
        verdict.unsealed += not is_sealed(data)
        closing = parse_closing(data)
        verdict.failed = sorted(closing["failed_shards"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = str(error) if isinstance(error, DamagedError) else f"cannot be read: {error!r}"
        verdict.problems.append(Problem(f"_SUCCESS {text}", aside=aside))
    there = {shard for shard in {*committed, *verdict.failed} if shard < plan.num_shards}
    if both := sorted(set(committed) & set(verdict.failed)):
        verdict.problems.append(Problem(f"_SUCCESS counts shards {both[:MAX_NAMED]} as failed, which are there", AGAIN))
    if missing := plan.num_shards - len(there):
        named = list(islice((shard for shard in range(plan.num_shards) if shard not in there), MAX_NAMED))
        text = f"{missing} of {plan.num_shards} shards are missing, such as {named}"
        verdict.problems.append(Problem(text, AGAIN))
    if verdict.complete == bool(missing):
        text = "_SUCCESS is there too early" if missing else "_SUCCESS is missing"
        verdict.problems.append(Problem(text, AGAIN))
    if closing is not None and sound and not missing and not both:
        verdict.problems += [Problem(text, aside=aside) for text in wrong_totals(manifest.epoch, closing, entries)]
    if closing is not None:
        for path, sha256 in (closing["files"] or {}).items():
            if text := wrong_file(store, path, sha256):
                verdict.problems.append(Problem(text, aside=(path, *aside)))
    return bool(missing)


def wrong_totals(epoch: int, closing: dict[str, Any], entries: list[ManifestEntry]) -> Iterator[str]:
    totals = add_up(entries)
    if closing["epoch"] != epoch:
        yield f"_SUCCESS is of epoch {closing['epoch']}, the dataset of epoch {epoch}"
    for name in ("shards", "rows", "size_bytes"):
        if closing.get(name) not in (None, getattr(totals, name)):
            yield f"_SUCCESS says {closing[name]!r} {name}, the manifest entries {getattr(totals, name)}"
    try:
        labels = {int(label): int(count) for label, count in (closing.get("labels") or totals.labels).items()}
    except (ValueError, TypeError, AttributeError):
        yield "_SUCCESS does not count labels"
        return
    if differs := difference(labels, totals.labels):
        yield f"_SUCCESS counts {differs[1]} images of label {differs[0]}, the manifest entries {differs[2]}"


def wrong_file(store: Store, path: str, sha256: str) -> str | None:
    """What is wrong with a file that stands beside `_SUCCESS`."""
    if path not in layout.BESIDE_SUCCESS:
        return f"_SUCCESS names {path!r:.80}, which no dataset has"
    try:
        found = hashlib.sha256(store.read(path)).hexdigest()
    except FileNotFoundError:
        return f"{path}: missing"
    return None if found == sha256 else f"{path}: expected sha256 {sha256}, found {found}"


def check_leftovers(manifest: Manifest, verdict: Verdict, known: Collection[str], whole: bool) -> None:
    """Find files that no entry names: of dead epochs, and in a whole dataset those that readers would take for its
    own."""
    files = [(path, layout.epoch_of(path)) for path in manifest.store.list_files()]
    if dead := tuple(path for path, epoch in files if epoch is not None and epoch != manifest.epoch):
        text = f"{len(dead)} files are of another epoch than {manifest.epoch}, such as {dead[0]}"
        verdict.problems.append(Problem(text, leftovers=dead))
    alive = [path for path, epoch in files if epoch == manifest.epoch and not path.startswith(layout.MANIFEST)]
    surplus = sorted(set(alive) - set(known))
    verdict.uncommitted = len(surplus)
    if surplus and whole:
        text = f"{len(surplus)} files have names of shards and no entry names them, such as {surplus[0]}"
        verdict.problems.append(Problem(text, aside=tuple(surplus)))
