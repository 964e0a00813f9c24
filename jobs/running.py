"""What all jobs that make shards have in common: choices, resume, progress and the closing summary."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ray.exceptions import RpcError

import tandem
from cluster.plan import Placement
from cluster.session import Session, about_to_open, num_unplaced, open_session, why_unplaced
from jobs.fallbacks import summarise_fallbacks
from jobs.flow import USABLE_SHARE, Flow, StageState
from jobs.interrupt import stop_in_time
from jobs.label_file import read_label_file
from jobs.labels import LabelRows, choose_classes, rows_of_classes
from jobs.options import PlaceOptions, RowOptions
from jobs.parts import choose_part, command_line, describe_part, resume_command
from jobs.pipeline import Pipeline, StoredShard, Writer
from jobs.progress import RunProgress, busy_shares, overlap_s, print_summary, say
from jobs.start_up import StartUp, describe_start
from jobs.store_watch import watch_store
from jobs.throughput import Throughput
from jobs.watchdog import watching
from tandem.class_names import ClassNames
from tandem.errors import JobError
from tandem.timing import timed
from workers import layout
from workers.closing import close_dataset, is_closed, reopen
from workers.entry import ManifestEntry
from workers.fallbacks import Fallback
from workers.job_record import check_epoch, read_job
from workers.manifest import Manifest
from workers.place import JobRecord, as_json, open_job
from workers.places import open_store
from workers.records import Span
from workers.shards import ShardPlan
from workers.store import Store

MAX_SHARD_BATCHES = 16
SHARDS_AIMED_AT = 32
# Shards that a cluster of ours stores at once, if the machine has fewer cores. Each writer is a process, whose start
# costs seconds; actors take no CPU from them.
MIN_WRITERS = 2


@dataclass(frozen=True)
class Work:
    """A job that has its place: its pipeline, and what to say of it."""

    pipeline: Pipeline
    placement: Placement
    lines: list[str]
    info: dict[str, Any]  # what else job.json keeps


@dataclass(frozen=True)
class Job:
    """A job before it has a place to run.

    Attributes:
        identify: what makes it the same job, with the settings that real GPUs (True) or CPUs (False) imply.
        prepare: what to do on the cluster that was found, and whether the devices there are real GPUs.
        render: the files beside `_SUCCESS`, once every shard is committed or has failed, by cause.
        closes_with: their names, as far as every job has them.
    """

    options: PlaceOptions
    store: Store
    plan: ShardPlan
    object_store_bytes: int
    identify: Callable[[bool], dict[str, Any]]
    prepare: Callable[[Session], tuple[Work, bool]]
    render: Callable[[JobRecord, Sequence[ManifestEntry], Mapping[int, str]], Mapping[str, bytes]]
    closes_with: tuple[str, ...] = ()

    def run(self) -> dict[str, Any]:
        """Make what is missing, close the dataset, and return the summary. A finished one needs no cluster."""
        part = choose_part(self.options.shards, self.plan)
        if job := self.found_done(part):
            say(f"{describe_part(part, self.plan)}: all of them done before")
            summary = summarise(Throughput(), 0.0, [], {}, Flow([])) | self.about(part, len(part))
        else:
            summary, job = run_shards(self, part)
        with stop_in_time(resume_command()):
            return summary | {"complete": self.close_if_last(job, part, summary["failed_shards"])}

    def found_done(self, part: range) -> JobRecord | None:
        """The job that made all of this part before. Reads names, and no shard."""
        if self.options.overwrite or not self.store.exists(layout.JOB):
            return None
        job = read_job(self.store)
        if job["identity"] not in (as_json(self.identify(real)) for real in (True, False)):
            return None
        committed = Manifest(self.store, job["epoch"]).committed(part)
        return JobRecord(job["identity"], job["info"], committed, job["epoch"]) if committed.issuperset(part) else None

    def close_if_last(self, job: JobRecord, part: range, failed: Mapping[int, str]) -> bool:
        """Close the dataset, if it is not closed; whether it is. A job that made a part waits for all other parts.

        Each job looks after its own last commit, so whichever commits last finds everything; if two do, both close it,
        alike. What another job closed while this one was still adding shards is closed again.
        """
        manifest, num_shards = Manifest(self.store, job.epoch), self.plan.num_shards
        if len(part) < num_shards:
            committed = manifest.committed(range(num_shards), failed)
            missing = num_shards - len(committed)
            if missing and is_closed(manifest, num_shards, committed, self.closes_with):
                return True
            if missing:
                check_epoch(self.store, job.epoch)
                say(f"{missing} of {num_shards} shards are to come: whoever commits the last closes the dataset")
                return False
        close_dataset(manifest, num_shards, failed, partial(self.render, job), self.closes_with)
        return True

    def about(self, part: range, resumed: int) -> dict[str, Any]:
        shards = f"{part.start}-{part.stop - 1}/{self.plan.num_shards}"
        return {
            "out": self.store.uri,
            "total_images": self.plan.num_rows,
            "shards": shards,
            "resumed_shards": resumed,
        }


def run_shards(job: Job, part: range) -> tuple[dict[str, Any], JobRecord]:
    """Take the place and make the shards that are missing; the summary, and the place. It is not closed yet."""
    options, store, plan = job.options, job.store, job.plan
    start_up = StartUp()
    say(about_to_open(options.address))
    with open_session(options.address, options.logical_gpus, MIN_WRITERS, job.object_store_bytes) as session:
        start_up.join()
        work, on_real_gpus = job.prepare(session)
        info = {"command": command_line(), **versions(), **work.info}
        record = open_job(store, job.identify(on_real_gpus), info, options.overwrite)
        todo = [shard for shard in part if shard not in record.committed]
        resumed = len(part) - len(todo)
        store.remember_job(record.path)
        assert isinstance(work.pipeline.write, Writer)
        pipeline = replace(work.pipeline, write=replace(work.pipeline.write, epoch=record.epoch))
        if todo:
            reopen(Manifest(store, record.epoch))
        for line in (session.describe(), work.placement.describe(), *work.lines, describe_store(session, work)):
            say(line)
        done = f", {resumed} of them done before" if resumed else ""
        say(f"{describe_part(part, plan)}{done} -> {store.uri}")
        total = sum(len(plan.indices(shard)) for shard in part)
        with stop_in_time(resume_command()), watch_store(store):
            summary = make_shards(pipeline, todo, total, options.max_failed_shards, start_up)
    about = {
        **job.about(part, resumed),
        "placement": work.placement.mode,
        "simulated_gpus": session.simulated and work.placement.mode != "cpu",
    }
    return summary | about, record


def close(summary: dict[str, Any], what: str) -> dict[str, Any]:
    """The closing table on stderr, and one JSON line on stdout."""
    print_summary(summary)
    for line in describe_start(summary):
        say(line)
    say(f"{what}: {summary['out']}")
    print(json.dumps(summary), flush=True)
    return summary


def describe_store(session: Session, work: Work) -> str:
    """How much of the object store the pipeline can fill."""
    most, there = work.pipeline.most_bytes / 1e6, session.object_store_bytes / 1e6
    tight = ": it will hold replicas back; smaller shards would not" if most > there * USABLE_SHARE else ""
    return f"at most {most:.0f} MB wait for the sink; the object store has {there:.0f} MB{tight}"


def make_shards(pipeline: Pipeline, todo: list[int], total: int, max_failed: int, start_up: StartUp) -> dict[str, Any]:
    """Run the pipeline over the shards that are left, with progress. JobError at one failed shard too many."""
    spans: list[Span] = []
    failed: dict[int, str] = {}
    warned: dict[str, None] = {}  # in their order
    fallbacks: dict[Fallback, None] = {}
    todo_rows = sum(len(pipeline.plan.indices(shard)) for shard in todo)
    flow = pipeline.flow(len(todo))
    with (
        RunProgress(total, total - todo_rows, flow, partial(why_lacking, pipeline, flow)) as progress,
        watching(flow, pipeline.limits) as watchdog,
    ):
        for shard in pipeline.run(todo, flow) if todo else ():
            fallbacks |= dict.fromkeys(shard.fallbacks)
            if isinstance(shard, StoredShard):
                spans += shard.spans
                start_up.add(shard)
                for warning in shard.warnings:
                    if warning not in warned:
                        say(f"warning: {warning}")
                    warned[warning] = None
                progress.add(shard.num_rows, shard.spans)
                if shard.num_rows == pipeline.plan.shard_size:  # the last one may be of a single row
                    watchdog.learn(shard.spans)
            else:
                failed[shard.shard] = shard.cause
                check_failures(failed, max_failed)
    found = summarise(progress.throughput, start_up.elapsed_s, spans, failed, flow) | start_up.summary(spans)
    found |= {"warnings": list(warned)} if warned else {}
    return found | ({"fallbacks": summarise_fallbacks(fallbacks, spans)} if fallbacks else {})


def summarise(
    throughput: Throughput, seconds: float, spans: Sequence[Span], failed: Mapping[int, str], flow: Flow
) -> dict[str, Any]:
    """A run in numbers. `seconds` from the start of the command to its last shard; speeds as `Throughput` has them."""
    drafts = [s for s in spans if s.stage == "draft"]
    refines = [s for s in spans if s.stage == "refine"]
    return {
        "images": throughput.images,
        "seconds": round(seconds, 3),
        "working_s": round(throughput.working_s, 3),
        "images_per_s": round(throughput.images_per_s, 3),
        "steady_images_per_s": round(throughput.steady_images_per_s, 3),
        "stages": busy_shares(spans),
        "draft_refine_overlap_s": round(overlap_s(drafts, refines), 3),
        "failed_shards": dict(failed),
        **flow.summary(),
    }


def check_failures(failed: Mapping[int, str], max_failed: int) -> None:
    """Say which shard failed, or raise JobError if it is one too many."""
    shard, cause = list(failed.items())[-1]
    if len(failed) > max_failed:
        allowed = f"{len(failed)} shards failed, {max_failed} allowed; the last: " if max_failed else ""
        hint = "what was committed is kept; the same command goes on from there"
        raise JobError(f"{allowed}shard {shard}: {cause}", hint + ", --max-failed-shards leaves failures out")
    say(f"shard {shard} failed ({len(failed)} of {max_failed} allowed): {cause}")


def why_lacking(pipeline: Pipeline, flow: Flow, stage: StageState) -> str | None:
    """Why replicas of a stage are not there: no GPU for them. None where they are only loading."""
    pool = next((pool for pool in pipeline.pools if pool.name == stage.name), None)
    if pool is None or not pipeline.gpus_per_replica:
        return None
    try:
        if num_unplaced() <= flow.optional:
            return None
        return why_unplaced(f"{stage.short} of {stage.needed} {stage.name} replicas", pool.nodes)
    except RpcError:  # asked again soon
        return None


@timed("rows")
def read_rows(options: RowOptions, classes: ClassNames) -> LabelRows:
    if options.labels is not None:
        return read_label_file(options.labels, classes)
    assert options.classes is not None  # the options have checked it
    return rows_of_classes(choose_classes(options.classes, classes), options.per_class, options.images)


@timed("output")
def open_output(options: PlaceOptions) -> Store:
    """The place of a dataset, checked before anything starts. Raises OutputError."""
    store = open_store(options.out)
    store.check()
    return store


def plan_shards(options: RowOptions, num_rows: int, batch: int) -> ShardPlan:
    """Whole batches: some 32 shards for a small job, 16 batches a shard for a large one. Depends on the job alone."""
    batches = min(MAX_SHARD_BATCHES, max(1, num_rows // (batch * SHARDS_AIMED_AT)))
    return ShardPlan(num_rows, options.shard_size or batch * batches)


def software() -> str:
    """Name and version, as written into every image."""
    return f"tandem {tandem.__version__}"


def versions() -> dict[str, str]:
    names = ("torch", "ray", "numpy", "pillow", "pyarrow")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"software": software(), "python": platform.python_version(), **found}
