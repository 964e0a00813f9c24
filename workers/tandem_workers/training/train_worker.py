"""One worker of a training run: the loop of `tandem.training`, with store, log and desk around it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.actor import ActorHandle

from tandem.errors import JobError, TandemError, one_line
from tandem.training.loop import Loop
from tandem.training.parallel import Workers
from tandem.training.state import LoopSettings, LoopState
from tandem.training.task import Task
from tandem_workers.storage.store import Store
from tandem_workers.training.checkpoint_files import CheckpointFiles
from tandem_workers.training.log_file import LogFile

ASKED_EVERY_S = 1.0  # the desk, whether to stop


@dataclass(frozen=True)
class WorkerJob:
    """What every worker gets.

    data: of the task, as an object of Ray, so that a node holds one copy. reports: whether records go to callbacks.
    """

    task: Task
    settings: LoopSettings
    store: Store
    desk: ActorHandle
    data: ray.ObjectRef | None
    keep: int
    threads: int
    cuda: bool
    reports: bool


class StopFlag:
    """Whether the driver wants to stop, without waiting for the answer."""

    def __init__(self, desk: ActorHandle) -> None:
        self.desk = desk
        self.question: ray.ObjectRef | None = None
        self.asked_at = 0.0
        self.stopping = False

    def __call__(self) -> bool:
        if self.question is not None and ray.wait([self.question], timeout=0)[0]:
            self.stopping = self.stopping or ray.get(self.question)
            self.question = None
        if self.question is None and time.monotonic() - self.asked_at > ASKED_EVERY_S:
            self.question, self.asked_at = self.desk.is_stopping.remote(), time.monotonic()
        return self.stopping


class RayHost:
    """What surrounds the loop of a worker of Ray Train."""

    def __init__(self, job: WorkerJob, workers: Workers) -> None:
        self.job, self.workers, self.log = job, workers, LogFile(job.store)
        self.files = CheckpointFiles(job.store, workers, job.keep, self.say)
        self.wants_to_stop: Callable[[], bool] = StopFlag(job.desk) if self.is_first else lambda: False
        self.left_for: Any = None  # the preemption that a checkpoint was saved for

    @property
    def is_first(self) -> bool:
        return self.workers.rank == 0

    def say(self, line: str) -> None:
        if self.is_first:
            self.job.desk.say.remote(line)

    def load(self, state: LoopState) -> None:
        if self.files.load(state):
            self.say(f"resumed at step {state.step}")
        if self.is_first:
            self.log.begin(state.step)

    def save(self, state: LoopState) -> None:
        self.workers.by_first(self.log.write)
        self.files.save(state)
        if self.is_first:
            ray.get(self.job.desk.committed.remote())

    def record(self, values: dict[str, float]) -> None:
        self.workers.by_first(lambda: self.log.add(values))
        if self.is_first:
            self.job.desk.record.remote(values)
        if self.job.reports:
            ray.train.report(values)

    def is_stopping(self) -> bool:
        return self.wants_to_stop()

    def is_leaving(self) -> bool:
        """Whether a node is about to be taken away, once for each such notice."""
        info = ray.train.get_preemption_info()
        found = None if info is None else info.preempted_node_ids
        leaving = found is not None and found != self.left_for
        self.left_for = found
        return leaving


def work(config: dict[str, WorkerJob]) -> None:
    """The function that Ray Train runs on every worker, and again on all after one was lost."""
    job = config["job"]
    torch.set_num_threads(job.threads)
    device = ray.train.torch.get_device() if job.cuda else torch.device("cpu")
    workers = Workers.here(device)
    if not workers.by_first(lambda: ray.get(job.desk.begin.remote())):
        return
    try:
        workers.together(job.store.check_shared)
        data = None if job.data is None else ray.get(job.data)
        loop = Loop(job.task, job.settings, RayHost(job, workers), data, device)
        loop.run()
    except TandemError as error:  # all workers have it, and come to their end without a restart
        ray.get(job.desk.fail.remote(error))
        return
    except torch.OutOfMemoryError as error:
        known = JobError(f"out of memory: {one_line(error)}", "lower --micro-batch, recompute activations, or shard")
        ray.get(job.desk.fail.remote(known))
        raise
    except Exception as error:
        if not is_of_another_worker(error):
            ray.get(job.desk.lost.remote(one_line(error)))
        raise
    if workers.rank == 0:
        ray.get(job.desk.finish.remote(loop.state.numbers()))


def is_of_another_worker(error: Exception) -> bool:
    """Whether this is what remains of a collective call when another worker is lost or hangs."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
