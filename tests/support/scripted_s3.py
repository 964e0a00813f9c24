"""A store of S3 that answers as a test says, behind the real client."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from support.loopback import LoopbackServer, QuietHandler


class Request(NamedTuple):
    """`number` counts from 1; `conditional`: a put with If-None-Match."""

    number: int
    method: str
    path: str
    conditional: bool


class Answer(NamedTuple):
    status: int = 200
    code: str = ""  # of an error in XML
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


SILENCE = None  # the request is read, and the connection stays open


class ScriptedS3(LoopbackServer):
    """`answer` says what each request gets."""

    def __init__(self, answer: Callable[[Request], Answer | None]) -> None:
        super().__init__(Handler)
        self.reply, self.requests = answer, list[Request]()


class Handler(QuietHandler):
    server: ScriptedS3

    def do_PUT(self) -> None:
        self.read_body()
        requests = self.server.requests
        path = self.path.partition("?")[0]
        requests.append(Request(len(requests) + 1, self.command, path, "If-None-Match" in self.headers))
        answer = self.server.reply(requests[-1])
        if answer is SILENCE:
            self.close_connection = True
            self.rfile.read(1)  # until the client hangs up
            return
        body = answer.body
        if answer.code:
            body = f"<?xml version='1.0'?><Error><Code>{answer.code}</Code><Message>so</Message></Error>".encode()
        self.send_response_only(answer.status)
        for name, value in (*answer.headers, ("Content-Length", str(len(body))), ("ETag", '"e"')):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_DELETE = do_HEAD = do_PUT
