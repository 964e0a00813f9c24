"""Which replicas are given up, and which are not: the watch with replicas and a clock of plain Python."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from tandem_workers.endpoint.local_process import pid_space, process_times
from tandem_workers.endpoint.replica_watch import (
    BUSY_S,
    CHECK_EVERY_S,
    GIVE_UPS_S,
    MAX_GIVE_UPS,
    SILENT_S,
    STOPPED_S,
    ReplicaWatch,
    deployment_of,
)

REFINER = "SERVE_REPLICA::tandem#Refiner#ab12"
DRAFTER = "SERVE_REPLICA::tandem#Drafter#cd34"
ELSEWHERE = {"pid": 1, "pid_space": "another machine", "overdue": ""}


class FakeReplicas:
    """Replicas answer at once with `answers`; without one, never. An error there is raised."""

    def __init__(self, **answers: Any):
        self.answers: dict[str, Any] = {REFINER: ELSEWHERE, DRAFTER: ELSEWHERE} | answers
        self.killed: list[str] = []

    def names(self) -> list[str]:
        return list(self.answers)

    async def ask(self, name: str) -> dict[str, Any]:
        answer = self.answers[name]
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer.with_traceback(None)  # the traceback of one object would grow
        return answer

    def kill(self, name: str) -> None:
        self.killed.append(name)
        del self.answers[name]


class Watching:
    """A watch whose time passes by `wait`."""

    def __init__(self, replicas: FakeReplicas):
        self.now, self.replicas = 0.0, replicas
        self.watch = ReplicaWatch(replicas, ("Drafter", "Refiner"), clock=lambda: self.now)

    async def wait(self, seconds: float, step: float = CHECK_EVERY_S) -> None:
        """Check as the watch does by itself."""
        until = self.now + seconds
        while self.now < until:
            self.now += step
            self.watch.check(self.replicas.names())
            for _ in range(3):  # the answers arrive
                await asyncio.sleep(0)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def here(pid: int) -> dict[str, Any]:
    return {"pid": pid, "pid_space": pid_space(), "overdue": ""}


def test_replicas_that_answer_are_left_alone_and_ready():
    async def test() -> None:
        watching = Watching(FakeReplicas())
        assert watching.watch.missing() == ""
        await watching.wait(120)
        assert not watching.replicas.killed and watching.watch.missing() == "" and not watching.watch.notices

    asyncio.run(test())


def test_a_replica_that_no_longer_answers_is_killed_and_the_watch_says_so():
    async def test() -> None:
        watching = Watching(FakeReplicas())
        await watching.wait(5)
        watching.replicas.answers[REFINER] = None
        await watching.wait(SILENT_S / 2)
        assert watching.watch.missing() == "no refiner answers" and not watching.replicas.killed
        await watching.wait(SILENT_S / 2 + 3)
        assert watching.replicas.killed == [REFINER]
        assert watching.watch.missing() == "no refiner runs; another one starts"
        (notice,) = watching.watch.notices.values()
        expected = "warning: refiner ab12 hangs: it has not answered for 10 s; killed, its requests go to another one"
        assert notice == expected
        watching.replicas.answers["SERVE_REPLICA::tandem#Refiner#ef56"] = ELSEWHERE
        await watching.wait(2)
        assert watching.watch.missing() == ""

    asyncio.run(test())


@pytest.mark.skipif(not pid_space(), reason="needs /proc")
def test_a_stopped_process_of_this_machine_is_killed_sooner(child):
    async def test() -> None:
        watching = Watching(FakeReplicas(**{REFINER: here(child.pid)}))
        await watching.wait(5)
        watching.replicas.answers[REFINER] = None
        os.kill(child.pid, signal.SIGSTOP)
        while process_times(child.pid).state != "T":  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
        await watching.wait(STOPPED_S + 2)
        assert watching.replicas.killed == [REFINER]
        assert "its process is stopped" in "".join(watching.watch.notices.values())

    asyncio.run(test())


@pytest.mark.skipif(not pid_space(), reason="needs /proc")
def test_a_process_of_this_machine_that_computes_gets_more_time():
    async def test() -> None:
        watching = Watching(FakeReplicas(**{REFINER: here(os.getpid())}))
        await watching.wait(5)
        watching.replicas.answers[REFINER] = None
        before = process_times(os.getpid())
        assert before is not None
        await watching.wait(1)
        while process_times(os.getpid()).ticks <= before.ticks + 1:  # type: ignore[union-attr]
            pass  # computing
        await watching.wait(BUSY_S - 3)
        assert not watching.replicas.killed
        await watching.wait(5)
        assert watching.replicas.killed == [REFINER]

    asyncio.run(test())


def test_slow_answers_make_the_watch_patient():
    """Answers that took 3 s on a busy machine: silence of 10 s is nothing to go by."""

    async def test() -> None:
        watching = Watching(FakeReplicas())
        watching.watch.answers["Refiner"].recent.append(3.0)
        await watching.wait(5)
        watching.replicas.answers[REFINER] = None
        await watching.wait(25)
        assert not watching.replicas.killed
        await watching.wait(10)
        assert watching.replicas.killed == [REFINER]

    asyncio.run(test())


def test_a_replica_that_loads_its_model_is_not_judged():
    async def test() -> None:
        watching = Watching(FakeReplicas(**{REFINER: None, DRAFTER: RuntimeError("not initialized")}))
        await watching.wait(600)
        assert not watching.replicas.killed and watching.watch.missing() == ""

    asyncio.run(test())


def test_a_watch_that_was_held_up_itself_blames_nobody():
    """Checks a minute apart, as on a machine that was suspended: at most a second of each counts."""

    async def test() -> None:
        watching = Watching(FakeReplicas())
        await watching.wait(5)
        watching.replicas.answers[REFINER] = None
        await watching.wait(5 * 60, step=60)
        assert not watching.replicas.killed

    asyncio.run(test())


def test_a_batch_that_is_overdue_twice_in_a_row_ends_its_replica():
    async def test() -> None:
        watching = Watching(FakeReplicas())
        await watching.wait(5)
        overdue = ELSEWHERE | {"overdue": "a batch of 8 images has been in work for more than 20 s"}
        watching.replicas.answers[REFINER] = overdue
        await watching.wait(1)
        watching.replicas.answers[REFINER] = ELSEWHERE
        await watching.wait(5)
        assert not watching.replicas.killed
        watching.replicas.answers[REFINER] = overdue
        await watching.wait(4)
        assert watching.replicas.killed == [REFINER]

    asyncio.run(test())


def test_replicas_that_hang_one_after_the_other_are_waited_for_in_the_end():
    async def test() -> None:
        watching = Watching(FakeReplicas())
        for number in range(MAX_GIVE_UPS + 1):
            name = f"SERVE_REPLICA::tandem#Refiner#{number}"
            watching.replicas.answers = {DRAFTER: ELSEWHERE, name: ELSEWHERE}
            await watching.wait(3)
            watching.replicas.answers[name] = None
            await watching.wait(20)
        assert len(watching.replicas.killed) == MAX_GIVE_UPS
        *_, last = watching.watch.notices.values()
        assert last.endswith("as 3 others were given up in the last 10 minutes, it is waited for")
        assert watching.watch.missing() == "no refiner answers"
        await watching.wait(GIVE_UPS_S)
        assert len(watching.replicas.killed) == MAX_GIVE_UPS + 1

    asyncio.run(test())


@pytest.mark.parametrize(
    ("error", "killed"), [(ActorDiedError(), []), (ActorUnavailableError("gone", b"1" * 16), [REFINER])]
)
def test_a_dead_replica_is_left_to_ray_serve_and_one_behind_a_broken_network_counts_as_silent(error, killed):
    async def test() -> None:
        watching = Watching(FakeReplicas())
        await watching.wait(5)
        watching.replicas.answers[REFINER] = error
        await watching.wait(20)
        assert watching.replicas.killed == killed
        assert watching.watch.missing().startswith("no refiner runs")

    asyncio.run(test())


def test_the_deployment_of_a_replica_is_in_its_name():
    assert deployment_of(REFINER) == "Refiner"
    assert deployment_of("SERVE_REPLICA::Drafter#x") == "Drafter"
