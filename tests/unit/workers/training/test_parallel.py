"""Two gloo workers: losses of one worker, by DDP and FSDP; errors on both; checkpoints for any number of workers."""

from dataclasses import replace
from functools import partial
from shutil import copytree

import pytest
import torch
import torch.distributed as dist

from support.toy_task import SETTINGS, MemoryHost, ToyTask
from support.toy_tokens import random_tokens, var_task
from support.two_workers import run_in_two
from tandem.errors import OutputError, TandemError
from tandem.training.loop import Loop
from tandem.training.parallel import Workers
from tandem.training.state import LoopSettings
from tandem_workers.storage.local_store import LocalStore
from tandem_workers.training.checkpoint_files import CheckpointFiles, read_average

CPU = torch.device("cpu")
SHARDINGS = ("ddp", "fsdp")
SHORT = replace(SETTINGS, steps=20)
STOPPED = 12


class Host(MemoryHost):
    """Checkpoints in a store, from these workers. `torn`: the one worker that cannot put its files."""

    def __init__(self, store: LocalStore, stop_at: int | None = None, torn: int | None = None) -> None:
        super().__init__(stop_at)
        workers = Workers.here(CPU)
        self.files = CheckpointFiles(store if workers.rank != torn else NoRoom(store.uri), workers, 2, print)

    def load(self, state) -> None:
        self.files.load(state)

    def save(self, state) -> None:
        self.files.save(state)


class NoRoom(LocalStore):
    def put_many(self, files):
        raise OutputError("No space left on device")


def train(store: LocalStore, settings: LoopSettings = SHORT, stop_at: int | None = None, **changes) -> MemoryHost:
    host = Host(store, stop_at)
    Loop(ToyTask(evaluated=True), replace(settings, **changes), host).run()
    return host


def transformer_losses(sharding: str) -> tuple[list[float], float]:
    host = MemoryHost()
    settings = replace(SETTINGS, steps=6, batch=5, micro_batch=2, sharding=sharding)
    loop = Loop(var_task(recompute=True), settings, host, random_tokens())
    loop.run()
    return host.losses(), loop.state.evaluation["heldout_loss"]


def error_of(action) -> str:
    try:
        action()
    except TandemError as error:
        return str(error)
    return "none"


def on_two_workers(folder: str, rank: int) -> dict:
    """Everything that needs two processes, as they take seconds to start."""

    def place(name: str) -> LocalStore:
        return LocalStore(f"{folder}/{name}")

    found: dict = {}
    for sharding in SHARDINGS:
        whole = train(place(sharding), SETTINGS, sharding=sharding, micro_batch=2, checkpoint_every=50)
        found[sharding] = whole.records
        found[f"var by {sharding}"] = transformer_losses(sharding)
    found["bfloat16"] = train(place("bf16"), sharding="fsdp", dtype="bfloat16").losses()
    broken = Loop(ToyTask(broken_at=12), SHORT, MemoryHost())
    found["nan"] = error_of(broken.run), broken.state.step
    torn = Loop(ToyTask(), SHORT, Host(place("torn"), torn=1))
    found["torn"] = error_of(torn.run)
    # stopped by the second worker's wish, and resumed with the other way of sharding
    for first, second in (SHARDINGS, SHARDINGS[::-1]):
        train(place(f"from {first}"), sharding=first, stop_at=STOPPED if rank == 1 else None)
        dist.barrier()
        if rank == 0:
            copytree(f"{folder}/from {first}", f"{folder}/from {first} to one")
        dist.barrier()
        found[f"from {first}"] = train(place(f"from {first}"), sharding=second).losses()
    found["from one"] = train(place("from one"), sharding="fsdp").losses()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module")
def found(folder) -> list[dict]:
    train(LocalStore(f"{folder}/from one"), stop_at=STOPPED)
    return run_in_two(partial(on_two_workers, folder))


@pytest.fixture(scope="module")
def alone(folder) -> list[float]:
    return train(LocalStore(f"{folder}/alone")).losses()


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_workers_have_the_losses_of_one(found, folder, sharding):
    alone = train(LocalStore(f"{folder}/one for {sharding}"), SETTINGS, checkpoint_every=50).records
    for some in found:
        for key, count in (("loss", 50), ("accuracy", 50), ("grad_norm", 50), ("heldout_loss", 1)):
            mine, theirs = ([r[key] for r in records if key in r] for records in (some[sharding], alone))
            assert len(theirs) == count and mine == pytest.approx(theirs, rel=1e-4)


def test_bfloat16_under_fsdp_comes_near(alone, found):
    assert found[0]["bfloat16"] == pytest.approx(alone, rel=0.1) and found[0]["bfloat16"] != alone


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_transformer_is_trained_by_both(found, sharding):
    expected, heldout = transformer_losses(sharding)  # by one worker
    for some in found:
        assert some[f"var by {sharding}"][0] == pytest.approx(expected, rel=1e-4)
        assert some[f"var by {sharding}"][1] == pytest.approx(heldout, rel=1e-4)


def test_errors_of_one_worker_end_all_with_the_same_line(found):
    assert [some["nan"] for some in found] == [("loss is nan at step 12", 12)] * 2
    assert [some["torn"] for some in found] == ["No space left on device"] * 2


@pytest.mark.parametrize("first", SHARDINGS)
def test_any_sharding_and_number_of_workers_goes_on_from_two_workers(alone, found, folder, first):
    rest = pytest.approx(alone[STOPPED:], rel=1e-4)
    assert found[0][f"from {first}"] == found[1][f"from {first}"] == rest
    assert train(LocalStore(f"{folder}/from {first} to one")).losses() == rest


def test_two_workers_go_on_from_one(alone, found):
    assert found[0]["from one"] == pytest.approx(alone[STOPPED:], rel=1e-4)


def test_the_average_of_sharded_weights_is_read_whole(found, folder):
    (_, ddp), (_, fsdp) = (read_average(LocalStore(f"{folder}/{name}")) for name in SHARDINGS)
    assert ddp.keys() == fsdp.keys()
    assert all(torch.allclose(ddp[name], fsdp[name], rtol=1e-3, atol=1e-5) for name in ddp)
