"""Busy shares and overlap, from spans."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem_jobs.run.backpressure import StageState
from tandem_jobs.run.progress import RunProgress, busy_shares, overlap_s, readiness
from tandem_workers.stages.ray_data import Span


def spans(stage: str, *intervals: tuple[float, float], replica: str = "n/gpu0") -> list[Span]:
    return [Span(stage, replica, start, end) for start, end in intervals]


whole = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=6)


@settings(deadline=None)
@given(whole, whole)
def test_overlap_is_what_counting_seconds_gives(first, second):
    ours = spans("a", *[(s, s + d) for s, d in first])
    theirs = spans("b", *[(s, s + d) for s, d in second])

    def busy(group: list[Span], second: int) -> bool:
        return any(span.start_s <= second < span.end_s for span in group)

    assert overlap_s(ours, theirs) == sum(busy(ours, s) and busy(theirs, s) for s in range(41))


def test_a_stage_is_busy_for_its_work_over_its_replicas_time():
    work = spans("draft", (0, 4), replica="n/gpu0") + spans("draft", (0, 2), replica="n/gpu1")
    shares = busy_shares(work + spans("refine", (4, 10), replica="n/gpu2"))
    assert shares["draft"] == {"replicas": ["n/gpu0", "n/gpu1"], "busy_s": 6.0, "busy_share": 0.3}
    assert shares["refine"]["busy_share"] == pytest.approx(0.6)
    assert busy_shares([]) == {}


def test_what_is_lacking_is_asked_until_there_is_a_reason_and_then_said_once_a_minute(capsys):
    answers = iter([None, "no GPU is free", "no GPU is free"])
    progress = RunProgress(10, missing_reason=lambda stage: next(answers))
    progress.missing_since = {}
    stage = StageState("draft", replicas=2, ready=1)
    said = []
    for second in (0, 4, 6, 10, 12, 30, 60, 74):
        progress.report_missing(stage, float(second))
        said.append((second, capsys.readouterr().err))
    assert [second for second, line in said if line] == [12, 74]
    assert said[4][1] == "waiting: no GPU is free\n"
    stage.over = True
    progress.report_missing(stage, 200.0)
    assert (stage.missing, progress.missing_since) == (0, {})


def test_a_stage_that_is_done_lacks_no_replicas():
    """Drafters of a small job are done before its first shard is committed."""
    loading, done = StageState("draft", replicas=2), StageState("draft", replicas=2, ending=True)
    assert [readiness(stage) for stage in (loading, done)] == ["0 of 2 draft", "draft done"]
