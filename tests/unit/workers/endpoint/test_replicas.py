"""Replicas of the endpoint without Ray: a prefix goes on to a refiner, lost refiners are asked again, faults show."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray.exceptions import RayActorError

from tandem.config import SamplingConfig
from tandem.errors import JobError
from tandem.images import Provenance, read_provenance
from tandem_workers.endpoint.decoding import Pixels, PreviewPixels, Tokens
from tandem_workers.endpoint.replicas import DraftReplica, FileEncoder, RefineReplica, ReplicaSettings
from tandem_workers.endpoint.retries import ATTEMPTS
from tandem_workers.requests.messages import Drafted, ImageRequest, Pictures, Preview

REQUEST = ImageRequest(label=1, seed=7, n=2, draft_steps=2, sampling=SamplingConfig(), preview_scales=frozenset({1, 3}))
SETTINGS = ReplicaSettings(batch=4, batch_wait_s=0.0, warm_up=REQUEST, warm_prefix=5)


@pytest.fixture(autouse=True)
def no_metrics(monkeypatch):
    """Ray's metrics need a cluster."""

    class Silent:
        def __init__(self, *of: Any) -> None: ...
        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *of: Any) -> None: ...

    monkeypatch.setattr("tandem_workers.endpoint.replicas.BatchMetrics", Silent)


class FakeWork:
    """Looks at scale 1, or 3 behind a prefix, and then what the stage makes. `fault` is raised after the warm-up."""

    def __init__(self, refines: bool, fault: Exception | None = None):
        self.refines, self.fault, self.calls = refines, fault, 0

    def __call__(self, rows, size):
        self.calls += 1
        if self.fault and self.calls > 1:
            raise self.fault
        seconds = {"refine": 0.2, "decode": 0.1} if self.refines else {"draft": 0.3}
        for i, row in enumerate(rows):
            assert len(row.prefix) == (5 if self.refines else 0)
            yield i, PreviewPixels(3 if self.refines else 1, np.zeros((2, 2, 3), np.uint8))
            if self.refines:
                yield i, Pixels(np.full((2, 2, 3), row.index, np.uint8), seconds)
            else:
                yield i, Tokens(np.full(5, row.index, np.uint16), seconds)


def encode(pixels, request, index):
    return bytes([int(pixels.max()), request.label, index])


class FakeRefiner:
    """A handle whose first `lost` calls end with a lost actor, streams after one preview of the first image."""

    def __init__(self, lost: int = 0):
        self.lost, self.asked, self.cancelled = lost, [], 0
        self.generate = self.stream = self

    def options(self, stream: bool) -> FakeRefiner:
        return FakeRefiner.Streaming(self)

    def remote(self, drafted: Drafted) -> Any:
        self.asked.append(drafted)
        return Answer(self, self.answer(drafted))

    async def answer(self, drafted: Drafted) -> Pictures:
        if len(self.asked) <= self.lost:
            raise RayActorError()
        return Pictures([b"a", b"b"], drafted.seconds | {"refine": 0.2})

    class Streaming:
        def __init__(self, of: FakeRefiner):
            self.of, self.stream = of, self

        def remote(self, drafted: Drafted) -> Any:
            self.of.asked.append(drafted)
            return Answer(self.of, events=self.events(drafted))

        async def events(self, drafted: Drafted) -> AsyncIterator[Preview | Pictures]:
            yield Preview(0, 3, "refiner", b"p0")
            if len(self.of.asked) <= self.of.lost:
                raise RayActorError()
            yield Preview(1, 3, "refiner", b"p1")
            yield Pictures([b"a", b"b"], drafted.seconds)


class Answer:
    def __init__(self, of: FakeRefiner, value: Any = None, events: Any = None):
        self.of, self.value, self.events = of, value, events

    def __await__(self):
        return self.value.__await__()

    def __aiter__(self):
        return self.events

    def cancel(self):
        self.of.cancelled += 1


def drafter(refiner: FakeRefiner, fault: Exception | None = None) -> DraftReplica:
    return DraftReplica(lambda: FakeWork(refines=False, fault=fault), encode, SETTINGS, refiner)


async def collect(events):
    return [event async for event in events]


def test_the_prefix_goes_straight_to_the_refiner():
    refiner = FakeRefiner()

    async def test():
        return await drafter(refiner).generate(REQUEST)

    pictures = asyncio.run(test())
    assert pictures == Pictures([b"a", b"b"], {"draft": 0.3, "refine": 0.2})
    (drafted,) = refiner.asked
    assert drafted.request == REQUEST
    np.testing.assert_array_equal(drafted.tokens, [[0] * 5, [1] * 5])


def test_the_seconds_of_all_batches_of_a_request_count():
    refiner = FakeRefiner()

    async def test():
        return await drafter(refiner).generate(replace(REQUEST, n=9))  # batches of 4, 4 and 1

    assert asyncio.run(test()).seconds["draft"] == pytest.approx(0.9)


