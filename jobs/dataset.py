"""`tandem ls` lists the files of a dataset; `tandem verify` reads all of them and compares with the manifest."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field, PositiveInt
from rich.console import Console
from rich.table import Table

from jobs.flags import POSITIONAL
from jobs.progress import RunProgress, say
from jobs.spec import Spec
from tandem.errors import JobError
from workers.manifest import Manifest
from workers.store import open_store
from workers.verify import plan_of, verify

EXAMPLES = """examples:
  tandem ls out
  tandem ls s3://bucket/dataset --json-lines
  tandem ls s3://bucket/dataset --presign 3600 > urls.txt
  tandem verify s3://bucket/dataset

ls prints a line a committed file: path, bytes, sha256; with --presign the addresses alone, for whoever has no keys.
verify reads everything. Exit code 0: the dataset is complete, every file has the size and hash of its manifest entry,
every index is there once. Exit code 1: not so, and every problem has a line."""
MAX_SHOWN = 50


class LsSpec(Spec):
    """List the committed files of a dataset, or addresses by which anyone can fetch them."""

    out: Annotated[str, POSITIONAL] = Field(description="folder or s3://bucket/prefix of the dataset")
    json_lines: bool = Field(False, description="one JSON object a line")
    presign: PositiveInt | None = Field(None, le=604_800, description="seconds for which the addresses work (S3)")


class VerifySpec(Spec):
    """Read a whole dataset and compare it with its manifest: sizes, hashes, every index once."""

    out: Annotated[str, POSITIONAL] = Field(description="folder or s3://bucket/prefix of the dataset")


def run_ls(spec: LsSpec) -> None:
    """Files on stdout, a closing line on stderr."""
    store = open_store(spec.out)
    plan = plan_of(store)
    entries = Manifest(store).entries()
    for entry in entries:
        for file in entry.files:
            if spec.presign:
                print(store.presign(file.path, spec.presign))
            elif spec.json_lines:
                row = {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
                print(json.dumps(row | {"shard": entry.shard}))
            else:
                print(f"{file.path}  {file.size_bytes:>12}  {file.sha256}")
    rows, size = sum(e.rows for e in entries), sum(e.size_bytes for e in entries)
    say(f"{len(entries)} of {plan.num_shards} shards, {rows} of {plan.num_rows} images, {size / 1e6:.1f} MB")


def run_verify(spec: VerifySpec) -> dict[str, Any]:
    """A table on stderr, one JSON line on stdout. JobError if anything is wrong."""
    store = open_store(spec.out)
    with RunProgress(plan_of(store).num_rows) as progress:
        verdict = verify(store, progress.add)
    for problem in verdict.problems[:MAX_SHOWN]:
        say(problem)
    table = Table(
        "shards", "images", "files", "MB", "failed shards", "uncommitted files", "_SUCCESS", "problems", title=store.uri
    )
    table.add_row(
        str(verdict.shards),
        str(verdict.rows),
        str(verdict.files),
        f"{verdict.size_bytes / 1e6:.1f}",
        str(len(verdict.failed)),
        str(verdict.uncommitted),
        "yes" if verdict.complete else "no",
        str(len(verdict.problems)),
    )
    Console(stderr=True).print(table)
    result = asdict(verdict)
    print(json.dumps(result), flush=True)
    if verdict.problems:
        raise JobError(f"{store.uri}: {len(verdict.problems)} problems, the first: {verdict.problems[0]}")
    return result


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv[1:1] = ["verify"]
    sys.exit(main())
