"""What a run says and does about shards that take too long, by a clock of our own."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from tandem_jobs.run import make_shards
from tandem_jobs.run.backpressure import Flow, StageState
from tandem_jobs.run.outcome import StoredShard
from tandem_jobs.run.start_up import StartUp
from tandem_jobs.run.watchdog import Watchdog, WatchdogLimits
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.stages.ledger import LOADING, WORKER, Entry
from tandem_workers.stages.ray_data import Span

LIMITS = WatchdogLimits()
ENTRY = Entry("refine", "shard 7", "refine", "aaaaaaaa/gpu1", "aa", 42)


class Run:
    """A watchdog over entries that a test sets."""

    def __init__(self, limits: WatchdogLimits = LIMITS) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.ended: list[int] = []
        self.swept: list[list[int]] = []
        self.stage = StageState("refine", 1, ready=1)
        self.nodes = {"aa"}
        self.watchdog = Watchdog(
            read=lambda: dict(self.entries),
            is_alive=self.nodes.__contains__,
            end=lambda entry: self.ended.append(entry.pid),
            sweep=lambda workers: self.swept.append([worker.pid for worker in workers]),
            stages=[self.stage],
            limits=limits,
        )

    def see(self, *entries: Entry, seconds: int = 1) -> None:
        """Let this be under way for so long."""
        self.entries = {f"{entry.pool}:{entry.task}".encode(): entry for entry in entries}
        for _ in range(seconds):
            self.watchdog.check(1.0)


def spans(**seconds: float) -> list[Span]:
    return [Span(stage, "x", 100.0, 100.0 + took) for stage, took in seconds.items()]


@pytest.fixture
def run() -> Run:
    return Run()


def test_an_overdue_shard_is_named_once_and_its_process_is_replaced(run, capsys):
    run.watchdog.learn(spans(refine=2.0))
    run.watchdog.learn(spans(refine=10.0, draft=1.0))
    run.see(ENTRY, seconds=51)
    assert capsys.readouterr().err == "" and not run.ended
    run.see(ENTRY)
    line = "warning: shard 7 has been in refine for {} s (process 42 of aaaaaaaa/gpu1); the longest so far took 10.0 s"
    assert capsys.readouterr().err == line.format(51) + "\n" and run.swept == [[42]]
    run.see(ENTRY, seconds=149)
    assert capsys.readouterr().err == "" and not run.ended
    run.see(ENTRY)
    assert capsys.readouterr().err == line.format(201) + ": the process is replaced\n" and run.ended == [42]
    run.see(ENTRY, seconds=200)
    assert run.ended == [42, 42], "it did not end, and is ended again"


def test_the_next_process_has_twice_the_time_and_its_predecessors_end_is_no_news(run, capsys):
    run.watchdog.learn(spans(refine=10.0))
    run.see(ENTRY, seconds=202)
    capsys.readouterr()
    again = replace(ENTRY, pid=43, deaths=("aa",))
    run.see(again, seconds=101)
    assert capsys.readouterr().err == ""
    run.see(again, seconds=300)
    assert run.ended == [42]
    run.see(again)
    assert run.ended == [42, 43]


def test_a_run_learns_from_whole_shards_alone(run, monkeypatch):
    """The last one may be of a single row and be committed first: three ends later the whole one would have failed."""

    class Stub:
        plan, pools, limits = ShardPlan(9, 4), (), LIMITS

        def flow(self, num_shards: int) -> Flow:
            return Flow([], True, num_shards)

        def run(self, shards: list[int], flow: Flow) -> list[StoredShard]:
            return [
                StoredShard(shard, len(self.plan.indices(shard)), tuple(spans(refine=2.0 * (3 - shard))))
                for shard in shards
            ]

    monkeypatch.setattr(make_shards, "watching", lambda flow, limits: nullcontext(run.watchdog))
    make_shards.make_shards(Stub(), [2], 1, 0, StartUp())
    assert run.watchdog.longest == {}
    make_shards.make_shards(Stub(), [2, 1], 5, 0, StartUp())
    assert run.watchdog.longest == {"refine": 4.0}


def test_shards_that_differ_in_how_many_scales_are_drafted_are_not_ended(run):
    """Of one scale the drafter makes little of the work, of nine most of it; writing has limits of its own."""
    run.watchdog.learn(spans(draft=1.0, refine=100.0, encode=200.0, store=1.0))
    run.see(replace(ENTRY, pool="draft", stage="draft"), seconds=2001)
    assert not run.ended
    run.see(replace(ENTRY, pool="draft", stage="draft"))
    assert run.ended == [42]


@pytest.mark.parametrize(
    ("stage", "longest", "warn_s", "replace_s"),
    [
        ("draft", 0.1, LIMITS.warn[0], LIMITS.replace[0]),
        ("draft", 100.0, 500.0, 2000.0),
        ("draft", None, LIMITS.warn_first, LIMITS.replace_first),
        ("write", 0.1, LIMITS.warn[0], LIMITS.replace_store),
        ("write", None, LIMITS.warn_first, LIMITS.replace_first),
        ("read", 1.0, LIMITS.warn[0], LIMITS.replace_store),
        (LOADING, None, LIMITS.warn_first, LIMITS.replace_first),
    ],
)
def test_limits_have_floors_and_are_generous_before_anything_is_known(stage, longest, warn_s, replace_s):
    assert LIMITS.of(stage, longest, longest or 0.0) == (warn_s, replace_s)
    assert warn_s < replace_s


def test_writing_is_known_from_its_parts(run):
    run.watchdog.learn([Span("encode", "x", 10.0, 11.0), Span("store", "x", 11.5, 14.0)])
    assert run.watchdog.longest["write"] == 4.0


def test_the_clock_of_a_shard_restarts_when_it_moves_on_or_ends(run, capsys):
    run.watchdog.learn(spans(refine=0.1, draft=0.1))
    for stage in ("read", "draft", "refine"):
        run.see(replace(ENTRY, pool="draft + refine", stage=stage), seconds=31)
    run.see()
    run.see(ENTRY, seconds=31)
    assert capsys.readouterr().err == "" and run.watchdog.seen


def test_what_a_lost_node_had_in_hand_is_left_to_ray(run, capsys):
    run.watchdog.learn(spans(refine=0.1))
    run.nodes.clear()
    run.see(ENTRY, seconds=500)
    assert capsys.readouterr().err == "" and not run.ended


def test_each_death_is_said(run, capsys):
    run.see(ENTRY)
    run.see(replace(ENTRY, pid=43, deaths=("aa",)), seconds=3)
    run.see(replace(ENTRY, pid=44, deaths=("aa", "aa")))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"warning: refine: a process died at shard 7: {n} of 3 times" for n in (1, 2)]


def test_an_actor_that_loads_for_long_is_named(run, capsys):
    run.see(replace(ENTRY, task=f"{LOADING} 0a0b", stage=LOADING), seconds=302)
    line = "warning: an actor of refine has been in loading for 301 s (process 42 of aaaaaaaa/gpu1)\n"
    assert capsys.readouterr().err == line and run.swept == [[42]]


def test_stopped_workers_are_looked_for_where_shards_are_in_hand_and_none_is_worked_on(run, capsys):
    """Between two shards a process has no entry: tiny ones are worked on for a small part of their time."""
    workers = [replace(ENTRY, task=f"{WORKER} aa {pid}", pid=pid, stage="") for pid in (41, 42)]
    others = replace(workers[0], pool="draft", pid=40)
    run.stage.in_flight = 2
    run.see(*workers, others, seconds=30)
    assert run.swept == []
    run.see(*workers, others)
    assert run.swept == [[41, 42]]
    run.see(*workers, seconds=30)
    assert run.swept == [[41, 42]] * 2, "after 60 s again"
    run.see(*workers, ENTRY)
    run.see(*workers, seconds=30)
    run.stage.done += 1
    run.see(*workers, seconds=30)
    run.stage.ready = 0  # its actor is being started
    run.see(*workers, seconds=100)
    run.stage.ready, run.stage.in_flight = 1, 0
    run.see(*workers, seconds=100)
    assert len(run.swept) == 2 and not run.ended and capsys.readouterr().err == ""
