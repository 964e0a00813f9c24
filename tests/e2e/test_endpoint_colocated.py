"""Both models on each of two simulated GPUs: requests spread over both, and images are those of the split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.served import Served, replicas, serve

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = serve(tmp_path_factory.mktemp("pair") / "log", "--placement", "colocated", "--drafters", "2")
    yield server
    assert server.stop() == 0, server.log.read_text()


def cpu_s(pid: int) -> float:
    """Seconds of user time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS


def files(answer: tuple[int, dict[str, Any]]) -> list[str]:
    status, body = answer
    assert status == 200, body
    return [image["b64_json"] for image in body["data"]]


def test_two_replicas_with_both_models_share_the_requests_and_make_the_splits_bytes(pair: Served, served: Served):
    assert not replicas("Drafter", pair) and not replicas("Refiner", pair)
    pids = replicas("Colocated", pair)
    assert len(pids) == 2
    before = [cpu_s(pid) for pid in pids]
    asked = [partial(served.post, prompt=str(i % 12), n=3, seed=i, deterministic=True) for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda ask: files(pair.post(**ask.keywords)), asked))
    worked = [cpu_s(pid) - start for pid, start in zip(pids, before, strict=True)]
    assert min(worked) > 0.2 * max(worked) > 0, worked
    assert found == [files(ask()) for ask in asked]
    events = pair.stream(prompt="face", seed=1)
    assert [name for name, _ in events][-1] == "image_generation.completed"
    assert {event.get("made_by") for name, event in events if "partial" in name} == {"drafter", "refiner"}
