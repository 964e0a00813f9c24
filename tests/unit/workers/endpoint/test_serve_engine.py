"""The ingress's view of the drafters: Ray's errors from other processes become responses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from tandem.config import SamplingConfig
from tandem.errors import JobError
from tandem_workers.endpoint.app import ServeEngine
from tandem_workers.endpoint.retries import ATTEMPTS
from tandem_workers.requests.api_errors import ApiError
from tandem_workers.requests.messages import ImageRequest

REQUEST = ImageRequest(label=0, seed=1, n=1, draft_steps=2, sampling=SamplingConfig())


class FakeDrafter:
    """A handle all of whose calls end with an error."""

    def __init__(self, error: Exception):
        self.error, self.calls = error, 0
        self.generate = self.stream = self.ready = self

    def options(self, stream: bool) -> FakeDrafter:
        return self

    def remote(self, *of: Any) -> FakeDrafter:
        self.calls += 1
        return self

    async def fail(self) -> None:
        raise self.error

    def __await__(self):
        return self.fail().__await__()

    async def __aiter__(self):
        raise self.error
        yield

    def cancel(self) -> None: ...


def wrapped(error: Exception, hops: int) -> Exception:
    """An error wrapped as by Ray, once for each call."""
    for hop in range(hops):
        error = RayTaskError(f"replica{hop}", f"traceback of {hop} at 10.0.0.7", error).as_instanceof_cause()
    return error


def ask(drafter: FakeDrafter, way: str) -> None:
    async def test() -> None:
        engine = ServeEngine(drafter)
        if way == "generate":
            await engine.generate(REQUEST)
        else:
            async for _ in engine.stream(REQUEST):
                pass

    asyncio.run(test())


@pytest.mark.parametrize("way", ["generate", "stream"])
@pytest.mark.parametrize("hops", [1, 2])
def test_an_error_of_a_replica_comes_as_it_was_raised_there(way, hops):
    with pytest.raises(JobError) as caught:
        ask(FakeDrafter(wrapped(JobError("logits are not finite"), hops)), way)
    assert str(caught.value) == "logits are not finite"


@pytest.mark.parametrize("way", ["generate", "stream"])
@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (ActorDiedError(), ATTEMPTS),
        (wrapped(ActorDiedError(), 1), 1),  # the drafter has asked other refiners already
        (DeploymentUnavailableError("Drafter"), 1),
    ],
)
def test_lost_replicas_are_a_503_after_some_tries(way, error, calls):
    drafter = FakeDrafter(error)
    with pytest.raises(ApiError) as caught:
        ask(drafter, way)
    assert (caught.value.status, caught.value.code, drafter.calls) == (503, "replicas_lost", calls)
    assert caught.value.retry_after_s


@pytest.mark.parametrize("error", [ActorDiedError(), DeploymentUnavailableError("Drafter")])
def test_without_replicas_the_server_is_not_ready(error):
    assert asyncio.run(ServeEngine(FakeDrafter(error)).ready()) is False
