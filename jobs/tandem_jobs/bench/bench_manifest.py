"""`tandem bench manifest`: the cost of many shards without their data: commit, list, add up."""

from __future__ import annotations

import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt
from rich.console import Console
from rich.table import Table

from tandem.errors import InputError
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.progress import RunProgress, say
from tandem_workers.dataset.manifest import READS_AT_ONCE, Manifest
from tandem_workers.dataset.shards import ShardPlan, ShardRows
from tandem_workers.storage import layout
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Store, Stored

EXAMPLES = """examples:
  tandem bench manifest --shards 10000                            a local folder
  tandem bench manifest --shards 10000 --out s3://bucket/bench    S3

Commits shards without data, through the same code as a job, then lists them like a job at its start and adds them up
like a job at its end. Its files are removed."""


class BenchManifestSpec(Spec):
    """Measure the manifest of many shards: seconds to commit, to list and to add up."""

    out: str | None = Field(None, description="s3://bucket/prefix or a folder; default: a temporary folder")
    shards: PositiveInt = Field(10_000, description="shards of the dataset")
    shard_size: PositiveInt = Field(1024, description="images per shard")
    labels: PositiveInt = Field(1000, description="classes counted in each entry, at most --shard-size")


def run(spec: BenchManifestSpec) -> dict[str, Any]:
    """Measure and report; the last line on stdout is one JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(spec.out or folder)
        store.check()
        if store.list_files():
            raise InputError(f"--out: expected an empty place, found files in {store.uri}")
        try:
            result = measure(spec, store)
        finally:
            say(f"removing what was written to {store.uri}")
            with ThreadPoolExecutor(READS_AT_ONCE) as pool:
                list(pool.map(store.remove, store.list_files()))
    table = Table("", "seconds", "shards a second", title=f"{spec.shards} shards in {store.uri}")
    for name in ("commit", "list", "add_up"):
        table.add_row(name.replace("_", " "), f"{result[f'{name}_s']:.2f}", f"{result[f'{name}_per_s']:,.0f}")
    Console(stderr=True).print(table)
    print(json.dumps(result), flush=True)
    return result


def measure(spec: BenchManifestSpec, store: Store) -> dict[str, Any]:
    plan, manifest = ShardPlan(spec.shards * spec.shard_size, spec.shard_size), Manifest(store, 0)
    result: dict[str, Any] = {"shards": spec.shards, "readers_and_writers": READS_AT_ONCE}

    def note(name: str, began: float) -> None:
        seconds = time.perf_counter() - began
        result[f"{name}_s"] = round(seconds, 3)
        result[f"{name}_per_s"] = round(spec.shards / seconds, 1)

    def commit(shard: int) -> None:
        index = np.arange(plan.indices(shard).start, plan.indices(shard).stop)
        rows = ShardRows(shard=shard, index=index, label=(index % spec.labels).astype(np.int32))
        file = Stored(layout.shard_path(shard, "tar"), 0, "0" * 64)
        entry = manifest.commit_shard(shard, [file], rows, {"draft": 1.0, "refine": 1.0, "decode": 1.0, "store": 1.0})
        result["entry_bytes"] = len(entry.to_json())

    began = time.perf_counter()
    with RunProgress(plan.num_rows) as progress, ThreadPoolExecutor(READS_AT_ONCE) as pool:
        for _ in pool.map(commit, range(spec.shards)):
            progress.add(spec.shard_size)
    note("commit", began)
    began = time.perf_counter()
    assert len(manifest.committed()) == spec.shards
    note("list", began)
    began = time.perf_counter()
    assert manifest.totals().shards == spec.shards
    note("add_up", began)
    return result
