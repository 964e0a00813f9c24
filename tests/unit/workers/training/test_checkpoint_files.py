"""Checkpoints of a training in a store: whole or not there, pruned, damaged ones passed over, errors in one line."""

import errno
import io
import os
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.memory_store import Disk, MemoryStore
from support.toy_task import SETTINGS, MemoryHost, ToyTask
from tandem.errors import JobError, OutputError
from tandem.training.loop import Loop
from tandem.training.parallel import Workers
from tandem.training.state import LoopState
from tandem_workers.storage.places import open_store
from tandem_workers.training.checkpoint_files import CheckpointFiles, read_average
from tandem_workers.training.checkpoint_record import CheckpointRecord, committed_steps, record_path

ALONE = Workers(0, 1, torch.device("cpu"))


class StoreHost(MemoryHost):
    """Keeps its checkpoints in a store."""

    def __init__(self, store, keep=2, stop_at=None) -> None:
        super().__init__(stop_at)
        self.said: list[str] = []
        self.files = CheckpointFiles(store, ALONE, keep, self.said.append)

    def load(self, state: LoopState) -> None:
        self.files.load(state)

    def save(self, state: LoopState) -> None:
        self.files.save(state)


class FailingStore(MemoryStore):
    """No room for more files from some step on. `late`: there is room for all but the record."""

    late = False

    def _put(self, path, data):
        if "00000030" in path and (path.endswith("record.json") or not self.late):
            raise OutputError(f"cannot write {path}: No space left on device")
        return super()._put(path, data)


@pytest.fixture
def trained(store):
    """A run of 50 steps with checkpoints at 40 and 50."""
    loop = Loop(ToyTask(evaluated=True), SETTINGS, StoreHost(store))
    assert loop.run()
    return loop


def resumed(store, **settings) -> tuple[Loop, StoreHost]:
    host = StoreHost(store)
    loop = Loop(ToyTask(evaluated=True), replace(SETTINGS, **settings), host)
    loop.run()
    return loop, host


def alike(one: LoopState, other: LoopState) -> bool:
    theirs = other.tensors()
    return all(torch.equal(value, theirs[name]) for name, value in one.tensors().items())


def test_the_state_comes_back_bit_for_bit_and_the_newest_are_kept(store, trained):
    assert committed_steps(store) == [50, 40]
    loop, host = resumed(store)
    assert loop.state.step == 50 and alike(trained.state, loop.state) and host.records == []
    assert loop.state.numbers() == trained.state.numbers()
    assert {path.split("/")[1] for path in store.list_files("checkpoints")} == {"00000040", "00000050"}


def test_a_damaged_checkpoint_is_passed_over_and_made_again(store, trained):
    file = next(path for path in store.list_files("checkpoints/00000050") if path.endswith(".safetensors"))
    data = bytearray(store.read(file))
    data[-1] ^= 1
    store.replace(file, bytes(data))
    loop, host = resumed(store)
    assert [line.split(":")[0] for line in host.said] == ["checkpoint of step 50 is damaged"]
    assert alike(trained.state, loop.state) and committed_steps(store) == [50, 40]
    store.replace(record_path(50), b"{}")
    assert "checkpoint of step 50 is not the record of a checkpoint" in resumed(store)[1].said[0]


def test_a_run_killed_while_saving_leaves_no_checkpoint_and_its_files_go(store, trained):
    for path in store.list_files("checkpoints/00000050"):
        if path.endswith("record.json"):
            store.remove(path)
    left = set(store.list_files("checkpoints/00000050"))
    assert left and committed_steps(store) == [40]
    loop, _ = resumed(store)
    assert alike(trained.state, loop.state)
    assert left.isdisjoint(store.list_files("checkpoints/00000050"))


@pytest.mark.parametrize("late", [False, True])
def test_without_room_the_checkpoint_before_stays(late):
    store = FailingStore(Disk(), "place")
    store.late = late
    with pytest.raises(OutputError, match="No space left"):
        Loop(ToyTask(), SETTINGS, StoreHost(store)).run()
    assert committed_steps(store) == [20, 10]
    assert resumed(MemoryStore(store.disk, "place"))[0].state.step == 50


def test_without_room_for_temporary_files_it_says_so(store, monkeypatch):
    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkdtemp", full)  # torch makes a folder that tempfile.tempdir lacks
    with pytest.raises(OutputError, match=r"cannot write a checkpoint in .*: No space left") as raised:
        Loop(ToyTask(), SETTINGS, StoreHost(store)).run()
    assert raised.value.hint and committed_steps(store) == []


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(store):
    with pytest.raises(JobError, match="loss is nan at step 12"):
        Loop(ToyTask(broken_at=12), SETTINGS, StoreHost(store)).run()
    assert committed_steps(store) == [10]


def test_two_runs_in_one_place_do_not_mix(store):
    Loop(ToyTask(), replace(SETTINGS, steps=10), StoreHost(store)).run()
    other = CheckpointFiles(store, ALONE, 2, print)
    state = Loop(ToyTask(), replace(SETTINGS, seed=1), MemoryHost()).state
    state.step = 10
    with pytest.raises(OutputError, match="another run has saved step 10"):
        other.save(state)


def test_the_average_is_read_without_the_run(store, trained):
    step, tensors = read_average(store)
    assert step == 50 and tensors.keys() == trained.state.average.tensors.keys()
    assert all(torch.equal(value, trained.state.average.tensors[name]) for name, value in tensors.items())
    with pytest.raises(OutputError, match="holds no checkpoint"):
        read_average(open_store(f"{store.uri}/other"))


def test_weights_in_another_memory_format_are_saved():
    state = Loop(ToyTask(), SETTINGS, MemoryHost()).state
    state.extra["strided"] = torch.arange(6.0).view(2, 3).t()
    files = CheckpointFiles(MemoryStore(Disk(), "place"), ALONE, 1, print)
    state.step = 1
    files.save(state)
    state.extra["strided"] = torch.zeros(3, 2)
    assert files.load(state) and torch.equal(state.extra["strided"], torch.arange(6.0).view(2, 3).t())


def test_a_strangers_checkpoint_runs_no_code(store, trained, tmp_path):
    """Neither where torch.distributed.checkpoint would look for a pickle, nor under the name of a file of ours."""

    class Exploit:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    bomb = io.BytesIO()
    pickle.dump(Exploit(), bomb)
    record = CheckpointRecord.read(store, 50)
    store.replace("checkpoints/00000050/.metadata", bomb.getvalue())
    store.replace(record.files[0].path, bomb.getvalue())
    assert len(resumed(store)[1].said) == 1
    forged = replace(
        record, files=(store.put_once("checkpoints/00000050/00112233aabbccdd/a.safetensors", bomb.getvalue()),)
    )
    store.replace(record_path(50), forged.to_json())
    with pytest.raises(OutputError, match="cannot read a checkpoint"):
        resumed(store)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["../../etc/passwd", "checkpoints/00000040/0011223344556677/x.safetensors"])
def test_a_record_names_files_of_its_own_checkpoint_alone(store, trained, path):
    record = CheckpointRecord.read(store, 50)
    store.replace(record_path(50), replace(record, files=(replace(record.files[0], path=path),)).to_json())
    assert "is the record of another checkpoint" in resumed(store)[1].said[0]
