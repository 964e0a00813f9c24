"""Profiles of cards that cannot take every role, and plans that respect the memory of a card."""

import gc
import json
import weakref

import pytest
import torch

from tandem.errors import InputError
from tandem_cluster.planner import Request, make_plan
from tandem_cluster.profile_file import CannotTake, Profile, StageTime, read_profile
from tandem_jobs import stage_times
from tandem_jobs.cli import main
from tandem_jobs.profile import ProfileSpec, count_bytes
from tandem_workers.models.model_set import resolve_models

QUICK = ("--draft-steps", "5", "--batches", "2", "--repeats", "1")


def measure(tmp_path, *flags, kind="small") -> Profile:
    assert main(["profile", "--out", str(tmp_path / f"{kind}.json"), "--kind", kind, *QUICK, *flags]) == 0
    return read_profile(str(tmp_path / f"{kind}.json"))


def card(kind, memory=None, peaks=(None, None, None), weights=None, **seconds) -> Profile:
    """A card with N = 5 and batch 8; stages without seconds were not measured."""
    stages = [
        StageTime(stage=s, draft_steps=None if s == "decode" else 5, batch=8, seconds=seconds[s], memory_bytes=peak)
        for s, peak in zip(("draft", "refine", "decode"), peaks, strict=True)
        if s in seconds
    ]
    names = ("draft", "refine", "decode")
    weights_bytes = dict(zip(names, weights, strict=True)) if weights else {}
    return Profile(
        name=f"{kind}-1", kind=kind, num_scales=7, stages=stages, memory_bytes=memory, weights_bytes=weights_bytes
    )


def test_a_card_that_only_refines_is_planned_as_a_refiner(tmp_path):
    only_refines = measure(tmp_path, "--roles", "refine")
    assert {t.stage for t in only_refines.stages} == {"refine", "decode", "encode", "store"}
    assert only_refines.cannot == (CannotTake(role="draft", reason="left out by --roles"),)
    assert "random prefixes" in only_refines.time("encode", None, 2).estimated
    both = measure(tmp_path, kind="big")
    best = make_plan([only_refines, both], Request({"small": 2, "big": 1}, 1e4)).best
    assert (best.mode, best.drafters, best.refiners) == ("split", {"big": 1}, {"small": best.refiners["small"]})
    assert best.limits == ("small (profile small) cannot draft: left out by --roles",)


def test_what_does_not_fit_by_counted_bytes_is_recorded_and_not_tried(tmp_path, capsys):
    """The embedded models at batch 6: 0.04 GB to draft and 0.06 GB to refine and decode; at 1, 0.03 GB each."""
    found = measure(tmp_path, "--batches", "1,6", "--device-memory-gb", "0.045")
    assert found.memory_bytes == 45_000_000 and set(found.weights_bytes) == {"draft", "refine", "decode"}
    assert {(t.stage, t.batch) for t in found.stages if t.batch == 6} == {("draft", 6)}
    assert {(c.role, c.batch) for c in found.cannot} == {("refine", 6)}
    assert "GB by counted bytes, there are 0.04 GB" in found.cannot[0].reason
    assert all(t.memory_bytes for t in found.stages if t.stage in ("draft", "refine", "decode"))
    assert "cannot refine at batch 6" in capsys.readouterr().err


def test_a_refiner_is_counted_at_the_n_at_which_it_takes_most():
    """With the last N it has one scale and no cache."""
    models = resolve_models("embedded", "embedded", "embedded", False)
    spec, cpu = ProfileSpec(out="p.json", batches=(16,)), torch.device("cpu")
    few, most, all_ = (count_bytes(spec, models, models.sampling, steps, cpu) for steps in ([5], [6], [5, 6]))
    assert few["refine", 16].total > most["refine", 16].total and few["draft", 16].total < most["draft", 16].total
    assert all_ == {**few, ("draft", 16): most["draft", 16]}


def test_a_card_that_can_do_nothing_gets_no_profile(tmp_path, capsys):
    out = tmp_path / "none.json"
    assert main(["profile", "--out", str(out), *QUICK, "--device-memory-gb", "0.001"]) == 2
    assert "error: expected a device that can draft or refine, got one that can do neither" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("out"), MemoryError()])
def test_running_out_of_memory_is_a_result(error, tmp_path, monkeypatch):
    def draft(*_):
        raise error

    monkeypatch.setattr(stage_times, "draft", draft)
    found = measure(tmp_path)
    assert found.cannot == (CannotTake(role="draft", batch=2, reason="out of memory"),)
    assert [t.stage for t in found.stages] == ["refine", "decode", "encode", "store"]


def test_models_of_one_role_are_in_memory_at_a_time(tmp_path, monkeypatch):
    load, alive = stage_times.load_transformer, []

    def watched(ref, *args):
        gc.collect()
        assert not any(model() for model in alive), "the other role's model is still there"
        model = load(ref, *args)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(stage_times, "load_transformer", watched)
    measure(tmp_path)
    assert len(alive) == 2


def test_models_that_do_not_fit_together_are_not_colocated():
    """6 GB to draft and 5 to refine fit a card of 8 GB one by one: both take 6 + 2 + 1."""
    seconds = {"draft": 1.0, "refine": 0.6, "decode": 0.2}
    tight = card("tight", 8 * 10**9, (6 * 10**9, 5 * 10**9, 4 * 10**9), (4 * 10**9, 2 * 10**9, 10**9), **seconds)
    plan = make_plan([tight], Request({"tight": 2}, 1e4))
    assert plan.best.mode == "split" and plan.runners_up == ()
    assert plan.best.limits == ("tight (profile tight-1) cannot hold both models: needs 9.00 GB, has 8.00 GB",)


def test_a_role_without_room_goes_to_the_other_kind():
    """The small card drafts fastest by its times, but has no memory for the drafter."""
    small = card("small", 4 * 10**9, (5 * 10**9, 10**9, 10**9), draft=0.1, refine=1.0, decode=0.1)
    big = card("big", draft=1.0, refine=0.9, decode=0.1)
    best = make_plan([small, big], Request({"small": 1, "big": 1}, 1e4)).best
    assert (best.drafters, best.refiners) == ({"big": 1}, {"small": 1})
    assert best.limits == ("small (profile small-1) cannot draft: needs 5.00 GB, has 4.00 GB",)


def test_batches_at_which_a_kind_was_merely_not_measured_are_left_out():
    """Without a word on batch 8 from the other kind, its cards would idle."""
    one = card("one", draft=1.0, refine=0.5, decode=0.1)
    data = json.loads(card("two", draft=1.0, refine=0.5, decode=0.1).model_dump_json())
    for stage in data["stages"]:
        stage["batch"] = 16
    other = Profile.model_validate(data)
    with pytest.raises(InputError, match="no N and batch in the profiles meet the request"):
        make_plan([one, other], Request({"one": 1, "two": 1}, 1e4))


def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tandem_jobs.profile.measure_all", lambda *_: pytest.fail("measured"))
    for out in (tmp_path / "none" / "a.json", tmp_path):
        assert main(["profile", "--out", str(out), *QUICK]) == 2
        assert "error: --out: expected a file in an existing folder" in capsys.readouterr().err
