"""Between the HTTP API and the models: checks a request, waits for its images, and reports how they were made.

Fills the responses that `endpoint.api_schema` declares. Knows neither Ray nor torch.
"""

from __future__ import annotations

import asyncio
import base64
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from tandem.class_names import NUM_LISTED, ClassNames
from tandem.config import SamplingConfig
from tandem.errors import LabelError
from tandem.images import EXTENSIONS
from tandem_workers.dataset.row_settings import SAMPLING_SETTINGS
from tandem_workers.endpoint.api_errors import ApiError, combined, wrong_value
from tandem_workers.endpoint.api_schema import (
    MAX_SEED,
    About,
    ImageBody,
    ImageData,
    ImagesResponse,
    InputTokens,
    Settings,
    Usage,
)
from tandem_workers.endpoint.guard import Admission
from tandem_workers.endpoint.messages import ImageRequest, Pictures, Preview
from tandem_workers.endpoint.middleware import ANY_HOST, MAX_BODY_BYTES
from tandem_workers.endpoint.stream_schema import CompletedEvent, PartialImageEvent

Event = PartialImageEvent | CompletedEvent
DEFAULT_PREVIEWS = 3  # the OpenAI API's maximum
READY_TIMEOUT_S = 2.0
READY_FOR_S = 10.0  # counts as ready for this long after images were made


class Engine(Protocol):
    """The models that make the images."""

    async def generate(self, request: ImageRequest) -> Pictures: ...

    def stream(self, request: ImageRequest) -> AsyncGenerator[Preview | Pictures, None]: ...

    async def ready(self) -> bool: ...

    def missing(self) -> str:
        """What keeps it from making images, in words; empty: nothing that is known."""


@dataclass(frozen=True)
class GatewaySettings:
    """Limits, keys and addresses.

    Attributes:
        batch: rows that a replica decodes at once; shown to clients.
        max_requests, max_images: most in flight; more are refused.
        max_n: most images of one request.
        key_digests: SHA-256 of the API keys; empty: no key is required.
        origins: other sites whose pages may call (CORS).
        allowed_hosts: names by which the server may be addressed (`middleware.AllowHosts`).
        publish: puts an image file (name, data) and returns its link; None: there is no object store.
    """

    batch: int = 8
    max_requests: int = 64
    max_images: int = 512
    max_n: int = 10
    max_body_bytes: int = MAX_BODY_BYTES
    timeout_s: float = 120.0
    key_digests: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = (ANY_HOST,)
    publish: Callable[[str, bytes], str] | None = None


@dataclass
class Watcher:
    """Observer of requests; in a cluster, Ray's metrics."""

    answered: Callable[[str, int], None] = lambda path, status: None
    took: Callable[[float], None] = lambda seconds: None
    first_preview: Callable[[float], None] = lambda seconds: None
    in_flight: Callable[[int], None] = lambda images: None


