"""Finds replicas that hang and gives them up: they are killed, so that Ray Serve starts others and their requests are
asked again. Ray Serve itself needs three unanswered health checks of 30 s, and then waits for running requests.

A replica hangs if it does not answer, or if its batch takes far longer than those before it. Each ingress watches all
drafters and refiners.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.util import list_named_actors

from tandem_workers.endpoint.deadlines import Deadline
from tandem_workers.endpoint.local_process import pid_space, process_times

log = logging.getLogger("ray.serve")
SERVE_NAMESPACE = "serve"
CHECK_EVERY_S = 0.5
ASK_EVERY_S = 1.0
SLOW_ANSWER_S = 3.0  # after this long without an answer a replica does not count as ready
# Seconds without an answer. A process that is stopped (SIGSTOP) certainly hangs, one that uses its CPU may be busy
STOPPED_S, SILENT_S, BUSY_S, LONGEST_S = 3.0, 10.0, 30.0, 60.0
ANSWER_MULTIPLE = 10.0  # of the longest recent answer
OVERDUE_ANSWERS = 2  # answers in a row that say that a batch is overdue
LONGEST_STEP_S = 1.0  # between two checks: more means that this process itself was held up
# Replicas of one deployment that are given up within GIVE_UPS_S; after that a replica that hangs is waited for
MAX_GIVE_UPS, GIVE_UPS_S = 3, 600.0
MAX_NOTICES = 64


class Replicas(Protocol):
    """Access to the replicas of an application, by full name."""

    def names(self) -> Sequence[str]: ...

    def ask(self, name: str) -> Awaitable[dict[str, Any]]:
        """What `Replica.record_routing_stats` returns. ActorDiedError: there is no such replica any more."""

    def kill(self, name: str) -> None:
        """Returns at once."""


class RayReplicas:
    """The replicas of a Ray Serve application, as named actors."""

    def __init__(self, app: str):
        self.prefix = f"SERVE_REPLICA::{app}#" if app else "SERVE_REPLICA::"

    def names(self) -> Sequence[str]:
        actors: list[Any] = list_named_actors(all_namespaces=True)
        names = (actor["name"] for actor in actors if actor["namespace"] == SERVE_NAMESPACE)
        return [name for name in names if name.startswith(self.prefix)]

    async def ask(self, name: str) -> dict[str, Any]:
        try:
            actor = await asyncio.to_thread(ray.get_actor, name, namespace=SERVE_NAMESPACE)
        except ValueError:
            raise ActorDiedError from None
        answer: dict[str, Any] = await actor.record_routing_stats.remote()
        return answer

    def kill(self, name: str) -> None:
        def kill() -> None:
            with suppress(ValueError):  # it has gone
                ray.kill(ray.get_actor(name, namespace=SERVE_NAMESPACE))

        threading.Thread(target=kill, name="kill", daemon=True).start()  # Ray may take long to answer


def deployment_of(name: str) -> str:
    """The deployment of a replica, by its full name."""
    return name.partition("::")[2].split("#")[-2]


@dataclass
class Watched:
    """One replica. It is judged once it has answered for the first time: before that, its model loads."""

    pending: asyncio.Task[dict[str, Any]] | None = None
    silent_s: float = 0.0  # since the pending question
    asked_at: float = 0.0
    ticks: int | None = None  # CPU time when it was asked
    answer: dict[str, Any] | None = None  # the last one
    overdue: int = 0  # answers in a row
    given_up: bool = False
    spared: bool = False  # hangs, but too many were given up


@dataclass
class ReplicaWatch:
    """Asks all replicas of `stages`, and gives up those that hang.

    Attributes:
        notices: what happened, by a key that is the same in all ingresses.
        observe: called with the deployment of every replica that is given up.
    """

    replicas: Replicas
    stages: Sequence[str]
    observe: Callable[[str], None] = lambda stage: None
    clock: Callable[[], float] = time.monotonic
    notices: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.watched: dict[str, Watched] = {}
        self.answers = {stage: Deadline(ANSWER_MULTIPLE, SILENT_S, LONGEST_S, needed=1) for stage in self.stages}
        self.given_up: dict[str, deque[float]] = {stage: deque() for stage in self.stages}
        self.seen: set[str] = set()  # stages that had a replica which answered
        self.space = pid_space()
        self.checked_at = self.clock()

    async def run(self) -> None:
        """Check forever. An error of Ray ends one check only."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            try:
                self.check(await asyncio.to_thread(self.replicas.names))
            except Exception:
                log.exception("the replicas could not be checked")

    def missing(self) -> str:
        """A sentence for each stage of which no replica answers now; empty: all stages do, or it is not known yet."""
        return "; ".join(
            self.why_missing(stage) for stage in self.stages if stage in self.seen and not self.ready(stage)
        )

    def ready(self, stage: str) -> int:
        """Number of replicas that answer."""
        mine = (watched for name, watched in self.watched.items() if deployment_of(name) == stage)
        return sum(w.answer is not None and w.silent_s < SLOW_ANSWER_S and not w.overdue for w in mine)

    def why_missing(self, stage: str) -> str:
        mine = [watched for name, watched in self.watched.items() if deployment_of(name) == stage]
        if any(watched.answer is not None and not watched.given_up for watched in mine):
            return f"no {stage.lower()} answers"
        return f"no {stage.lower()} runs; another one starts"

    def check(self, names: Sequence[str]) -> None:
        """One look at all replicas, without waiting for any. Call it within the event loop."""
        now = self.clock()
        step, self.checked_at = min(now - self.checked_at, LONGEST_STEP_S), now
        present = {name for name in names if deployment_of(name) in self.stages}
        for name in self.watched.keys() - present:
            self.forget(name)
        for name in sorted(present):
            watched = self.watched.setdefault(name, Watched())
            if watched.pending is not None and watched.pending.done():
                self.take_answer(name, watched, step)
            elif watched.pending is not None:
                watched.silent_s += step
            if watched.pending is None and now - watched.asked_at >= ASK_EVERY_S:
                self.ask(name, watched, now)
            if not watched.given_up and (why := self.hangs(name, watched)):
                self.give_up(name, watched, why)

    def ask(self, name: str, watched: Watched, now: float) -> None:
        watched.asked_at, watched.silent_s = now, 0.0
        times = process_times(watched.answer["pid"]) if self.is_local(watched) else None  # type: ignore[index]
        watched.ticks = times.ticks if times else None
        watched.pending = self.question(name)

    def question(self, name: str) -> asyncio.Task[dict[str, Any]]:
        task = asyncio.ensure_future(self.replicas.ask(name))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks a forgotten one
        return task

    def take_answer(self, name: str, watched: Watched, step: float) -> None:
        assert watched.pending is not None
        try:
            watched.answer = watched.pending.result()
        except ActorDiedError:
            watched.answer = None
        except ActorUnavailableError:  # the network: as no answer
            watched.pending = self.question(name)
            watched.silent_s += step
            return
        except Exception:  # it answers, with an error: it is loading, or another version
            watched.answer = None
        else:
            self.seen.add(deployment_of(name))
            self.answers[deployment_of(name)].recent.append(watched.silent_s)
            watched.overdue = watched.overdue + 1 if watched.answer["overdue"] else 0
        watched.pending, watched.silent_s, watched.spared = None, 0.0, watched.spared and watched.overdue > 0

    def forget(self, name: str) -> None:
        watched = self.watched.pop(name)
        if watched.pending is not None:
            watched.pending.cancel()

    def is_local(self, watched: Watched) -> bool:
        """Whether its process id is one of this machine."""
        return watched.answer is not None and bool(self.space) and watched.answer["pid_space"] == self.space

    def hangs(self, name: str, watched: Watched) -> str:
        """Why this replica counts as hung; empty: it does not."""
        if watched.answer is None:
            return ""
        if watched.overdue >= OVERDUE_ANSWERS:
            return str(watched.answer["overdue"])
        if watched.silent_s < STOPPED_S:
            return ""
        patience = self.answers[deployment_of(name)].seconds
        times = process_times(watched.answer["pid"]) if self.is_local(watched) else None
        if times is not None and times.state == "T":
            return "its process is stopped"
        if times is not None and watched.ticks is not None and times.ticks > watched.ticks:
            patience = max(patience, BUSY_S)
        return f"it has not answered for {watched.silent_s:.0f} s" if watched.silent_s >= patience else ""

    def give_up(self, name: str, watched: Watched, why: str) -> None:
        """Kill the replica, unless too many were given up lately."""
        stage, now = deployment_of(name), self.clock()
        recent = self.given_up[stage]
        while recent and now - recent[0] > GIVE_UPS_S:
            recent.popleft()
        label = f"{stage.lower()} {name.rpartition('#')[2]}"
        if len(recent) >= MAX_GIVE_UPS:
            if not watched.spared:
                watched.spared = True
                lately = f"{MAX_GIVE_UPS} others were given up in the last {GIVE_UPS_S / 60:.0f} minutes"
                self.note(f"{name} spared", f"warning: {label} hangs: {why}; as {lately}, it is waited for")
            return
        recent.append(now)
        watched.given_up = True
        self.replicas.kill(name)
        self.observe(stage)
        self.note(f"{name} given up", f"warning: {label} hangs: {why}; killed, its requests go to another one")

    def note(self, key: str, text: str) -> None:
        log.warning(text)
        self.notices[key] = text
        if len(self.notices) > MAX_NOTICES:
            self.notices.pop(next(iter(self.notices)))
