"""`tandem ls` lists the files of a dataset; `tandem verify` reads all of them and compares them with the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from rich.console import Console
from rich.table import Table

from tandem.errors import InputError, JobError
from tandem_jobs.edits.edit_options import MovedOptions
from tandem_jobs.options.flags import POSITIONAL
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.progress import RunProgress, say
from tandem_jobs.run.shard_range import full_command
from tandem_workers.dataset.identity import EXPORT, Identity
from tandem_workers.dataset.job_record import NoJobError, read_identity, read_job
from tandem_workers.dataset.manifest import READS_AT_ONCE, Manifest
from tandem_workers.dataset.repair import heal_job, repair
from tandem_workers.dataset.verify import SAME_COMMAND, Problem, Verdict, plan_of, read_entry, verify
from tandem_workers.storage.layout import MAX_ROWS
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Store

EXAMPLES = """examples:
  tandem ls out
  tandem ls s3://bucket/dataset --json-lines
  tandem ls s3://bucket/dataset --presign 3600 > urls.txt
  tandem verify s3://bucket/dataset
  tandem verify s3://bucket/dataset --repair
  tandem verify s3://bucket/dataset --decode 100

ls prints one line per committed file: path, bytes, sha256; with --presign only addresses, for readers without keys.

verify reads everything. Exit code 0: the dataset is complete, every file has the size and hash of its manifest entry,
every row exists once, all sums are right. Exit code 1: there are problems, each with a line that says how to fix it.

verify --decode takes the ids that --keep-tokens kept through the VQVAE again, on the CPU, and compares the pixels: of
edits where they were drawn, with the picture's ids and its cells. A job in float32 gives the same bytes, others differ
by rounding, which lossy codecs amplify.

