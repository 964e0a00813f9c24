"""One speed for every display of a run, and a live table that is right from its first frame to its last."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
from rich.console import Console

from tandem_jobs.run.backpressure import Flow, StageState
from tandem_jobs.run.make_shards import summarise
from tandem_jobs.run.progress import RunProgress, print_summary
from tandem_jobs.run.throughput import Throughput
from tandem_jobs.slow_import import say_if_slow
from tandem_workers.stages.ray_data import Span

NOW = 1_700_000_000.0


def commit(start: float, end: float) -> list[Span]:
    """What was done to a shard: a stage that starts, and the store that ends."""
    return [
        Span("draft", "n/gpu0", NOW + start, NOW + start + 0.1),
        Span("store", "n/pid1", NOW + end - 0.1, NOW + end),
    ]


def flow() -> Flow:
    return Flow([StageState("draft", 2), StageState("refine", 1), StageState("write", 0)], num_shards=2)


class Screen(io.StringIO):
    """A terminal of 120 columns."""

    def isatty(self) -> bool:
        return True

    def console(self) -> Console:
        return Console(file=self, force_terminal=True, width=120, legacy_windows=False)

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())

    @property
    def last_frame(self) -> str:
        """What is left standing: from the last line that has the number of images on."""
        return self.text[[m.start() for m in re.finditer(r"\d+/\d+", self.text)][-1] :]


def test_images_per_s_is_of_the_seconds_from_the_first_start_of_a_stage_to_the_last_commit():
    made = Throughput()
    assert (made.images_per_s, made.steady_images_per_s, made.working_s) == (0.0, 0.0, 0.0)
    made.add(4, commit(start=1, end=3))
    assert (made.images_per_s, made.steady_images_per_s) == (2.0, 0.0)
    made.add(4, commit(start=0, end=5))
    assert (made.images_per_s, made.steady_images_per_s, made.working_s) == (8 / 5, 8 / 2 / 2, 5.0)


def test_work_without_spans_is_timed_from_its_beginning():
    made = Throughput(began=time.time() - 10)
    made.add(20)
    assert made.images_per_s == pytest.approx(2, rel=0.05)


def test_bar_closing_table_and_json_have_one_speed(capsys):
    screen, stages = Screen(), flow()
    with RunProgress(48, 16, stages, console=screen.console()) as progress:
        progress.add(16, commit(0, 3))
        progress.add(16, commit(1, 6))
    summary = summarise(progress.throughput, 40.0, [*commit(0, 3), *commit(1, 6)], {}, stages)
    print_summary(summary)
    assert summary["images"] == 32  # not the 16 of an earlier run
    assert summary["images_per_s"] == round(32 / 6, 3)
    assert summary["working_s"] == 6.0
    assert "5.33 images/s" in screen.last_frame
    assert "32 images in 40.0 s, 5.33 images/s over 6.0 s of work" in capsys.readouterr().err


def test_lines_have_it_too(capsys):
    with RunProgress(32, flow=flow(), console=Console(file=io.StringIO())) as progress:
        progress.add(16, commit(0, 3))
        progress.add(16, commit(1, 6))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "loading models: 0 of 2 draft, 0 of 1 refine replicas ready"
    assert lines[1].startswith("32/32 images  5.33 images/s  0 s left  | draft: 0/2 ready, 0 in hand, 0 waiting")


def test_the_live_table_has_all_stages_and_ends_with_what_came_out():
    screen, stages = Screen(), flow()
    draft, refine, write = stages.stages
    with RunProgress(32, flow=stages, console=screen.console()) as progress:
        draft.ready = draft.most_ready = 2
        refine.ready = refine.most_ready = refine.in_flight = refine.waiting = 1
        draft.done, refine.done, write.done = 2, 1, 0  # as the executor saw them last
        stages.object_store_bytes = 10**6
        progress.add(16, commit(0, 3))
        progress.add(16, commit(1, 6))
    rows = [line.split() for line in screen.last_frame.splitlines()]
    assert ["draft", "2", "of", "2", "0", "0", "2"] in rows
    assert ["refine", "1", "of", "1", "0", "0", "2"] in rows
    assert ["write", "tasks", "0", "0", "2"] in rows
    assert "32/32" in screen.last_frame
    assert "left" not in screen.last_frame
    assert "0 MB in use" in screen.last_frame


def test_a_run_that_breaks_off_keeps_what_was_seen_last():
    screen, stages = Screen(), flow()
    progress = RunProgress(32, flow=stages, console=screen.console()).__enter__()
    progress.add(16, commit(0, 3))
    stages.stages[0].done, stages.stages[1].in_flight = 2, 1
    progress.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert "16/32" in screen.last_frame
    assert ["refine", "0", "of", "1", "1", "0", "0"] in [line.split() for line in screen.last_frame.splitlines()]


def test_the_first_frame_says_what_is_waited_for():
    screen, stages = Screen(), flow()
    with RunProgress(32, flow=stages, console=screen.console()) as progress:
        assert "loading models" in screen.text
        assert ["draft", "0", "of", "2", "0", "0", "0"] in [line.split() for line in screen.text.splitlines()]
        assert "images/s" not in screen.text
        stages.stages[0].ready, stages.stages[1].ready = 2, 1
        assert progress.status == "first shard"
        progress.add(16, commit(0, 3))
        assert progress.status == "images"


def test_a_terminal_hears_of_slow_imports(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with say_if_slow("loading libraries", after_s=60):
        pass
    assert screen.text == ""
    with say_if_slow("loading libraries", after_s=0):
        deadline = time.monotonic() + 5
        while not screen.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert screen.text == "loading libraries\n"
