"""The page and its API, with an engine that paints: no models, no Ray, so that a test costs what the browser does."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from support.api_server import listening
from tandem.checkpoints.fine_tuning import FineTuned
from tandem.class_names import ClassNames
from tandem.zoo import EMBEDDED_SAMPLING
from tandem_workers.endpoint.gateway import Gateway, GatewaySettings
from tandem_workers.requests.api_schema import About
from tandem_workers.requests.messages import ImageRequest, Pictures, Preview

NAMES = ("face", "person", "hand", "heart", "clock", "flag", "mammal", "fruit", "vehicle", "building", "sign", "shape")
PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8)
K, SIZE, DRAFT_STEPS = len(PATCH_NUMS), 64, 5
MODEL = "tandem-painted"


def painted(request: ImageRequest, index: int, scale: int) -> bytes:
    """A file of `PATCH_NUMS[scale - 1]` squared fields; which colours they have, the request says."""
    side = PATCH_NUMS[scale - 1]
    start = hash((request.label, request.seed, index, request.draft_steps)) % 2**24
    fields = Image.new("RGB", (side, side))
    fields.putdata([((start + 40 * i) % 256, (start // 256 + 9 * i) % 256, start // 65536) for i in range(side * side)])
    file = io.BytesIO()
    fields.resize((SIZE, SIZE), Image.Resampling.NEAREST).save(file, request.codec)
    return file.getvalue()


@dataclass
class PaintingEngine:
    """Paints each scale. `asked` are its requests; with `hang`, nothing comes."""

    asked: list[ImageRequest] = field(default_factory=list)
    hang: bool = False

    async def admit(self, request: ImageRequest) -> None:
        if self.hang:
            await asyncio.Event().wait()
        self.asked.append(request)

    def pictures(self, request: ImageRequest) -> Pictures:
        files = [painted(request, index, K) for index in range(request.n)]
        return Pictures(files, {"draft": 0.2, "refine": 0.05, "encode": 0.001})

    async def generate(self, request: ImageRequest) -> Pictures:
        await self.admit(request)
        return self.pictures(request)

    async def stream(self, request: ImageRequest) -> AsyncGenerator[Preview | Pictures, None]:
        await self.admit(request)
        for scale in sorted(request.preview_scales):
            for index in range(request.n):
                by = "drafter" if scale <= request.draft_steps else "refiner"
                yield Preview(index, scale, by, painted(request, index, scale))
        yield self.pictures(request)

    async def ready(self) -> bool:
        return True


@dataclass
class Site:
    url: str
    engine: PaintingEngine


@contextmanager
def page_server(
    names: tuple[str, ...] = NAMES, fine_tuned: dict[str, FineTuned] | None = None, **settings: Any
) -> Iterator[Site]:
    """Serve within the block; `settings` are the gateway's."""
    sha256 = {"drafter": "d" * 64, "refiner": "e" * 64}
    about = About(
        MODEL, SIZE, PATCH_NUMS, 64, ClassNames(names), DRAFT_STEPS, EMBEDDED_SAMPLING, 0, sha256, fine_tuned or {}
    )
    engine = PaintingEngine()
    with listening(Gateway(engine, about, GatewaySettings(**settings))) as url:
        yield Site(url, engine)
