"""The HTTP API with an engine of plain Python behind it: no models, no Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.testclient import TestClient

from tandem.class_names import ClassNames
from tandem.config import SamplingConfig
from tandem_workers.endpoint.api import create_api
from tandem_workers.endpoint.gateway import Gateway, GatewaySettings, Watcher
from tandem_workers.requests.api_schema import About
from tandem_workers.requests.messages import ImageRequest, Pictures, Preview

CLASS_NAMES = ("ant", "bee, honeybee", "Cat, tom", "tom", "dog")  # as in ImageNet: synonyms, one of them a class too
PATCH_NUMS = (1, 2, 3, 4)
K, NUM_TOKENS, SIZE = len(PATCH_NUMS), 30, "16x16"
SAMPLING = SamplingConfig(cfg=3.0, top_k=0, top_p=0.9, temperatures=(1.0,))
MODEL = "tandem-test"
ABOUT = About(MODEL, 16, PATCH_NUMS, 64, ClassNames(CLASS_NAMES), 3, SAMPLING, 1764000000, {"drafter": "d" * 64})
PATH = "/v1/images/generations"
STREAM_PATH = f"{PATH}/stream"


@dataclass
class FakeEngine:
    """Files that say what was asked for, and previews at the scales asked for, image by image.

    `fault` is raised instead of an answer; in a stream after the previews. With `hang`, nothing comes in place of it.
    `lost` says what is missing.
    """

    fault: Exception | None = None
    hang: bool = False
    is_ready: bool = True
    lost: str = ""
    asked: list[ImageRequest] = field(default_factory=list)
    closed: int = 0  # requests that came to an end, whatever it was

    def pictures(self, request: ImageRequest) -> Pictures:
        files = [f"{request.label}/{request.seed}/{i}".encode() for i in range(request.n)]
        return Pictures(files, {"draft": 0.25, "refine": 0.5})

    async def stuck(self) -> None:
        if self.hang:
            await asyncio.Event().wait()
        if self.fault:
            raise self.fault

    async def generate(self, request: ImageRequest) -> Pictures:
        self.asked.append(request)
        try:
            await self.stuck()
            return self.pictures(request)
        finally:
            self.closed += 1

    async def stream(self, request: ImageRequest) -> AsyncIterator[Preview | Pictures]:
        self.asked.append(request)
        try:
            for scale in sorted(request.preview_scales):
                for image in range(request.n):
                    by = "drafter" if scale <= request.draft_steps else "refiner"
                    yield Preview(image, scale, by, f"preview {image}/{scale}".encode())
            await self.stuck()
            yield self.pictures(request)
        finally:
            self.closed += 1

    async def ready(self) -> bool:
        await self.stuck()
        return self.is_ready

    def missing(self) -> str:
        return self.lost


def make_gateway(engine: FakeEngine, watcher: Watcher | None = None, **settings: Any) -> Gateway:
    return Gateway(engine, ABOUT, GatewaySettings(**settings), watcher or Watcher())


def client(gateway: Gateway) -> TestClient:
    """A client that sees what a real one sees: a fault of the server as its answer."""
    return TestClient(create_api(gateway), raise_server_exceptions=False)


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of each server-sent event."""
    assert text.endswith("\n\n")
    found = []
    for block in text[:-2].split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found
