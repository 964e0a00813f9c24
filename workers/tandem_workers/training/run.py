"""A training run on Ray Train, as its driver sees it: started, watched, interrupted, and how it ended."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from tandem.errors import JobError, OutputError, PlacementError, TandemError
from tandem.training.state import LoopSettings
from tandem.training.task import Task
from tandem_workers.dataset.seal import DamagedError
from tandem_workers.storage.store import Store
from tandem_workers.training.checkpoint_record import CheckpointRecord, committed_steps
from tandem_workers.training.desk import RESUME, News, open_desk
from tandem_workers.training.train_worker import WorkerJob, work

POLL_S = 0.2
HEALTH_CHECK_S = 1.0  # between Ray Train's looks at its workers
WAITING_S = 30.0  # until it is said that no worker has started


@dataclass(frozen=True)
class WorkerGroup:
    """The workers of a run.

    cpus: of each, and its torch threads. gpus: of each. cuda: whether these are real.
    timeout_s: a worker that does not answer, or leaves the others waiting, for so long is replaced.
    """

    num: int = 1
    cpus: int = 1
    gpus: float = 0
    cuda: bool = False
    timeout_s: int = 600


@dataclass(frozen=True)
class TrainingOutcome:
    """How a run ended. evaluation: the last one."""

    step: int
    seconds: float
    evaluation: dict[str, float]


@dataclass(frozen=True)
class Watching:
    """Where a run's news goes: records of the log, lines for the user, and further callbacks of Ray Train."""

    on_record: Callable[[dict[str, float]], None]
    say: Callable[[str], None]
    callbacks: Sequence[UserCallback] = ()


def run_training(
    task: Task,
    settings: LoopSettings,
    store: Store,
    group: WorkerGroup,
    watching: Watching,
    data: Any = None,
    keep: int = 2,
) -> TrainingOutcome:
    """Train to the end in an open session of Ray, from the last checkpoint in the store on.

    Args:
        task: the recipe; it is pickled.
        store: the place of the run, claimed for it by `claim_run`.
        data: for the task's `prepare`; every node gets one copy, which workers share. Read only.
        keep: how many checkpoints stay.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM, after a checkpoint; at once at a second one.
        InputError: by the task.
        PlacementError: the cluster has no room for the workers.
        JobError: anything else. The last checkpoint stays.
    """
    check_room(group)
    desk = open_desk()
    ref = None if data is None else ray.put(data)
    job = WorkerJob(task, settings, store, desk, ref, keep, group.cpus, group.cuda, bool(watching.callbacks))
    with tempfile.TemporaryDirectory(prefix="tandem-train-") as folder, environment(group):
        fit = Fit(make_trainer(job, group, watching.callbacks, folder))
        with signals_remembered() as signalled, without_paragraphs():
            fit.start()
            follow(fit, desk, watching, group, signalled)
    error: TandemError | None
    outcome: dict[str, Any] | None
    error, outcome = ray.get(desk.result.remote())
    ray.kill(desk)
    if isinstance(error, OutputError):  # met while running, so not the exit code of wrong input
        error = JobError(str(error), error.hint)
    if error := error or fit.error:
        raise error
    if signalled:
        where = f"at step {outcome['step']}" if outcome else "while the workers were starting"
        watching.say(f"stopped {where}; the same command goes on from here")
        raise KeyboardInterrupt
    if outcome is None:
        raise JobError("training ended without a result", RESUME)
    return outcome_of(outcome)


def finished(store: Store, steps: int) -> TrainingOutcome | None:
    """How a run of so many steps ended, if it did."""
    for step in committed_steps(store)[:1]:
        try:
            record = CheckpointRecord.read(store, step)
        except DamagedError:
            return None
        return outcome_of(record.numbers) if step == steps else None
    return None


def outcome_of(numbers: Mapping[str, Any]) -> TrainingOutcome:
    return TrainingOutcome(numbers["step"], numbers["seconds"], dict(numbers["evaluation"]))


def check_room(group: WorkerGroup) -> None:
    """PlacementError if the nodes that are there cannot hold the workers."""
    there = ray.cluster_resources()
    for name, each in (("CPU", group.cpus), ("GPU", group.gpus)):
        if group.num * each > there.get(name, 0):
            raise PlacementError(
                f"{group.num} workers of {each:g} {name}s each: expected at least {group.num * each:g} {name}s in the "
                f"cluster, found {there.get(name, 0):g}",
                "fewer --workers, or fewer threads each",
            )


def make_trainer(job: WorkerJob, group: WorkerGroup, callbacks: Sequence[UserCallback], folder: str) -> TorchTrainer:
    """Ray Train's part: processes, process group, and restarts. Its own storage is a temporary folder."""
    resources = {"CPU": group.cpus, **({"GPU": group.gpus} if group.gpus else {})}
    return TorchTrainer(
        work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if group.cuda else "gloo", timeout_s=group.timeout_s),
        scaling_config=ScalingConfig(num_workers=group.num, use_gpu=bool(group.gpus), resources_per_worker=resources),
        run_config=RunConfig(  # type: ignore[call-arg]
            name="tandem",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=-1),  # the desk says when it is enough
            callbacks=list(callbacks),  # type: ignore[arg-type]
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )


@contextmanager
def environment(group: WorkerGroup) -> Iterator[None]:
    """Context manager: the variables by which Ray Train is set."""
    values = {
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(HEALTH_CHECK_S),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(group.timeout_s),
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    }
    kept = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Fit(threading.Thread):
    """`TorchTrainer.fit` in a thread: in the main thread it would take over ctrl-C."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        self.error: TandemError | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:
            lines = [
                line.strip() for line in str(error).splitlines() if line.strip()
            ]  # of Ray's, the last is the cause
            self.error = JobError(f"training: {lines[-1] if lines else type(error).__name__}", RESUME)


def follow(fit: Fit, desk: ActorHandle, watching: Watching, group: WorkerGroup, signalled: list[int]) -> None:
    """Pass on what comes to the desk, and to the desk that a signal came, until the run is over."""
    began, quiet, stopping = time.monotonic(), True, False
    while True:
        over = not fit.is_alive()
        if signalled and not stopping:
            stopping = True
            watching.say("stopping after this step and a checkpoint; once more ends at once")
            ray.get(desk.stop.remote())
        news = cast(News, ray.get(desk.take_news.remote()))
        for line in news.lines:
            watching.say(line)
        for record in news.records:
            watching.on_record(record)
        quiet = quiet and not (news.lines or news.records)
        if quiet and time.monotonic() - began > WAITING_S:
            quiet = False
            watching.say(f"waiting for {group.num} worker{'s' * (group.num > 1)} to start")
        if over:
            return
        fit.join(POLL_S)


@contextmanager
def without_paragraphs() -> Iterator[None]:
    """Context manager: Ray does not explain the death of a worker in a paragraph of its own; the desk has a line."""
    kept = ray._private.worker.print_to_stdstream

    def print_unless_raylet(data: dict[str, Any], ignore_prefix: bool) -> None:
        if data.get("pid") != "raylet":
            kept(data, ignore_prefix)

    ray._private.worker.print_to_stdstream = print_unless_raylet
    try:
        yield
    finally:
        ray._private.worker.print_to_stdstream = kept


@contextmanager
def signals_remembered() -> Iterator[list[int]]:
    """Context manager: the first SIGINT or SIGTERM goes into the list, a second one raises KeyboardInterrupt.

    Handlers are for the main thread alone; elsewhere nothing changes.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    kept = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
