"""A job: one command that makes a dataset, from its checks to the closing of the dataset."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from tandem.config import SamplingConfig
from tandem_cluster.placement import Placement
from tandem_cluster.session import Session, about_to_open, open_session
from tandem_jobs.options.options import JobOptions
from tandem_jobs.run.backpressure import USABLE_SHARE, Flow, wanted_object_store
from tandem_jobs.run.decode_choices import choose_settings, describe_models
from tandem_jobs.run.interrupt import stop_in_time
from tandem_jobs.run.make_shards import make_shards, summarise
from tandem_jobs.run.pipeline import Pipeline
from tandem_jobs.run.progress import print_summary, say
from tandem_jobs.run.shard_range import choose_part, command_line, describe_part, resume_command
from tandem_jobs.run.start_up import StartUp, describe_start
from tandem_jobs.run.store_watch import watch_store
from tandem_jobs.run.throughput import Throughput
from tandem_jobs.run.versions import versions
from tandem_workers.dataset.claim import JobRecord, as_json, open_job
from tandem_workers.dataset.closing import close_dataset, is_closed, reopen
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.identity import job_identity
from tandem_workers.dataset.job_record import check_epoch, read_job
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import ModelSet
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

# Least CPUs of a cluster that is started here, hence shards stored at once. Each writer is a process, whose start costs
# seconds; actors reserve no CPU.
MIN_WRITERS = 2


class Job(ABC):
    """One command and its dataset. Each command has a subclass, whose `__init__` makes all checks, starts nothing and
    sets the attributes. The `run` of its module has the steps: is it done, a session, the pipeline, closing.

    Attributes:
        options, store, plan: the user's options, the store of the dataset, and how its rows are cut into shards.
        models, seed, draft_steps, sampling, batch, row_settings: how it decodes, on any device.
        source: fields of the identity for the rows or drafts that the dataset is made of.
        num_producers, shard_bytes: most replicas that feed the sink, and bytes of one of their shards.
        placement, on_real_gpus: which replica gets which device, and whether it is a real GPU; set by `begin`.
        record: the job's claim on the store, once it is found or taken.
        summary: the run in numbers.
    """

    result: ClassVar[str]  # name of the dataset in the last line
    kind: ClassVar[str | None] = None  # of a dataset without images
    required_files: ClassVar[tuple[str, ...]] = ()  # closing files that every such job has, besides `_SUCCESS`

    models: ModelSet
    seed: int
    draft_steps: int
    sampling: SamplingConfig
    batch: int
    row_settings: tuple[str, ...]
    source: dict[str, Any]
    num_producers: int
    shard_bytes: int
    placement: Placement
    on_real_gpus: bool
    record: JobRecord

    def __init__(self, options: JobOptions, store: Store, plan: ShardPlan) -> None:
        self.options, self.store, self.plan = options, store, plan
        self.part = choose_part(options.shards, plan)
        self.summary: dict[str, Any] = {}

    # Steps that differ between commands

    @abstractmethod
    def place(self, session: Session) -> tuple[Placement, list[str]]:
        """Which replica gets which device, and lines that explain the choice. Raises PlacementError."""

    @abstractmethod
    def pipeline(self) -> Pipeline:
        """All stages in order, on the devices of the placement."""

    def identity(self, on_real_gpus: bool) -> dict[str, Any]:
        """All that changes bytes, given real GPUs or CPUs: job.json keeps it, and a later run has to match it."""
        models, settings = self.models, self.settings(on_real_gpus)
        return job_identity(models.hashes, settings, self.source, self.plan.shard_size, models.names_sha256, self.kind)

    def info(self) -> dict[str, Any]:
        """Further content of job.json, which is not compared."""
        return self.models.record

    def describe(self) -> list[str]:
        """Models and settings in a few lines."""
        return describe_models(self.models, self.decoding, (self.models.drafter_config, self.models.refiner_config))

    def files(self, entries: Sequence[ManifestEntry], failed: Mapping[int, str]) -> Mapping[str, bytes]:
        """The closing files by path, once every shard is committed or in `failed` with its cause."""
        return {}

    # Steps that all commands share, in order

    def settings(self, on_real_gpus: bool) -> DecodeSettings:
        steps, seed, sampling = self.draft_steps, self.seed, self.sampling
        return choose_settings(self.options, seed, steps, sampling, self.batch, on_real_gpus, self.row_settings)

    @property
    def decoding(self) -> DecodeSettings:
        """The settings on the devices of the placement."""
        return replace(self.settings(self.on_real_gpus), on_gpu=self.device)

    def is_done(self) -> bool:
        """Whether all shards of this job's part are committed. Reads file names, no shards."""
        if self.options.overwrite or not self.store.exists(layout.JOB):
            return False
        job = read_job(self.store)
        committed = Manifest(self.store, job["epoch"]).committed(self.part)
        if not committed.issuperset(self.part):  # asked first: the identity waits until the weights are hashed
            return False
        devices = (False,) if self.options.int8 else (False, True)  # int8 is for CPUs
        if job["identity"] not in (as_json(self.identity(on_real_gpus)) for on_real_gpus in devices):
            return False
        say(f"{describe_part(self.part, self.plan)}: all done before")
        self.record = JobRecord(job["identity"], job["info"], committed, job["epoch"])
        self.summary = summarise(Throughput(), 0.0, [], {}, Flow([])) | self.about()
        return True

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Context manager: the cluster that was asked for, else one started here."""
        self.start_up = StartUp()
        options = self.options
        say(about_to_open(options.address))
        object_store = wanted_object_store(self.num_producers, self.shard_bytes)
        with open_session(options.address, options.logical_gpus, MIN_WRITERS, object_store) as session:
            _ = self.models.hashes  # waits until the weights are hashed: the job's identity needs it
            self.start_up.join()
            yield session

    def begin(self, session: Session, placement: Placement, reasons: Sequence[str]) -> None:
        """Claim the store for this job, find the shards committed by other runs, and print a description. OutputError
        if the store holds another job."""
        self.placement, self.on_real_gpus = placement, placement.mode != "cpu" and not session.simulated
        self.device = session.device_of(self.on_real_gpus)
        info = {"command": command_line(), **versions(), **self.info()}
        self.record = open_job(self.store, self.identity(self.on_real_gpus), info, self.options.overwrite)
        self.store.remember_job(self.record.path)
        for line in (session.describe(), placement.describe(), *self.describe(), *reasons):
            say(line)

    def make(self, pipeline: Pipeline, session: Session) -> None:
        """Make the missing shards."""
        todo = [shard for shard in self.part if shard not in self.record.committed]
        resumed = len(self.part) - len(todo)
        if todo:
            reopen(Manifest(self.store, self.record.epoch))
        say(describe_store(session, pipeline))
        done = f", {resumed} of them done before" if resumed else ""
        say(f"{describe_part(self.part, self.plan)}{done} -> {self.store.uri}")
        total = sum(len(self.plan.indices(shard)) for shard in self.part)
        with stop_in_time(resume_command()), watch_store(self.store):
            self.summary = make_shards(pipeline, todo, total, self.options.max_failed_shards, self.start_up)
        simulated = session.simulated and self.placement.mode != "cpu"
        self.summary |= {**self.about(resumed), "placement": self.placement.mode, "simulated_gpus": simulated}

    def about(self, resumed: int | None = None) -> dict[str, Any]:
        """The job's own fields of the summary. `resumed` None: all shards of its part were done before."""
        return {
            "out": self.store.uri,
            "total_images": self.plan.num_rows,
            "shards": f"{self.part.start}-{self.part.stop - 1}/{self.plan.num_shards}",
            "resumed_shards": len(self.part) if resumed is None else resumed,
        }

    def close(self) -> dict[str, Any]:
        """Close the dataset if it is complete; print the closing table on stderr, and one JSON line on stdout."""
        with stop_in_time(resume_command()):
            self.summary["complete"] = self.close_if_last(self.summary["failed_shards"])
        report(self.summary, self.result)
        return self.summary

    def close_if_last(self, failed: Mapping[int, str]) -> bool:
        """Close the dataset unless it is closed or other parts are missing. Returns whether it is closed.

        Each job checks after its own last commit, so the last one finds all shards; if two do, both write the same
        files. A dataset that another job closed while this one was still adding shards is closed again.
        """
        manifest, num_shards = Manifest(self.store, self.record.epoch), self.plan.num_shards
        if len(self.part) < num_shards:
            committed = manifest.committed(range(num_shards), failed)
            missing = num_shards - len(committed)
            if missing and is_closed(manifest, num_shards, committed, self.required_files):
                return True
            if missing:
                check_epoch(self.store, self.record.epoch)
                say(f"{missing} of {num_shards} shards are missing: the job that commits the last closes the dataset")
                return False
        close_dataset(manifest, num_shards, failed, self.files, self.required_files)
        return True


def report(summary: dict[str, Any], result: str) -> None:
    """The closing table on stderr, and one JSON line on stdout."""
    print_summary(summary)
    for line in describe_start(summary):
        say(line)
    say(f"{result}: {summary['out']}")
    print(json.dumps(summary), flush=True)


def describe_store(session: Session, pipeline: Pipeline) -> str:
    """How much of the object store the pipeline can fill."""
    most, size = pipeline.most_bytes / 1e6, session.object_store_bytes / 1e6
    warning = ": it will hold replicas back; smaller shards would not" if most > size * USABLE_SHARE else ""
    return f"at most {most:.0f} MB wait for the sink; the object store has {size:.0f} MB{warning}"