verify --repair moves damaged files to damaged/, so that nothing is lost, and removes files of jobs that --overwrite
replaced. The command that made the dataset then makes the missing shards again, with the same bytes. No job may write
to the dataset meanwhile. Exit code 0: everything is repaired, or that command does the rest."""
MAX_SHOWN = 50


class LsSpec(Spec):
    """List the committed files of a dataset, or presigned links to them."""

    out: Annotated[str, POSITIONAL] = Field(description="folder or s3://bucket/prefix of the dataset")
    json_lines: bool = Field(False, description="one JSON object a line")
    presign: PositiveInt | None = Field(
        None, le=604_800, description="print presigned addresses that expire after this many seconds (S3)"
    )


class VerifySpec(MovedOptions):
    """Read a whole dataset and compare it with its records: sizes, hashes, labels, every index once."""

    out: Annotated[str, POSITIONAL] = Field(description="folder or s3://bucket/prefix of the dataset")
    repair: bool = Field(
        False,
        description="move damaged files to damaged/, so that the job's command makes them again; no job may write "
        "meanwhile",
    )
    decode: NonNegativeInt = Field(
        0,
        le=MAX_ROWS,
        description="also decode the kept token ids of this many images, spread over the dataset, and compare them "
        "with the images",
    )
    vqvae: str | None = Field(
        None, description="for --decode: the dataset's VQVAE; default: where the job that made it found it"
    )

    @model_validator(mode="after")
    def check_decode(self) -> VerifySpec:
        given = {"vqvae": self.vqvae, **self.moved}
        if not self.decode and (alone := [name for name, value in given.items() if value is not None]):
            raise ValueError(f"expected --{alone[0]} with --decode, got it alone")
        return self


def run_ls(spec: LsSpec) -> None:
    """Print files on stdout and a summary on stderr. JobError at the end if entries cannot be read."""
    store = open_store(spec.out)
    plan, manifest = plan_of(store), Manifest(store)
    entries, problems = [], []
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        for entry, _, wrong in pool.map(partial(read_entry, manifest), sorted(manifest.committed())):
            entries += [entry] if entry else []
            problems += wrong
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
    fail(store, problems)


def run_verify(spec: VerifySpec) -> dict[str, Any]:
    """A table on stderr, one JSON line on stdout. JobError if anything is wrong, and not repaired; InputError if ids
    cannot be decoded."""
    store = open_store(spec.out)
    healed = heal_job(store) if spec.repair else []
    for line in healed:
        say(line)
    try:
        num_rows = plan_of(store).num_rows
        if spec.decode:
            check_keeps_ids(spec.out, read_identity(store))
    except NoJobError:  # reported by verify
        num_rows = 0
    with RunProgress(num_rows) as progress:
        verdict = verify(store, progress.add)
    result, refused = dict[str, Any](), None
    if spec.decode and verdict.problems:
        say("--decode: nothing is decoded before other problems are solved")
    elif spec.decode:
        try:
            result, problems = decode_again(spec, store, min(spec.decode, verdict.rows))
            verdict.problems += problems
        except InputError as error:
            refused = error
    for problem in verdict.problems[:MAX_SHOWN]:
        say(str(problem))
    if len(verdict.problems) > MAX_SHOWN:
        say(f"and {len(verdict.problems) - MAX_SHOWN} more")
    print_verdict(store, verdict, result)
    result = asdict(verdict) | {"problems": list(map(str, verdict.problems))} | result
    if not spec.repair:
        print(json.dumps(result), flush=True)
        fail(store, verdict.problems)
    else:
        done = repair(store, verdict)
        print(json.dumps(result | {"mended": healed, **asdict(done)}), flush=True)
        fail(store, [problem for problem in verdict.problems if not problem.is_healed])
        say(f"{len(done.aside)} files moved to damaged/, {len(done.removed)} removed")
        if verdict.problems or healed:
            say(f"to make what is missing: {command_of(store)}")
    if refused is not None:
        raise refused
    return result


def check_keeps_ids(place: str, identity: Identity) -> None:
    """InputError for a dataset without ids, or whose ids cannot be decoded, by its record alone."""
    if identity.kind == EXPORT:
        raise InputError(f"--decode: {place} is an export", "name the dataset that it was made of")
    if identity.kind is not None:
        raise InputError(f"--decode: expected a dataset of images, {place} holds {identity.kind}")
    if not identity.fields.get("keep_tokens"):
        raise InputError(f"--decode: {place} kept no token ids", "--keep-tokens of the job keeps them")


def decode_again(spec: VerifySpec, store: Store, count: int) -> tuple[dict[str, Any], list[Problem]]:
    """What --decode adds to the result, and problems that it finds. InputError if nothing can be decoded."""
    from tandem_jobs.decode_check import open_kept  # torch costs seconds

    kept = open_kept(spec.out, store, spec.vqvae, spec)
    with RunProgress(count) as progress:
        decoded = kept.decode(count, progress.add)
    counts = {name: value for name, value in vars(decoded).items() if name != "problems"}
    return {"decoded": counts}, decoded.problems


def command_of(store: Store) -> str:
    """The command that makes the whole dataset, from its job.json."""
    command = read_job(store)["info"].get("command")
    try:
        return full_command(command) if isinstance(command, str) else SAME_COMMAND
    except ValueError:  # unbalanced quotes
        return SAME_COMMAND


def fail(store: Store, problems: Sequence[Problem]) -> None:
    """Raise JobError if there are problems."""
    if problems:
        first, count = problems[0], len(problems)
        found = f"{count} problems, the first: {first.text}" if count > 1 else first.text
        raise JobError(f"{store.uri}: {found}", first.remedy)


def print_verdict(store: Store, verdict: Verdict, more: Mapping[str, Any]) -> None:
    table = Table("", "", title=store.uri, show_header=False)
    counts = {
        "shards": verdict.shards,
        "images": verdict.rows,
        "files": verdict.files,
        "MB": f"{verdict.size_bytes / 1e6:.1f}",
        "failed shards": len(verdict.failed),
        "uncommitted files": len(verdict.uncommitted),
        "records without a hash": verdict.unsealed,
        "_SUCCESS": "yes" if verdict.complete else "no",
        "problems": len(verdict.problems),
    }
    if decoded := more.get("decoded"):
        counts["decoded again"] = f"{decoded['images']}, {decoded['identical']} to the same bytes"
        counts["mean difference of 255"] = f"{decoded['mean']:.2f}, at most {decoded['largest']:.2f}"
    for name, count in counts.items():
        table.add_row(name, str(count))
    Console(stderr=True).print(table)
