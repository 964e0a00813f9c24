"""`tandem submit`: runs a Tandem command as a job on a Ray cluster, and follows it to its end."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from ray.job_submission import JobSubmissionClient

from tandem.errors import InputError, JobError, StoppedError
from tandem_cluster import submission
from tandem_jobs.options.spec import Spec, as_flags
from tandem_jobs.options.yaml_file import load_yaml
from tandem_jobs.run.progress import say
from tandem_jobs.run.versions import software
from tandem_jobs.submit_files import read_command, read_variables, send_files
from tandem_workers.dataset.start_times import process_began

EXAMPLES = """examples:
  tandem submit --address http://head:8265 -- generate --classes all --per-class 20 --out s3://bucket/emoji
  tandem submit --follow -- generate --spec job.yaml --labels rows.csv --out /shared/rows
  tandem submit --follow --stop-on-interrupt -- generate --classes all --per-class 20 --out s3://bucket/stoppable
  tandem submit --env AWS_ENDPOINT_URL -- draft --classes all --per-class 20 --out s3://bucket/drafts

The command after -- is checked here, with its --spec file and TANDEM_* variables, and sent as one line. Tandem's code
is sent along, so the cluster needs only Ray and Tandem's dependencies. Files with relative paths, such as rows.csv, are
sent too; absolute paths and s3:// addresses are those of the cluster's nodes. Secrets are not sent: nodes need a cloud
identity, or the variables in the environment in which Ray was started.