@dataclass
class Gateway:
    """One ingress: checks requests, admits them and makes the API's responses (`api_schema`)."""

    engine: Engine
    about: About
    settings: GatewaySettings
    watcher: Watcher = field(default_factory=Watcher)

    def __post_init__(self) -> None:
        self.made_at_s = -math.inf
        self.admission = Admission(self.settings.max_requests, self.settings.max_images, self.watcher.in_flight)

    async def answer(self, request: ImageRequest, by_url: bool) -> ImagesResponse:
        """All images in one response. Call it inside `admission`."""
        began = time.monotonic()
        pictures = await self.in_time(self.engine.generate(request), began)
        images = await self.in_time(self.all_data(request, pictures.files, by_url), began)
        self.note_made(time.monotonic() - began)
        return ImagesResponse(
            created=int(time.time()),
            data=images,
            output_format=request.codec,
            size=self.about.size,
            usage=self.usage(request.n),
            tandem=self.image_settings(request, pictures, time.monotonic() - began),
        )

    async def events(self, request: ImageRequest, by_url: bool) -> AsyncGenerator[Event, None]:
        """Previews, then the images one by one. Consume it inside `admission`."""
        began, count = time.monotonic(), 0
        async with aclosing(self.engine.stream(request)) as stream:  # closed at once if the client goes away
            while not isinstance(event := await self.in_time(anext(stream), began), Pictures):
                if count == 0:
                    self.watcher.first_preview(time.monotonic() - began)
                yield self.partial(request, event, count)
                count += 1
        self.note_made(time.monotonic() - began)
        for index, data in enumerate(event.files):
            image = await self.in_time(self.image_data(request, data, by_url), began)
            yield CompletedEvent(
                b64_json=image.b64_json,
                url=image.url,
                created_at=int(time.time()),
                size=self.about.size,
                output_format=request.codec,
                usage=self.usage(1),
                image_index=index,
                tandem=self.image_settings(request, event, time.monotonic() - began),
            )

    async def check_ready(self) -> None:
        """Raise ApiError 503 unless the server can make images now."""
        why = "the server is shutting down" if self.admission.draining else self.engine.missing()
        if not why and not (self.has_just_made() or await self.engine_answers()):
            why = f"the models are loading, or have not answered for {READY_TIMEOUT_S:g} s"
        if why:
            raise ApiError(503, why, code="not_ready", retry_after_s=2)

    def note_made(self, seconds: float) -> None:
        self.made_at_s = time.monotonic()
        self.watcher.took(seconds)

    def has_just_made(self) -> bool:
        """Whether images were made recently: then the models work, however long their queue."""
        return time.monotonic() - self.made_at_s < READY_FOR_S

    async def engine_answers(self) -> bool:
        try:
            return await asyncio.wait_for(self.engine.ready(), READY_TIMEOUT_S)
        except TimeoutError:
            return False

    async def in_time(self, work: Awaitable[Any], began: float) -> Any:
        """Await `work`; raise ApiError 503 after the time limit of a request."""
        left = began + self.settings.timeout_s - time.monotonic()
        try:
            return await asyncio.wait_for(work, left)
        except TimeoutError:
            message, admission = f"not made within {self.settings.timeout_s:g} s", self.admission
            wait_s = admission.wait_s(admission.in_flight)
            raise ApiError(503, message, code="timeout", retry_after_s=wait_s) from None

    def partial(self, request: ImageRequest, preview: Preview, count: int) -> PartialImageEvent:
        return PartialImageEvent(
            b64_json=base64.b64encode(preview.data).decode(),
            partial_image_index=count,
            created_at=int(time.time()),
            size=self.about.size,
            output_format=request.codec,
            image_index=preview.image,
            scale=preview.scale,
            num_scales=self.about.num_scales,
            made_by=preview.made_by,
        )

    async def all_data(self, request: ImageRequest, files: list[bytes], by_url: bool) -> list[ImageData]:
        return list(await asyncio.gather(*(self.image_data(request, data, by_url) for data in files)))

    async def image_data(self, request: ImageRequest, data: bytes, by_url: bool) -> ImageData:
        if not by_url:
            return ImageData(b64_json=base64.b64encode(data).decode())
        assert self.settings.publish is not None  # checked before
        return ImageData(url=await asyncio.to_thread(self.settings.publish, EXTENSIONS[request.codec], data))

    def usage(self, n: int) -> Usage:
        """One class token in, the tokens of all scales out."""
        made = n * self.about.num_tokens
        details = InputTokens(text_tokens=1, image_tokens=0)
        return Usage(input_tokens=1, output_tokens=made, total_tokens=made + 1, input_tokens_details=details)

    def image_settings(self, request: ImageRequest, pictures: Pictures, total_s: float) -> Settings:
        seconds = {name: round(value, 4) for name, value in pictures.seconds.items()}
        wait = max(0.0, total_s - sum(pictures.seconds.values()))
        return Settings(
            model=self.about.model_id,
            label=request.label,
            class_name=self.about.class_names[request.label],
            seed=request.seed,
            draft_steps=request.draft_steps,
            **sampling_fields(request.sampling),
            deterministic=request.deterministic,
            seconds={"wait": round(wait, 4), **seconds, "total": round(total_s, 4)},
        )

    def check(self, body: ImageBody) -> ImageRequest:
        """Convert the request. Raises ApiError with all errors that the schema cannot express."""
        if found := self.problems(body.model_dump()):
            raise combined(found)
        quality = 92 if body.output_compression is None else body.output_compression
        return ImageRequest(
            label=find_class(body.prompt, self.about.class_names) if body.label is None else body.label,
            seed=random.randint(0, MAX_SEED) if body.seed is None else body.seed,
            n=body.n or 1,
            draft_steps=self.about.draft_steps if body.draft_steps is None else body.draft_steps,
            sampling=self.sampling(body),
            codec=body.output_format or "png",
            quality=max(1, quality),  # to encoders 0 is 1
            deterministic=bool(body.deterministic),
            preview_scales=preview_scales(body, self.about.num_scales) if body.stream else frozenset(),
        )

    def problems(self, values: Mapping[str, Any]) -> list[ApiError]:
        """What is wrong with the fields of a request beyond the schema, which may have errors of its own for them."""
        found = []
        model, scales = values.get("model"), values.get("preview_scales")
        if isinstance(model, str) and model != self.about.model_id:
            found.append(wrong_value("model", repr(self.about.model_id), model, "model_not_found"))
        if values.get("response_format") == "url" and self.settings.publish is None:
            expected = "b64_json, as this server has no object store (tandem serve --store s3://bucket/prefix)"
            found.append(wrong_value("response_format", expected, "url"))
        if scales and not values.get("stream"):
            found.append(wrong_value("preview_scales", "stream: true with it", scales))
        if scales is not None and values.get("partial_images") is not None:
            found.append(wrong_value("preview_scales", "either it or partial_images", scales))
        if isinstance(prompt := values.get("prompt"), str) and values.get("label") is None:
            try:
                find_class(prompt, self.about.class_names)
            except ApiError as error:
                found.append(error)
        return found

    def sampling(self, body: ImageBody) -> SamplingConfig:
        """The server's own sampling, with what a request says of it."""
        asked = {name: getattr(body, name) for name in SAMPLING_SETTINGS}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if body.temperatures is not None:
            given["temperatures"] = tuple(body.temperatures)
        return replace(self.about.sampling, **given)


def sampling_fields(sampling: Any) -> dict[str, Any]:
    return asdict(sampling) | {"temperatures": list(sampling.temperatures)}


def preview_scales(body: ImageBody, num_scales: int) -> frozenset[int]:
    """The scales after which a preview is sent: those asked for, or as many as asked for, evenly spread."""
    if body.preview_scales is not None:
        return frozenset(body.preview_scales)
    asked = DEFAULT_PREVIEWS if body.partial_images is None else body.partial_images
    count = min(asked, num_scales - 1)
    if count == 1:
        return frozenset({num_scales // 2})
    return frozenset(1 + round(i * (num_scales - 2) / (count - 1)) for i in range(count))


def find_class(prompt: str, classes: ClassNames) -> int:
    """The label of a name, synonym, WordNet id or number. ApiError with the nearest names, and all if they are few."""
    try:
        return classes.find(prompt)
    except LabelError as error:
        few = len(classes) <= NUM_LISTED and "classes are" not in (error.hint or "")
        names = f" classes are {', '.join(classes.usual_names)};" if few else ""
        hint = f" ({error.hint};{names} GET /v1/classes lists them all)"
        raise ApiError(400, f"prompt: {error}{hint}", param="prompt", code="class_not_found") from None
