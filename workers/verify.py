"""Whether a dataset is what its manifest says: every file with its size and hash, every index once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tandem.errors import JobError, OutputError
from workers import layout
from workers.entry import ManifestEntry
from workers.job_record import read_job
from workers.manifest import READS_AT_ONCE, Manifest
from workers.shard_reader import read_rows
from workers.shards import ShardPlan
from workers.store import Store


@dataclass
class Verdict:
    """What was found. `problems` has a line for each thing that is wrong."""

    shards: int
    rows: int = 0
    files: int = 0
    size_bytes: int = 0
    complete: bool = False
    failed: list[int] = field(default_factory=list)  # shards that could not be made and that the job left out
    uncommitted: int = 0  # files of shards that no manifest entry names: left by a killed run, or being written
    problems: list[str] = field(default_factory=list)


def plan_of(store: Store) -> ShardPlan:
    """How the dataset of a place is cut. OutputError where there is none."""
    try:
        identity: dict[str, Any] = read_job(store)["identity"]
        return ShardPlan(int(identity["rows"]), int(identity["shard_size"]))
    except FileNotFoundError:
        raise OutputError(f"{store.uri} holds no dataset: job.json is missing") from None
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(f"job.json in {store.uri} does not say how the dataset is cut: {error!r}") from None


def verify(store: Store, progress: Callable[[int], None] = lambda rows: None) -> Verdict:
    """Read every committed file once and compare. `progress` is called with the rows of each shard."""
    plan, manifest = plan_of(store), Manifest(store)
    verdict = Verdict(shards=plan.num_shards)
    committed = manifest.committed()
    if surplus := sorted(shard for shard in committed if shard >= plan.num_shards):
        verdict.problems.append(f"manifest names shards {surplus[:12]} of {plan.num_shards}")
    verdict.complete = store.exists(layout.SUCCESS)
    closing = json.loads(store.read(layout.SUCCESS)) if verdict.complete else {}
    verdict.failed = sorted(map(int, closing.get("failed_shards", {})))
    if both := sorted(committed & set(verdict.failed)):
        verdict.problems.append(f"_SUCCESS counts shards {both[:12]} as failed, which are there: run the job again")
    if missing := sorted(set(range(plan.num_shards)) - committed - set(verdict.failed)):
        verdict.problems.append(f"{len(missing)} of {plan.num_shards} shards are missing, such as {missing[:12]}")
    known: set[str] = set()
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        for entry, problems in pool.map(lambda shard: examine(store, manifest, plan, shard), sorted(committed)):
            verdict.problems += problems
            if entry is not None:
                known.update(file.path for file in entry.files)
                verdict.rows += entry.rows
                verdict.files += len(entry.files)
                verdict.size_bytes += entry.size_bytes
                progress(entry.rows)
    data = [p for p in store.list_files() if layout.is_ours(p) and p.split("/")[0] in ("shards", "images", "rows")]
    verdict.uncommitted = len(set(data) - known - {layout.IMAGE_TABLE})
    if verdict.complete == bool(missing):
        verdict.problems.append("_SUCCESS is there too early" if missing else "_SUCCESS is missing")
    return verdict


def examine(store: Store, manifest: Manifest, plan: ShardPlan, shard: int) -> tuple[ManifestEntry | None, list[str]]:
    """One shard's entry and what is wrong with its files."""
    try:
        entry = manifest.entry(shard)
    except JobError as error:
        return None, [str(error)]
    if entry is None:
        return None, []
    problems, indices = [], []
    for file in entry.files:
        try:
            data = store.read(file.path)
        except FileNotFoundError:
            problems.append(f"{file.path}: missing")
            continue
        if len(data) != file.size_bytes:
            problems.append(f"{file.path}: expected {file.size_bytes} bytes, found {len(data)}")
        elif (found := hashlib.sha256(data).hexdigest()) != file.sha256:
            problems.append(f"{file.path}: expected sha256 {file.sha256}, found {found}")
        else:
            indices += [index for index, _ in read_rows(file.path, data)]
    if not problems:
        problems += wrong_indices(entry, indices, list(plan.indices(shard)))
    return entry, problems


def wrong_indices(entry: ManifestEntry, found: list[int], expected: list[int]) -> Iterator[str]:
    if sorted(found) != expected:
        surplus, lost = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
        twice = len(found) - len(set(found))
        yield f"shard {entry.shard}: indices lost {lost[:5]}, surplus {surplus[:5]}, twice {twice}"
    if (entry.rows, sum(entry.labels.values())) != (len(expected), len(expected)):
        yield f"shard {entry.shard}: expected {len(expected)} rows, the entry says {entry.rows}"
