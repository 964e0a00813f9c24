"""Links to images that the server itself answers: they hold the signed request, not the name of a stored file.

Whoever has a link gets the image without a key, until it expires. The ingress that made an image keeps it for a while;
another one, or the same one later, makes it again from the request, which gives the same image. No link makes anything
without a valid signature. Knows neither Ray nor torch.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from starlette.requests import HTTPConnection

from tandem.config import SamplingConfig
from tandem.images import EXTENSIONS
from tandem_workers.requests.api_errors import ApiError, shown
from tandem_workers.requests.messages import ImageRequest, Pictures

FILES = "/files"  # path below which the links are
KEPT_BYTES = 64 << 20  # of files that an ingress keeps
MAX_NAME = 4096  # characters of a link's last part
HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?")


@dataclass(frozen=True)
class Link:
    """One image of a request, and when its link expires, in seconds since 1970."""

    request: ImageRequest
    index: int
    expires: int


@dataclass(frozen=True)
class Signer:
    """Names of files that only a process with this secret can make.

    Attributes:
        secret: shared by all ingresses of a server; it is in no log and no answer.
        seconds: how long a link is valid.
    """

    secret: bytes = field(repr=False)
    seconds: int

    def name(self, request: ImageRequest, index: int) -> str:
        """The last part of a link to image `index` of a request."""
        values = [int(time.time()) + self.seconds, index, *as_list(request)]
        payload = encoded(json.dumps(values, separators=(",", ":")).encode())
        return f"{payload}.{self.signature(payload)}.{EXTENSIONS[request.codec]}"

    def read(self, name: str) -> Link:
        """What a name was made of. ApiError 404 unless this server has signed it, 410 if it has expired."""
        payload, _, rest = name.partition(".")
        signature, _, extension = rest.partition(".")
        if len(name) > MAX_NAME or not hmac.compare_digest(self.signature(payload).encode(), signature.encode()):
            raise ApiError(404, "expected a link of this server, got another one", code="file_not_found")
        expires, index, *values = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        link = Link(as_request(values), index, expires)
        if extension != EXTENSIONS[link.request.codec]:
            raise ApiError(404, "expected a link of this server, got another one", code="file_not_found")
        if time.time() >= expires:
            raise ApiError(410, "the link has expired: ask for the image again", code="link_expired")
        return link

    def signature(self, payload: str) -> str:
        return encoded(hmac.digest(self.secret, payload.encode(), hashlib.sha256))


class LinkedFiles:
    """The files behind the links of one ingress: those that it keeps, and others made again."""

    def __init__(
        self,
        signer: Signer,
        make: Callable[[ImageRequest], Awaitable[Pictures]],
        wait: Callable[[Awaitable[Any]], Awaitable[Any]],
        most_bytes: int = KEPT_BYTES,
    ):
        """`make` makes the images of a request, and counts as one; `wait` awaits something as one in flight."""
        self.signer, self.make, self.wait, self.most_bytes = signer, make, wait, most_bytes
        self.kept: OrderedDict[tuple[ImageRequest, int], bytes] = OrderedDict()
        self.kept_bytes = 0
        self.making: dict[ImageRequest, asyncio.Event] = {}

    def links(self, request: ImageRequest, files: Sequence[bytes], base: str) -> list[str]:
        """A link for each image of a request."""
        request = alone(request)
        self.keep(request, files)
        return [f"{base}{FILES}/{self.signer.name(request, index)}" for index in range(len(files))]

    async def file(self, link: Link) -> bytes:
        """The file behind a link: kept, or made again together with the others of its request, once."""
        while (data := self.kept.get((link.request, link.index))) is None:
            if others := self.making.get(link.request):
                await self.wait(others.wait())
                continue
            with self.announced(link.request):
                files = (await self.make(link.request)).files
                self.keep(link.request, files)
                return files[link.index]
        self.kept.move_to_end((link.request, link.index))
        return data

    @contextmanager
    def announced(self, request: ImageRequest) -> Iterator[None]:
        """Context manager: others wait for what is made of this request."""
        done = self.making[request] = asyncio.Event()
        try:
            yield
        finally:
            del self.making[request]
            done.set()

    def keep(self, request: ImageRequest, files: Sequence[bytes]) -> None:
        """Keep files, and forget those that were used the longest ago."""
        for index, data in enumerate(files):
            self.kept_bytes += len(data) - len(self.kept.pop((request, index), b""))
            self.kept[request, index] = data
        while self.kept_bytes > self.most_bytes:
            self.kept_bytes -= len(self.kept.popitem(last=False)[1])


def alone(request: ImageRequest) -> ImageRequest:
    """The request without what does not change its files."""
    return replace(request, preview_scales=frozenset())


def as_list(request: ImageRequest) -> list[Any]:
    return [
        request.label,
        request.seed,
        request.n,
        request.draft_steps,
        astuple(request.sampling),
        request.codec,
        request.quality,
        request.deterministic,
        request.size,
    ]


def as_request(values: list[Any]) -> ImageRequest:
    """The request of `as_list`, from JSON that was signed here."""
    label, seed, n, draft_steps, sampling, codec, quality, deterministic, size = values
    cfg, top_k, top_p, temperatures, *more = sampling
    drawn = SamplingConfig(cfg, top_k, top_p, tuple(temperatures), *more)
    return ImageRequest(
        label, seed, n, draft_steps, drawn, codec, quality, deterministic, size=tuple(size) if size else None
    )


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def link_base(http: HTTPConnection, public_url: str = "") -> str:
    """The address that links begin with: `public_url`, or the name by which the client has asked (`Host`, checked by
    `middleware.AllowHosts`), with the scheme by which a reverse proxy says it was asked (`X-Forwarded-Proto`)."""
    if public_url:
        return public_url
    host = http.headers.get("host", "")
    if not HOST.fullmatch(host):
        raise ApiError(400, f"Host: expected a name for links, got {shown(host)} (tandem serve --public-url URL)")
    forwarded = http.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    scheme = forwarded if forwarded in ("http", "https") else http.url.scheme
    return f"{scheme}://{host}{http.scope.get('root_path', '')}"
