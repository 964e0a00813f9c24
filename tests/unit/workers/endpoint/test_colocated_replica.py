"""Drafter and refiner in one replica of the endpoint: what the two make apart, by turns on one device."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_replicas import REQUEST, SETTINGS, FakeRefiner, FakeWork, collect, encode, no_metrics  # noqa: F401

from tandem_workers.endpoint.decoding import DraftDecoder, RefineDecoder
from tandem_workers.endpoint.replicas import ColocatedReplica, DraftReplica, RefineReplica, ReplicaSettings
from tandem_workers.models.model_set import resolve_models
from tandem_workers.requests.messages import Drafted, Pictures, Preview


def colocated(draft: FakeWork, refine: FakeWork) -> ColocatedReplica:
    return ColocatedReplica(lambda: draft, lambda: refine, encode, SETTINGS)


def test_a_colocated_replica_makes_what_a_drafter_and_a_refiner_make():
    async def test():
        replica = colocated(FakeWork(refines=False), FakeWork(refines=True))
        assert await replica.ready()
        return await replica.generate(REQUEST), await collect(replica.stream(REQUEST))

    pictures, events = asyncio.run(test())
    assert pictures.files == events[-1].files == [bytes([0, 1, 0]), bytes([1, 1, 1])]
    assert pictures.seconds.pop("encode") >= 0
    assert pictures.seconds == {"draft": 0.3, "refine": 0.2, "decode": 0.1}
    previews = [(event.image, event.scale, event.made_by) for event in events if isinstance(event, Preview)]
    assert previews == [(0, 1, "drafter"), (1, 1, "drafter"), (0, 3, "refiner"), (1, 3, "refiner")]


class NextRefiner(FakeRefiner):
    """The handle of a refiner that is in this process after all."""

    def __init__(self, refiner: RefineReplica):
        super().__init__()
        self.refiner = refiner

    async def answer(self, drafted: Drafted) -> Pictures:
        return await self.refiner.generate(drafted)


def test_colocated_images_have_the_bytes_of_the_split(tiny_models):
    models = resolve_models(*tiny_models.values(), random_weights=False)
    label = replace(REQUEST, draft_steps=1, n=5, deterministic=True, preview_scales=frozenset())
    prefix = models.drafter_config.pyramid.offsets[1]
    settings = ReplicaSettings(batch=4, batch_wait_s=0.0, warm_up=replace(label, n=1), warm_prefix=prefix)
    works = partial(DraftDecoder, models, "float32", 1), partial(RefineDecoder, models, "float32", 1)
    requests = [replace(label, seed=seed) for seed in range(4)]

    def pixels(values, request, index):
        return values.tobytes()

    async def test():
        split = DraftReplica(works[0], pixels, settings, NextRefiner(RefineReplica(works[1], pixels, settings)))
        both = ColocatedReplica(*works, pixels, settings)
        found = [await asyncio.gather(*map(replica.generate, requests)) for replica in (split, both)]
        return [[pictures.files for pictures in all_of_one] for all_of_one in found]

    threads = torch.get_num_threads()
    apart, together = asyncio.run(test())
    torch.set_num_threads(threads)
    assert together == apart and len({file for files in apart for file in files}) == 20


def test_the_two_models_of_a_colocated_replica_take_turns():
    """They share a GPU: activations of both at once might not fit, and neither would be done sooner."""
    at_work, most = [], []

    class Slow(FakeWork):
        def __call__(self, rows, size):
            at_work.append(self)
            most.append(len(at_work))
            threading.Event().wait(0.002)
            yield from super().__call__(rows, size)
            at_work.remove(self)

    async def test():
        replica = colocated(Slow(refines=False), Slow(refines=True))
        await asyncio.gather(*(replica.generate(replace(REQUEST, n=3, seed=seed)) for seed in range(8)))

    asyncio.run(test())
    assert max(most) == 1 and len(most) > 6


@pytest.mark.parametrize("stage", ["drafter", "refiner"])
def test_a_fault_of_either_model_makes_a_colocated_replica_unhealthy(stage):
    fault = RuntimeError("CUDA error")

    async def test():
        faults = {name: fault if name == stage else None for name in ("drafter", "refiner")}
        replica = colocated(FakeWork(False, faults["drafter"]), FakeWork(True, faults["refiner"]))
        replica.check_health()
        with pytest.raises(RuntimeError, match="CUDA error"):
            await replica.generate(REQUEST)
        with pytest.raises(RuntimeError, match=rf"{stage}: RuntimeError.*CUDA error"):
            replica.check_health()

    asyncio.run(test())
