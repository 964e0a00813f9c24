"""What a worker of Ray Train asks its surroundings: whether to stop, and whether a node is about to go."""

from types import SimpleNamespace

import pytest
import torch

from support.toy_task import SETTINGS, ToyTask
from tandem.training.parallel import Workers
from tandem_workers.training import train_worker
from tandem_workers.training.train_worker import RayHost, StopFlag, WorkerJob, is_of_another_worker


class Remote:
    """A desk whose answers come when `ray` below is asked for them."""

    def __init__(self, answers) -> None:
        self.is_stopping = SimpleNamespace(remote=lambda: next(answers))


@pytest.fixture
def ray(monkeypatch):
    """Answers are there at once, unless they are late."""
    fake = SimpleNamespace(
        wait=lambda refs, timeout: (refs if refs[0] != "late" else [], []),
        get=lambda answer: answer,
        train=SimpleNamespace(get_preemption_info=lambda: None),
    )
    monkeypatch.setattr(train_worker, "ray", fake)
    monkeypatch.setattr(train_worker, "ASKED_EVERY_S", -1.0)
    return fake


def test_the_wish_to_stop_is_asked_for_without_waiting(ray):
    flag = StopFlag(Remote(iter([False, "late"])))
    assert [flag() for _ in range(4)] == [False] * 4  # asked, answered and asked again, which takes long
    flag = StopFlag(Remote(iter([False, True, False, False])))
    assert [flag() for _ in range(4)] == [False, False, True, True]


def test_each_notice_of_a_node_that_goes_is_a_reason_to_save_once(ray, store):
    job = WorkerJob(ToyTask(), SETTINGS, store, Remote(iter([])), None, 2, 1, False, False)
    host = RayHost(job, Workers(0, 1, torch.device("cpu")))
    notices = iter([None, ["node 1"], ["node 1"], ["node 1", "node 2"], None])
    ray.train.get_preemption_info = lambda: (
        None if (nodes := next(notices)) is None else SimpleNamespace(preempted_node_ids=nodes)
    )
    assert [host.is_leaving() for _ in range(5)] == [False, True, False, True, False]


def test_what_follows_from_a_lost_worker_is_not_taken_for_its_cause():
    assert is_of_another_worker(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert is_of_another_worker(torch.distributed.DistBackendError("NCCL error"))
    assert not is_of_another_worker(RuntimeError("shape mismatch"))
