"""Between the HTTP API and the models: checks a request, waits for its images, and reports how they were made.

Fills the responses that `requests.api_schema` declares. Knows neither Ray nor torch.
"""

from __future__ import annotations

import asyncio
import base64
import math
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from starlette.requests import HTTPConnection

from tandem.config import SamplingConfig, numbers
from tandem.images import EXTENSIONS
from tandem_workers.endpoint.guard import Admission
from tandem_workers.endpoint.links import LinkedFiles, Signer, link_base
from tandem_workers.endpoint.middleware import ANY_HOST, SMALL, BodyLimit
from tandem_workers.requests.api_errors import ApiError
from tandem_workers.requests.api_schema import (
    About,
    EditSettings,
    ImageData,
    ImagesResponse,
    InputTokens,
    Settings,
    Usage,
    sampling_fields,
)
from tandem_workers.requests.edit_check import EditCheck
from tandem_workers.requests.messages import Edit, ImageRequest, Pictures, Preview
from tandem_workers.requests.request_check import Asked, RequestCheck
from tandem_workers.requests.stream_schema import (
    CompletedEditEvent,
    CompletedEvent,
    PartialEditEvent,
    PartialImageEvent,
)

Event = PartialImageEvent | CompletedEvent
READERS = 2  # pictures that an ingress decodes at a time
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
        lenient: also takes requests as clients of other servers send them (`lenient.translate`).
        publish: puts an image file (name, data) and returns its link; None: links are answered here (`endpoint.links`).
        link_secret, link_seconds: what these are signed with, and how long they are valid.
        public_url: address that they begin with; empty: the one by which a client has asked.
    """

    batch: int = 8
    max_requests: int = 64
    max_images: int = 512
    max_n: int = 10
    body: BodyLimit = SMALL
    timeout_s: float = 120.0
    key_digests: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = (ANY_HOST,)
    lenient: bool = False
    publish: Callable[[str, bytes], str] | None = None
    link_secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    link_seconds: int = 3600
    public_url: str = ""


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
        self.made_at_s, self.names = -math.inf, self.about.class_names.with_none()
        self.requests = RequestCheck(self.about, self.settings.lenient)
        given = self.about, self.settings.max_n, self.settings.lenient, self.settings.publish is not None
        self.edits, self.variations = EditCheck(*given), EditCheck(*given, variations=True)
        self.reading = asyncio.Semaphore(READERS)
        signer = Signer(self.settings.link_secret, self.settings.link_seconds)
        self.linked = LinkedFiles(signer, self.make_again, self.wait_for_other)
        self.admission = Admission(self.settings.max_requests, self.settings.max_images, self.watcher.in_flight)

    async def answer(self, asked: Asked) -> ImagesResponse:
        """All images in one response. Call it inside `admission`."""
        began, request = time.monotonic(), asked.request
        pictures = await self.in_time(self.engine.generate(request), began)
        images = await self.in_time(self.all_data(asked, pictures.files), began)
        self.note_made(time.monotonic() - began)
        return ImagesResponse(
            created=int(time.time()),
            data=images,
            output_format=request.codec,
            size=self.size_of(request),
            usage=self.usage(request),
            tandem=self.image_settings(asked, pictures, time.monotonic() - began),
        )

    async def events(self, asked: Asked) -> AsyncGenerator[Event, None]:
        """Previews, then the images one by one. Consume it inside `admission`."""
        began, count, request = time.monotonic(), 0, asked.request
        async with aclosing(self.engine.stream(request)) as stream:  # closed at once if the client goes away
            while not isinstance(event := await self.in_time(anext(stream), began), Pictures):
                if count == 0:
                    self.watcher.first_preview(time.monotonic() - began)
                yield self.partial(request, event, count)
                count += 1
        self.note_made(time.monotonic() - began)
        for index, image in enumerate(await self.in_time(self.all_data(asked, event.files), began)):
            yield (CompletedEditEvent if request.edit else CompletedEvent)(
                b64_json=image.b64_json,
                url=image.url,
                created_at=int(time.time()),
                size=self.size_of(request),
                output_format=request.codec,
                usage=self.usage(replace(request, n=1)),
                image_index=index,
                tandem=self.image_settings(asked, event, time.monotonic() - began),
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
        return (PartialEditEvent if request.edit else PartialImageEvent)(
            b64_json=base64.b64encode(preview.data).decode(),
            partial_image_index=count,
            created_at=int(time.time()),
            size=self.size_of(request),
            output_format=request.codec,
            image_index=preview.image,
            scale=preview.scale,
            num_scales=self.about.num_scales,
            made_by=preview.made_by,
        )

    async def all_data(self, asked: Asked, files: list[bytes]) -> list[ImageData]:
        """The images as they are answered: base64, or links."""
        if asked.link_base is None:
            return [ImageData(b64_json=base64.b64encode(data).decode()) for data in files]
        if (publish := self.settings.publish) is None:
            return [ImageData(url=url) for url in self.linked.links(asked.request, files, asked.link_base)]
        extension = EXTENSIONS[asked.request.codec]
        urls = await asyncio.gather(*(asyncio.to_thread(publish, extension, data) for data in files))
        return [ImageData(url=url) for url in urls]

    def link_base(self, http: HTTPConnection) -> str:
        """The address that links of an answer to this client begin with."""
        if self.settings.publish is not None:
            return ""  # those of the object store are whole
        return link_base(http, self.settings.public_url)

    async def make_again(self, request: ImageRequest) -> Pictures:
        """The images of a link, as a request of its own."""
        with self.admission.admit(request.n):
            pictures: Pictures = await self.in_time(self.engine.generate(request), time.monotonic())
            return pictures

    async def wait_for_other(self, work: Awaitable[Any]) -> Any:
        """Await what another request makes, as one in flight without images of its own."""
        with self.admission.admit(0):
            return await self.in_time(work, time.monotonic())

    def size_of(self, request: ImageRequest) -> str:
        """The size of the files, as the API writes it."""
        size = request.size or (request.edit and request.edit.size)
        return "x".join(map(str, size)) if size else self.about.size

    def usage(self, request: ImageRequest) -> Usage:
        """One class token in, and those of a picture; the tokens of all scales out."""
        of_picture = self.about.num_tokens if request.edit else 0
        given, made = 1 + of_picture, request.n * self.about.num_tokens
        details = InputTokens(text_tokens=1, image_tokens=of_picture)
        return Usage(input_tokens=given, output_tokens=made, total_tokens=given + made, input_tokens_details=details)

    def image_settings(self, asked: Asked, pictures: Pictures, total_s: float) -> Settings:
        request = asked.request
        seconds = {name: round(value, 4) for name, value in pictures.seconds.items()}
        wait = max(0.0, total_s - sum(pictures.seconds.values()))
        return Settings(
            model=self.about.model_id,
            label=request.label,
            class_name=self.names[request.label],
            seed=request.seed,
            draft_steps=request.draft_steps,
            **sampling_fields(request.sampling) | unsaid(request.sampling),
            deterministic=request.deterministic,
            edit=edit_settings(request.edit) if request.edit else None,
            seconds={"wait": round(wait, 4), **seconds, "total": round(total_s, 4)},
            lenient=list(asked.notes) if self.settings.lenient else None,
        )


def unsaid(sampling: SamplingConfig) -> dict[str, Any]:
    """Settings that an answer leaves out, as a request has to: strengths of all scales say them."""
    return {"cfg": None, "refiner_cfg": None} if numbers(sampling.cfg_schedule) else {}


def edit_settings(edit: Edit) -> EditSettings:
    nothing = None
    if not edit.about["edited_share"]:
        how = "as the VQVAE decodes it" if edit.put_back.blend == "none" else "as it was"
        nothing = f"the mask is empty: the picture is {how}"
    return EditSettings(**edit.about, keep_scales=edit.keep_scales, message=nothing)
