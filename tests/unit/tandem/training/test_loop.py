"""The training loop in one process: exact resume, accumulation, the log, schedules, losses that are not finite."""

from dataclasses import replace

import pytest
import torch

from support.toy_task import ROWS, SETTINGS, MemoryHost, ToyTask
from tandem.errors import JobError
from tandem.training.loop import Loop
from tandem.training.schedule import learning_rate
from tandem.training.state import LoopState

TIMES = ("seconds", "images_per_s")


def without_times(host: MemoryHost) -> list[dict[str, float]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in host.records]


def alike(one: LoopState, other: LoopState) -> bool:
    theirs = other.tensors()
    return all(torch.equal(value, theirs[name]) for name, value in one.tensors().items())


def test_a_run_that_is_stopped_goes_on_to_the_same_bits():
    """Between two lines of the log: their means span the interruption."""
    settings = replace(SETTINGS, log_every=8)
    whole, host = MemoryHost(), MemoryHost(stop_at=13)
    undisturbed = Loop(ToyTask(evaluated=True), settings, whole)
    assert undisturbed.run()
    assert not Loop(ToyTask(evaluated=True), settings, host).run()
    assert list(host.saved) == [10, 13]
    resumed = Loop(ToyTask(evaluated=True), settings, host)
    assert resumed.run()
    assert alike(undisturbed.state, resumed.state)
    assert without_times(whole) == without_times(host)
    assert resumed.state.evaluation == undisturbed.state.evaluation != {}
    assert Loop(ToyTask(evaluated=True), settings, host).run()  # nothing is left to do


def test_a_run_cut_off_goes_back_to_its_last_checkpoint_and_repeats():
    whole, host = MemoryHost(), MemoryHost()
    undisturbed = Loop(ToyTask(), SETTINGS, whole)
    undisturbed.run()
    with pytest.raises(JobError):
        Loop(ToyTask(broken_at=27), SETTINGS, host).run()
    assert max(host.saved) == 20 and host.records[-1]["step"] == 27
    resumed = Loop(ToyTask(), SETTINGS, host)
    resumed.run()
    assert alike(undisturbed.state, resumed.state)
    assert without_times(whole) == without_times(host)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_add_up_to_the_batch(micro_batch):
    whole, host = MemoryHost(), MemoryHost()
    Loop(ToyTask(), SETTINGS, whole).run()
    Loop(ToyTask(), replace(SETTINGS, micro_batch=micro_batch), host).run()
    assert host.losses() == pytest.approx(whole.losses(), rel=1e-4)
    assert host.losses()[-1] < 0.7 * host.losses()[0]
    assert [record["accuracy"] for record in host.records] == [record["accuracy"] for record in whole.records]


def test_a_loss_that_is_not_finite_ends_the_run_and_changes_nothing():
    host = MemoryHost()
    loop = Loop(ToyTask(broken_at=12), SETTINGS, host)
    with pytest.raises(JobError, match="loss is nan at step 12") as raised:
        loop.run()
    assert raised.value.hint
    assert max(host.saved) == 10 and loop.state.step == 12
    assert all(value.isfinite().all() for value in loop.state.tensors().values())


def test_bfloat16_keeps_weights_and_average_in_float32():
    host, exact = MemoryHost(), MemoryHost()
    loop = Loop(ToyTask(), replace(SETTINGS, dtype="bfloat16"), host)
    loop.run()
    Loop(ToyTask(), SETTINGS, exact).run()
    assert {value.dtype for value in loop.state.tensors().values()} == {torch.float32, torch.int64}
    assert host.losses() == pytest.approx(exact.losses(), rel=0.1)
    assert host.losses()[0] != exact.losses()[0]


def test_the_task_sees_the_global_batch_of_every_step():
    loop = Loop(ToyTask(), replace(SETTINGS, micro_batch=2), MemoryHost())
    loop.run()
    assert loop.state.extra["taken"].sum() == SETTINGS.steps * SETTINGS.batch
    assert loop.state.extra["taken"].tolist() == [SETTINGS.steps * SETTINGS.batch // ROWS] * ROWS


def test_settings_of_pace_and_place_make_no_other_run():
    same = replace(SETTINGS, micro_batch=3, sharding="fsdp", log_every=9, checkpoint_every=9)
    assert same.identity() == SETTINGS.identity() != replace(SETTINGS, dtype="bfloat16").identity()


@pytest.mark.parametrize(("schedule", "halfway", "end"), [("cosine", 0.505, 0.01), ("linear", 0.505, 0.01)])
def test_the_learning_rate_rises_then_falls(schedule, halfway, end):
    rates = [learning_rate(step, 110, 1.0, 10, schedule) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (rates[60], rates[110]) == pytest.approx((halfway, end))


def test_a_constant_learning_rate_only_warms_up():
    assert [learning_rate(step, 20, 2.0, 2, "constant") for step in (0, 1, 2, 19)] == [1.0, 2.0, 2.0, 2.0]
