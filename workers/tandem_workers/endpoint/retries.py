"""Calls between deployments that are retried when a replica is lost.

Decoding has no side effects, so a request whose replica is lost can be sent to another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from tandem_workers.requests.messages import Drafted, Pictures, Preview

LOST = (RayActorError, ReplicaUnavailableError, WorkerCrashedError, ObjectLostError)
ATTEMPTS = 4


def is_final(error: Exception, attempt: int) -> bool:
    """Whether to give up. An error that a replica raised because it lost the next one was retried there already."""
    return isinstance(error, RayTaskError) or attempt + 1 == ATTEMPTS


async def ask(call: Callable[[], Any]) -> Any:
    """The result of `call()`, a Serve response. If the caller is cancelled, so is the request."""
    for attempt in range(ATTEMPTS):
        response = call()
        try:
            return await response
        except LOST as error:
            if is_final(error, attempt):
                raise
        except asyncio.CancelledError:
            response.cancel()
            raise
    raise AssertionError("unreachable")


async def ask_stream(call: Callable[[], Any]) -> AsyncGenerator[Any, None]:
    """The events of `call()`, a streaming Serve response. A retry does not repeat previews that were already sent."""
    seen: set[tuple[int, int]] = set()
    for attempt in range(ATTEMPTS):
        response, complete = call(), False
        try:
            async for event in response:
                if isinstance(event, Preview):
                    if (event.image, event.scale) in seen:
                        continue
                    seen.add((event.image, event.scale))
                yield event
            complete = True
            return
        except LOST as error:
            if is_final(error, attempt):
                raise
        finally:
            if not complete:
                response.cancel()


@dataclass(frozen=True)
class RemoteRefiners:
    """The refiners of another deployment, with the same methods as a refiner in this process."""

    handle: DeploymentHandle[Any]

    async def ready(self) -> bool:
        return bool(await self.handle.ready.remote())

    async def generate(self, drafted: Drafted) -> Pictures:
        pictures: Pictures = await ask(partial(self.handle.generate.remote, drafted))
        return pictures

    def stream(self, drafted: Drafted) -> AsyncGenerator[Preview | Pictures, None]:
        return ask_stream(partial(self.handle.options(stream=True).stream.remote, drafted))
