"""The commit protocol under a seeded scheduler: several jobs of the real code in one place, and what must hold after.

Real are `Job` with all that it calls: open_job, reopen, Writer, store_shard, close_dataset; `Drafts` as well. Made
up are Ray (a job makes its shards itself, and late copies of its tasks write other pictures of them) and the store.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from greenlet import greenlet

from support.jobs_without_ray import JobWithoutRay
from support.memory_store import Disk, MemoryStore
from support.protocol_contents import ORIGINS, PLAN, cached_format, drafted, drafter_config, pictures, seed_of
from tandem.config import to_dict
from tandem.errors import JobError, TandemError
from tandem_jobs.run import make_shards, pipeline
from tandem_jobs.run.job import Job
from tandem_workers.dataset import verify
from tandem_workers.dataset.closing import is_closed
from tandem_workers.dataset.drafts import KIND, open_drafts
from tandem_workers.dataset.job_record import find_epoch, read_job
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.repair import repair
from tandem_workers.dataset.shards import ShardRows
from tandem_workers.dataset.success_file import read_success
from tandem_workers.storage import layout

STEPS = 4000  # of one interleaving; a run takes some hundred
PICTURES = 3  # that different GPUs make of one shard
IMAGES, DRAFTS = "images", "drafts"


class Killed(BaseException):
    """SIGKILL."""


class Violation(AssertionError):
    """What the protocol promises does not hold."""


@dataclass
class Command:
    """One run of a command. `fails`: shards that it cannot make."""

    place: str
    seed: int
    overwrite: bool = False
    shards: str | None = None
    fails: frozenset[int] = frozenset()
    from_drafts: bool = False
    outcome: Any = None  # a summary, a TandemError, or Killed


@dataclass
class Model:
    """One interleaving. `faults`: chances of each kind of fault."""

    rng: random.Random
    name: str
    faults: dict[str, float]
    disk: Disk = field(default_factory=Disk)
    waiting: dict[greenlet, tuple[str, Callable[[], Any] | None]] = field(default_factory=dict)
    weights: dict[greenlet, float] = field(default_factory=dict)
    late: list[Callable[[], Any]] = field(default_factory=list)
    stored: list[tuple[str, int, int]] = field(default_factory=list)  # place, epoch, shard
    commands: list[Command] = field(default_factory=list)
    killable: set[greenlet] = field(default_factory=set)
    trace: list[str] = field(default_factory=list)
    unclosed: int = 0  # jobs said that they had closed the place, and another took that back

    def __post_init__(self) -> None:
        self.disk.on_remove = self.check_removal
        if self.rng.random() < self.faults["lag"]:
            self.disk.listing_lag = lambda: self.rng.randrange(60)

    def start(self, work: Callable[[], Any], killable: bool = False) -> greenlet:
        """Work of its own, which the scheduler begins some time."""
        task = greenlet(lambda _: work(), parent=self.scheduler)
        self.waiting[task], self.weights[task] = ("start", None), self.rng.choice([0.02, 0.3, 1, 1, 5])
        if killable:
            self.killable.add(task)
        return task

    def run(self, commands: list[Command]) -> None:
        """All commands at once, until all have ended and nothing is under way."""
        self.scheduler = greenlet.getcurrent()
        for command in commands:
            self.start(partial(self.execute, command), killable=True)
        self.commands += commands
        while self.waiting or self.late:
            self.disk.clock += 1
            if self.disk.clock > STEPS:
                raise Violation("it never ends")
            if self.late and (not self.waiting or self.rng.random() < 0.05):
                self.late.pop(self.rng.randrange(len(self.late)))()
                self.trace.append("    a late one arrives")
            else:
                self.step()
        self.disk.clock += 100  # by now listings show all

    def step(self) -> None:
        tasks = list(self.waiting)
        task = self.rng.choices(tasks, [self.weights[task] for task in tasks])[0]
        asked, effect = self.waiting.pop(task)
        if self.rng.random() < 0.05:
            self.weights[task] = self.rng.choice([0.01, 0.3, 1, 5])
        fate = "done"
        if asked != "start" and task in self.killable and self.rng.random() < self.faults["kill"]:
            fate = "killed"
            if effect and self.rng.random() < 0.6:  # the request has left
                self.late.append(effect)
        elif effect and self.rng.random() < self.faults["late"]:
            self.late.append(effect)  # it is asked twice, and one of both comes late
        elif effect and self.rng.random() < self.faults["lost"]:
            fate = "answer lost"
        self.trace.append(f"{tasks.index(task)} {asked}: {fate}")
        answer = task.throw(Killed()) if fate == "killed" else task.switch(fate)
        if not task.dead:
            self.waiting[task] = answer

    def execute(self, command: Command) -> None:
        try:
            command.outcome = self.job_of(command).run()
        except (TandemError, Killed) as error:
            command.outcome = error

    def job_of(self, command: Command) -> Job:
        """The real job of a command, but for Ray."""
        store = MemoryStore(self.disk, command.place)
        drafting = command.place == DRAFTS
        fmt = cached_format(DRAFTS if drafting else self.name)
        sources = open_drafts(MemoryStore(self.disk, DRAFTS)) if command.from_drafts else None
        identity: dict[str, Any] = {"seed": command.seed, "rows": PLAN.num_rows, "shard_size": PLAN.shard_size}
        info: dict[str, Any] = {}
        if drafting:
            hashes = {"drafter": "d" * 64, "vqvae": "v" * 64}
            decoding = {"seed": command.seed, "draft_steps": 2, "sampling": {}}
            identity |= {"kind": KIND, "weights_sha256": hashes, "decoding": decoding}
            info = {"drafter": {"source": "d.pth", "config": to_dict(drafter_config())}, "class_names": ["a"] * 4}
            del identity["seed"]
        elif sources:
            identity |= {"drafts": sources.identity.fields}

        def make(shard: int, picture: int, again: bool = False) -> ShardRows:
            if shard in command.fails and not again:
                raise ValueError("no numbers")
            if drafting:
                return drafted(command.seed, shard)
            seed = command.seed
            if sources:
                prefix = sources.read(shard, 2)
                if not np.array_equal(prefix.prefix, drafted(sources.seed, shard).prefix):
                    raise Violation("drafts of another seed were read")
                seed = 100 * sources.seed + seed
            return pictures(seed, shard, picture)

        return JobWithoutRay(
            store,
            PLAN,
            fmt,
            make,
            identity,
            info,
            card=not drafting,
            shards=command.shards,
            overwrite=command.overwrite,
            max_failed_shards=0 if command.shards else len(command.fails),
        )

    def make_shards(self, job: pipeline.Pipeline, todo: list[int], total: int, max_failed: int, _: Any) -> dict:
        """In place of Ray's: one after the other, and now and then a second writer of one of them."""
        failed: dict[int, str] = {}
        read: Any = job.pools[0].stages[0]
        write: Any = job.write
        for shard in todo:
            picture = self.rng.randrange(PICTURES)
            try:
                if self.rng.random() < self.faults["twice"]:
                    other = read(shard, self.rng.randrange(PICTURES), again=True)
                    self.start(partial(self.write_again, write, other))
                made = read(shard, picture)
            except (ValueError, JobError) as error:
                failed[shard] = str(error)
                make_shards.check_failures(failed, max_failed)
                continue
            write(made, [])
            self.stored.append((write.store.uri, write.epoch, shard))
        return {"failed_shards": failed}

    def write_again(self, write: Any, shard: ShardRows) -> None:
        with contextlib.suppress(TandemError):
            write(shard, [])

    def leave_junk(self, place: str, path: str) -> None:
        """A damaged file where a shard is to stand."""
        MemoryStore(self.disk, place).put_once(path, b"damaged")

    # ---- what must hold

    def epoch(self, place: str) -> int:
        names = self.disk.files
        return next(epoch for epoch in range(99) if f"{place}/{layout.overwrite_path(epoch + 1)}" not in names)

    def check_removal(self, name: str) -> None:
        """No entry of the living epoch is ever removed, and no record of an epoch."""
        place, _, path = name.partition("/")
        if path.startswith((layout.OVERWRITES, layout.JOB)):
            raise Violation(f"{name} was removed")
        if path.startswith(layout.MANIFEST) and layout.epoch_of(path) == self.epoch(place):
            raise Violation(f"{name} was removed")

    def check(self, place: str) -> None:
        """After everything has ended: what is committed is whole and of the job whose place it is."""
        store = MemoryStore(self.disk, place)
        job = read_job(store)
        epoch = job["epoch"]
        if epoch != find_epoch(store, 0):
            raise Violation(f"{place}: the job is of epoch {epoch}")
        seed = seed_of(job["identity"])
        entries = {shard: Manifest(store, epoch).entry(shard) for shard in range(PLAN.num_shards)}
        for of, at, shard in self.stored:
            if (of, at) == (place, epoch) and entries[shard] is None:
                raise Violation(f"{place}: shard {shard} was stored and is not committed")
        for shard, entry in entries.items():
            for file in entry.files if entry else ():
                data = self.disk.files.get(f"{place}/{file.path}")
                if data is None:
                    raise Violation(f"{file.path} is committed and not there")
                if ORIGINS.get(data) != (seed, shard):
                    raise Violation(f"{file.path} of seed {seed} holds {ORIGINS.get(data)}")

    def check_closed(self, place: str) -> None:
        """What `_SUCCESS` says, if it is there, once nobody was killed and nothing came late."""
        store = MemoryStore(self.disk, place)
        epoch = self.epoch(place)
        closing = read_success(store)
        here = Manifest(store, epoch)
        ended = [c.outcome for c in self.commands if c.place == place and isinstance(c.outcome, dict)]
        if closing is None:
            self.unclosed += any(outcome["complete"] for outcome in ended)
            return
        if closing["epoch"] != epoch:
            raise Violation(f"_SUCCESS of epoch {closing['epoch']} stands in epoch {epoch}")
        if not closing["files"].keys() <= set(store.list_files()):
            self.unclosed += 1
        elif ended and not is_closed(here, PLAN.num_shards, here.committed()):
            raise Violation(f"_SUCCESS says {closing}, committed are {sorted(here.committed())}")

    def heal(self, place: str) -> None:
        """The same command again, alone: it ends well, and all is as if nothing had been."""
        store = MemoryStore(self.disk, place)
        identity = read_job(store)["identity"]
        command = Command(place, seed_of(identity) % 100, from_drafts="drafts" in identity)
        if command.from_drafts and read_job(MemoryStore(self.disk, DRAFTS))["identity"] != identity["drafts"]:
            return  # its drafts are gone
        self.faults = dict.fromkeys(self.faults, 0.0)
        self.disk.listing_lag = lambda: 0
        for path in store.list_files():
            if (layout.epoch_of(path) or 0) > self.epoch(place):  # our junk, for an epoch that never began
                store.remove(path)
        self.run_alone(command)
        verdict = verify.verify(store)
        if problems := verdict.problems:  # files that came after all was closed
            if not all("are in no entry" in problem.text or problem.leftovers for problem in problems):
                raise Violation(f"after the same command: {problems}")
            self.disk.on_remove = lambda name: None
            repair(store, verdict)
            self.run_alone(Command(place, command.seed, from_drafts=command.from_drafts))
        if problems := verify.verify(store).problems:
            raise Violation(f"after the repair and the same command: {problems}")

    def run_alone(self, command: Command) -> None:
        self.run([command])
        if not isinstance(command.outcome, dict) or not command.outcome["complete"]:
            raise Violation(f"the same command again: {command.outcome!r}")
        self.check(command.place)
        store = MemoryStore(self.disk, command.place)
        if json.loads(store.read(layout.JOB)).get("epoch", 0) != self.epoch(command.place):
            raise Violation("job.json is of another epoch")
        closing = read_success(store)
        if not is_closed(Manifest(store), PLAN.num_shards, range(PLAN.num_shards)) or not closing:
            raise Violation(f"after the same command: _SUCCESS says {closing}")