A stopped job that is submitted again resumes from its committed shards.
Exit codes with --wait and --follow: 0 succeeded; 1 failed; 2 wrong input; 3 stopped; 130 ctrl-C here."""

LINE_EVERY_S = 15.0


class SubmitSpec(Spec):
    """Run a command of Tandem as a job on a Ray cluster: tandem submit [OPTIONS] -- COMMAND [ITS OPTIONS]."""

    address: str | None = Field(
        None,
        description="address of the cluster's dashboard: http://head:8265; default: RAY_ADDRESS, or this machine's "
        "cluster",
    )
    wait: bool = Field(False, description="wait for the end, with occasional lines of progress")
    follow: bool = Field(False, description="wait for the end, with the job's whole log")
    stop_on_interrupt: bool = Field(False, description="stop the job on ctrl-C; by default it keeps running")
    env: tuple[str, ...] | None = Field(
        None,
        description="environment variables of the job: NAME (with its value here) or NAME=VALUE; no secrets, as Ray "
        "shows them",
    )
    runtime_env: Path | None = Field(
        None,
        description="YAML file of a Ray runtime environment to extend, for a cluster without Tandem's dependencies",
    )
    submission_id: str | None = Field(None, description="name of the job on the cluster; default: chosen by Ray")

    @model_validator(mode="after")
    def check(self) -> SubmitSpec:
        if self.stop_on_interrupt and not (self.wait or self.follow):
            raise ValueError("expected --wait or --follow with --stop-on-interrupt, got neither")
        if self.submission_id is not None and not re.fullmatch(r"[\w.-]{1,100}", self.submission_id):
            raise ValueError(f"--submission-id: expected letters, digits, . _ -, got {self.submission_id!r}")
        return self


def run(spec: SubmitSpec, command: Sequence[str]) -> dict[str, Any]:
    """Check, submit and, if asked, follow a command. Raises JobError or StoppedError if the job does not succeed."""
    began = process_began()
    name, inner = read_command(command)
    with tempfile.TemporaryDirectory() as folder:
        args = [*name.split(), *as_flags(send_files(inner, Path(folder)))]
        base = load_yaml("--runtime-env", spec.runtime_env) if spec.runtime_env else {}
        if base.get("working_dir") and os.listdir(folder):
            raise InputError("expected no working_dir in --runtime-env, as files are sent with the job")
        working_dir = folder if os.listdir(folder) else None
        env = submission.runtime_env(read_variables(spec.env), base, working_dir)
        client = submission.connect(spec.address)
        about = {"name": f"tandem {name}", "software": software(), "out": place_of(inner)}
        line = shlex.join(["python", "-m", "tandem_jobs", *args])
        job = submission.submit(client, line, env, about, spec.submission_id)
        sent = time.time()
    say(f"submitted {job} to {client.get_address()}: tandem {shlex.join(args)}")
    if not (spec.wait or spec.follow):
        say(job_commands(client, job))
        result = {"submission_id": job, "status": "SUBMITTED"}
        print(json.dumps(result), flush=True)
        return result
    return follow_job(spec, client, job, began, sent)


def place_of(command: Spec) -> str:
    """Where a command writes, or what it reads."""
    return next((str(place) for name in ("out", "dataset") if (place := getattr(command, name, None))), "")


def follow_job(spec: SubmitSpec, client: JobSubmissionClient, job: str, began: float, sent: float) -> dict[str, Any]:
    """Follow a job to its end; print its outcome as one JSON line on stdout."""
    log, tail = JobLog(spec.follow), submission.LogTail(client, job)
    tail.start()
    with interruptible():
        try:
            end = submission.follow(tail, log.show, log.changed)
        except KeyboardInterrupt:
            if not spec.stop_on_interrupt:
                say(f"\nthe job keeps running\n{job_commands(client, job)}")
                raise
            say(f"\nstopping {job}")
            submission.stop(client, job)
            end = submission.follow(tail, log.show, log.changed)
    start_up = log.start_up(began, sent)
    result = {
        "submission_id": job,
        "status": end.status,
        "exit_code": end.exit_code,
        "start_up_s": start_up,
        "summary": log.summary,
    }
    if start_up:
        parts = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f}" for name, seconds in start_up.items())
        say(f"from here to the first committed shard: {sum(start_up.values()):.1f} s ({parts})")
    print(json.dumps(result), flush=True)
    hint = "submitted again, without --overwrite, it resumes from the committed shards"
    if end.status == "STOPPED":
        raise StoppedError(f"job {job} was stopped", hint)
    if end.status != "SUCCEEDED":
        cause = log.error or submission.first_line(RuntimeError(end.message))
        raise (InputError if end.exit_code == InputError.exit_code else JobError)(
            f"job {job} failed: {cause}", log.hint or hint
        )
    say(f"job {job} succeeded")
    return result


def job_commands(client: JobSubmissionClient, job: str) -> str:
    here = f"--address {client.get_address()} {job}"
    return f"its log: ray job logs --follow {here}\nto stop it: ray job stop {here}"


class JobLog:
    """Filters the lines of a job's log, and keeps its summary, error and hint."""

    def __init__(self, show_all: bool):
        self.show_all = show_all
        self.summary: dict[str, Any] = {}
        self.error: str | None = None
        self.hint: str | None = None
        self.shown_at = time.monotonic()

    def show(self, line: str) -> None:
        """Process one line."""
        if line.startswith("{") and (values := as_object(line)) is not None:
            self.summary = values
            return
        if line.startswith("error: "):
            self.error = line.removeprefix("error: ")
        elif self.error is not None and line.startswith("hint: "):
            self.hint = line.removeprefix("hint: ")
        elif self.error is not None and self.hint is None and line.startswith("  "):
            self.error += "\n" + line
        now = time.monotonic()
        if self.show_all or (line.strip() and now - self.shown_at > LINE_EVERY_S):
            self.shown_at = now
            say(line)

    def changed(self, status: str) -> None:
        say(f"job is {status.lower()}")

    def start_up(self, began: float, sent: float) -> dict[str, float]:
        """Seconds from the start of this process to the first committed shard, by phase.

        `job_start` compares the clocks of two machines.
        """
        parts: dict[str, float] = self.summary.get("start_up_s") or {}
        if not parts:
            return {}
        job_start = self.summary["started_at"] - sent
        return {"submit": round(sent - began, 2), "job_start": round(max(0.0, job_start), 2), **parts}


def as_object(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


@contextmanager
def interruptible() -> Iterator[None]:
    """Context manager: SIGTERM raises KeyboardInterrupt, like ctrl-C."""
    kept = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)
