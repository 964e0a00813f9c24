"""Replicas launch the next batch before they fetch the results of the last, and make the same bytes as one by one.

A stand-in for a GPU computes when a result is fetched: until then its copies in host memory hold something else.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from support.stage_inputs import rows, settings, with_room_for
from tandem import collaborative, sampling, transfers
from tandem.errors import InputError, JobError
from tandem_workers.dataset.shards import ShardRows
from tandem_workers.stages import drafter, refiner, shard_batches
from tandem_workers.stages.device_queue import DeviceQueue
from tandem_workers.stages.drafter import Drafter
from tandem_workers.stages.refiner import Refiner

BATCHES = 3  # of the shard below


class FakeGpu(DeviceQueue):
    """Copies arrive when they are waited for. Moments are counted, so that each lasts a second."""

    ahead = 1

    def __init__(self) -> None:
        self.log: list[str] = []
        self.marks = 0
        self.copies: list[tuple[int, Tensor, Tensor]] = []

    def mark(self) -> int:
        self.marks += 1
        return self.marks

    def wait(self, mark: int) -> None:
        self.log.append("fetched")
        for at, host, tensor in self.copies:
            if at < mark:
                host.copy_(tensor)

    def to_host(self, tensor: Tensor) -> Tensor:
        host = torch.zeros(tensor.shape, dtype=tensor.dtype)  # pixels that are not there yet are not finite
        self.copies.append((self.marks, host, tensor))
        return host


@pytest.fixture
def gpu(monkeypatch):
    """The queue of stages that are made after it, and whose log has random numbers and launches too."""
    fake = FakeGpu()
    real = shard_batches.uniforms

    def uniforms(*arguments):
        fake.log.append("random")
        return real(*arguments)

    for module in (drafter, refiner):
        monkeypatch.setattr(module, "queue_of", lambda device: fake)
    monkeypatch.setattr(shard_batches, "uniforms", uniforms)
    for stage in (Drafter, Refiner):
        launch = stage.launch

        def logged(self, *arguments, launch=launch):
            launched = launch(self, *arguments)
            fake.log.append("launched")
            return launched

        monkeypatch.setattr(stage, "launch", logged)
    return fake


def shard() -> ShardRows:
    return rows(0, 8)


@pytest.fixture(scope="module")
def expected(models):
    """One batch after the other, as on a CPU."""
    prefixes = Drafter(models, settings()).load()(shard())
    return prefixes, Refiner(models, settings(), keep_tokens=True).load()(prefixes)


def same_bytes(found, expected) -> None:
    for name in ("prefix", "tokens", "pixels"):
        if hasattr(expected, name):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_the_next_batch_is_launched_before_the_last_is_fetched(models, gpu, expected):
    order = ["random", "launched", "random", "launched", "fetched", "random", "launched", "fetched", "fetched"]
    stage = Drafter(models, settings()).load()
    same_bytes(stage(shard()), expected[0])
    assert gpu.log == order
    gpu.log.clear()
    stage = Refiner(models, settings(), keep_tokens=True).load()
    found = stage(expected[0])
    assert gpu.log == order
    same_bytes(found, expected[1])
    assert {name: found.seconds[name] for name in ("refine", "decode")} == {"refine": BATCHES, "decode": BATCHES}


def test_a_cpu_makes_one_batch_after_the_other(models, gpu, monkeypatch, expected):
    monkeypatch.setattr(FakeGpu, "ahead", DeviceQueue.ahead)
    same_bytes(Drafter(models, settings()).load()(shard()), expected[0])
    assert gpu.log == ["random", "launched", "fetched"] * BATCHES


def test_memory_that_runs_out_behind_a_batch_under_way_spoils_neither(models, gpu, monkeypatch, expected):
    """The first batch has room, the second has not; halves give the same ids in float32."""
    for module, name in ((drafter, "begin_draft"), (refiner, "begin_refine"), (refiner, "decode")):
        plain = getattr(collaborative, name)
        limited, calls = with_room_for(2, plain), []

        def second_on(*arguments, plain=plain, limited=limited, calls=calls, **more):
            calls.append(len(calls))
            return (limited if len(calls) > 1 else plain)(*arguments, **more)

        monkeypatch.setattr(module, name, second_on)
    with pytest.warns(UserWarning, match="draft: out of memory with 3 images at once, now 2"):
        prefixes = Drafter(models, settings()).load()(shard())
    same_bytes(prefixes, expected[0])
    with pytest.warns(UserWarning, match="out of memory with 3 images at once, now 2") as warned:
        found = Refiner(models, settings(), keep_tokens=True).load()(prefixes)
    assert [str(w.message).split(":")[0] for w in warned] == ["refine", "decode"]
    np.testing.assert_array_equal(found.tokens, expected[1].tokens)
    assert np.abs(found.pixels.astype(int) - expected[1].pixels.astype(int)).max() <= 1
    assert [found.ran[name].batch for name in ("draft", "refine", "decode")] == [2, 2, 2]
    assert gpu.log.count("fetched") == 2 * BATCHES


def test_what_is_not_finite_is_found_when_it_is_fetched(models, gpu, monkeypatch, expected):
    stage = Refiner(models, settings()).load()
    monkeypatch.setattr(refiner, "decode", lambda vqvae, ids, source: torch.full((len(ids), 3, 16, 16), torch.nan))
    with pytest.raises(JobError, match="made pixels that are not finite"):
        stage(expected[0])
    stage = Drafter(models, settings()).load()
    with torch.no_grad():
        stage.drafter.class_emb.weight[0] = torch.nan
    with pytest.raises(JobError, match="logits of scales 1 to 2 are not finite"):
        stage(shard())


def test_labels_are_checked_in_host_memory(models, gpu):
    """On a GPU the lookup of a label that is not there would end the process."""
    wrong = shard()
    wrong.label[5] = 99
    with pytest.raises(InputError, match="labels: expected 0 to 3, got 99"):
        Drafter(models, settings()).load()(wrong)


class NoWait:
    """Host memory on its way to a CUDA device."""

    dtype = torch.int64

    def __init__(self, pinned: bool = False):
        self.pinned = pinned

    def pin_memory(self) -> NoWait:
        return NoWait(pinned=True)

    def to(self, device: torch.device, non_blocking: bool = False) -> tuple[bool, bool]:
        return self.pinned, non_blocking


def test_uploads_to_a_gpu_do_not_wait():
    assert transfers.upload(NoWait(), torch.device("cuda:0")) == (True, True)
    assert transfers.upload(NoWait(), torch.device("cpu")) == (False, False)


@pytest.mark.parametrize("stage", ["draft", "refine"])
def test_nothing_that_a_launch_does_reads_from_the_device(models, gpu, monkeypatch, expected, stage):
    """Reading a value makes the host wait for all batches before: by `item`, `tolist`, `bool`, `numpy` or `cpu`."""
    mixed = settings(row_settings=("cfg",))
    made, given = (Drafter(models, mixed), shard()) if stage == "draft" else (Refiner(models, mixed), expected[0])
    made.load()
    given = replace(given, extra={"cfg": [2.0, 1.0] * 4})
    monkeypatch.setattr(collaborative, "check_ids", lambda *of: None)  # which leaves values on a GPU alone
    monkeypatch.setattr(sampling, "is_on_cpu", lambda values: False)  # there numpy takes part
    launching = []

    def forbid(name):
        plain = getattr(Tensor, name)

        def reads(tensor, *arguments, **more):
            assert not launching, f"a launch reads from the device by {name}"
            return plain(tensor, *arguments, **more)

        monkeypatch.setattr(Tensor, name, reads)

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy"):
        forbid(name)
    launch = made.launch

    def watched(*arguments):
        launching.append(True)
        try:
            return launch(*arguments)
        finally:
            launching.clear()

    made.launch = watched
    made(given)
    assert gpu.log.count("launched") == BATCHES