def test_without_draft_steps_nothing_is_drafted():
    refiner = FakeRefiner()
    work = FakeWork(refines=False)

    async def test():
        replica = DraftReplica(lambda: work, encode, SETTINGS, refiner)
        alone = ImageRequest(label=1, seed=7, n=2, draft_steps=0, sampling=SamplingConfig())
        return await replica.generate(alone)

    asyncio.run(test())
    assert refiner.asked[0].tokens.shape == (2, 0)
    assert work.calls == 1  # the warm-up


@pytest.mark.parametrize(("on_gpu", "sizes"), [(False, [6]), (True, [1, 2, 4, 6])])
def test_the_thread_that_decodes_warms_up_for_every_size_that_a_gpu_sees(on_gpu, sizes):
    """What cuDNN plans for a shape it keeps for the thread that asked."""
    seen = []

    class Watched(FakeWork):
        def __call__(self, rows, size):
            seen.append((threading.current_thread().name, size))
            yield from super().__call__(rows, size)

    async def test():
        settings = replace(SETTINGS, batch=6, on_gpu=on_gpu)
        await DraftReplica(lambda: Watched(refines=False), encode, settings, FakeRefiner()).generate(REQUEST)

    asyncio.run(test())
    assert [size for _, size in seen] == [*sizes, 2]
    assert len({thread for thread, _ in seen}) == 1


@pytest.mark.parametrize("lost", [0, 1, ATTEMPTS - 1])
def test_a_lost_refiner_is_asked_again_and_no_preview_comes_twice(lost):
    refiner = FakeRefiner(lost)

    async def test():
        return await collect(drafter(refiner).stream(REQUEST))

    events = asyncio.run(test())
    previews = [(event.image, event.scale, event.made_by) for event in events if isinstance(event, Preview)]
    assert previews == [(0, 1, "drafter"), (1, 1, "drafter"), (0, 3, "refiner"), (1, 3, "refiner")]
    assert events[-1].files == [b"a", b"b"]
    assert len(refiner.asked) == lost + 1


@pytest.mark.parametrize("way", ["generate", "stream"])
def test_refiners_that_are_always_lost_are_given_up(way):
    refiner = FakeRefiner(lost=99)

    async def test():
        replica = drafter(refiner)
        await (replica.generate(REQUEST) if way == "generate" else collect(replica.stream(REQUEST)))

    with pytest.raises(RayActorError):
        asyncio.run(test())
    assert len(refiner.asked) == ATTEMPTS


def test_who_stops_listening_cancels_the_refiner():
    refiner = FakeRefiner()

    async def test():
        async for event in drafter(refiner).stream(REQUEST):
            if event.made_by == "refiner":
                break
        await asyncio.sleep(0)

    asyncio.run(test())
    assert refiner.cancelled == 1


def test_a_refiner_makes_files_and_says_how_long_each_stage_took():
    async def test():
        replica = RefineReplica(lambda: FakeWork(refines=True), encode, SETTINGS)
        return await collect(replica.stream(Drafted(REQUEST, np.ones((2, 5), np.uint16), {"draft": 0.3})))

    first, second, pictures = asyncio.run(test())
    assert [(event.image, event.scale, event.made_by) for event in (first, second)] == [
        (0, 3, "refiner"),
        (1, 3, "refiner"),
    ]
    assert pictures.files == [bytes([0, 1, 0]), bytes([1, 1, 1])]
    assert pictures.seconds.pop("encode") >= 0
    assert pictures.seconds == {"draft": 0.3, "refine": 0.2, "decode": 0.1}


@pytest.mark.parametrize(("fault", "sick"), [(RuntimeError("CUDA error"), True), (JobError("not finite"), False)])
def test_a_fault_of_the_device_makes_a_replica_unhealthy_and_one_of_the_weights_does_not(fault, sick):
    async def test():
        replica = drafter(FakeRefiner(), fault)
        replica.check_health()
        with pytest.raises(type(fault)):
            await replica.generate(REQUEST)
        if sick:
            with pytest.raises(RuntimeError, match=r"drafter: RuntimeError.*CUDA error"):
                replica.check_health()
        else:
            replica.check_health()

    asyncio.run(test())


def test_a_replica_reports_its_process_and_no_overdue_batch():
    async def test():
        replica = drafter(FakeRefiner())
        await replica.generate(REQUEST)
        return replica.record_routing_stats()

    report = asyncio.run(test())
    assert (report["pid"], report["overdue"]) == (os.getpid(), "")


def test_a_file_has_the_size_that_was_asked_for_and_says_so():
    provenance = Provenance("tandem 0.1", "d" * 64, "r" * 64, "v" * 64, 0, 1)
    encoder = FileEncoder(provenance, ("ant", "bee"))
    pixels = np.zeros((16, 16, 3), np.uint8)
    for size, settings in ((None, None), ((48, 32), {"size": [48, 32]})):
        data = encoder(pixels, ImageRequest(1, 5, 1, 1, SamplingConfig(), size=size), 0)
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (size or (16, 16))
        assert read_provenance(data).settings == settings
