"""A proxy before an S3 server that counts requests and now and then does what networks and busy servers do.

Clients reach it as their endpoint, over TLS as well, or as their HTTP_PROXY or HTTPS_PROXY.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal
from urllib.parse import urlsplit

from support.loopback import LoopbackServer, QuietHandler

Fault = Literal[
    "slow down",  # these are answers
    "server error",
    "denied",
    "conflict",
    "redirect",
    "reset",  # the request is not handed on, and the connection ends
    "lost answer",  # it is handed on, and then the connection ends
    "cut body",  # the answer ends in its middle
    "delay",
    "hidden keys",  # a listing lacks some
    "swallow",  # nothing is handed on, nothing answered, the connection stays
]
ANSWERS: dict[Fault, tuple[int, str]] = {
    "slow down": (503, "SlowDown"),
    "server error": (500, "InternalError"),
    "denied": (403, "AccessDenied"),
    "conflict": (409, "ConditionalRequestConflict"),
    "redirect": (307, "TemporaryRedirect"),
}
DELAY_S = 0.3


class Weather:
    """Faults by chance, the same for the n-th request of every run with this seed. See `S3Proxy`."""

    def __init__(self, seed: int, chance: float, *faults: Fault) -> None:
        self.seed, self.chance, self.faults = seed, chance, faults

    def __call__(self, number: int, method: str, path: str) -> Fault | None:
        dice = random.Random(f"{self.seed}/{number}")
        fault = dice.choice(self.faults) if dice.random() < self.chance else None
        is_listing = method == "GET" and path.count("/") == 1
        impossible = {"conflict": method != "PUT", "cut body": method != "GET", "hidden keys": not is_listing}
        return None if fault and impossible.get(fault) else fault


class S3Proxy(LoopbackServer):
    """`fault(n, method, path)` decides what happens to the n-th request. `seen` counts (method, path).

    Whatever host a request or a tunnel asks for, it goes to `target`.
    """

    def __init__(
        self,
        target: str,
        fault: Callable[[int, str, str], Fault | None] = lambda n, method, path: None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(Handler)
        if tls:
            self.scheme = "https"
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.target, self.fault = urlsplit(target).netloc, fault
        self.seen: Counter[tuple[str, str]] = Counter()
        self.faults: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.number = 0

    def decide(self, method: str, path: str) -> Fault | None:
        """Count a request, and say what happens to it."""
        with self.lock:
            self.number += 1
            self.seen[method, path] += 1
            fault = self.fault(self.number, method, path)
            if fault:
                self.faults[fault] += 1
        return fault


class Handler(QuietHandler):
    server: S3Proxy

    def forward(self) -> None:
        body = self.read_body()
        if not self.path.startswith("/"):  # asked as a proxy
            self.path = "/" + self.path.split("/", 3)[3]
        fault = self.server.decide(self.command, self.path.partition("?")[0])
        if fault in ("reset", "swallow"):
            self.close_connection = True
            if fault == "swallow":
                self.rfile.read(1)  # until the client hangs up
        elif fault in ANSWERS:
            status, code = ANSWERS[fault]
            error = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up</Message></Error>"
            self.answer(status, {"Content-Type": "application/xml"}, error.encode())
        else:
            if fault == "delay":
                time.sleep(DELAY_S)
            self.hand_on(body, fault)

    def hand_on(self, body: bytes, fault: Fault | None) -> None:
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        # the signature is over the Host that the client has seen
        headers = dict(self.headers.items())
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        connection.request(self.command, self.path, [body] if chunked else body, headers, encode_chunked=chunked)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        headers = {name: value for name, value in response.getheaders() if name.lower() != "transfer-encoding"}
        if fault == "lost answer":
            self.close_connection = True
            return
        if fault == "hidden keys":
            data = hide_keys(data)
            headers["Content-Length"] = str(len(data))
        self.answer(response.status, headers, data, cut=fault == "cut body")

    def answer(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        length = headers.pop("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def do_CONNECT(self) -> None:
        with self.server.lock:
            self.server.seen[self.command, self.path] += 1
        host, port = self.server.target.split(":")
        with socket.create_connection((host, int(port))) as there:
            self.send_response_only(200)
            self.end_headers()
            threading.Thread(target=pump, args=(self.connection, there), daemon=True).start()
            pump(there, self.connection)
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward


def hide_keys(listing: bytes) -> bytes:
    """A listing without every other of its objects, beginning with the last."""
    found = re.findall(rb"<Contents>.*?</Contents>", listing, re.S)
    for item in found[::-2]:
        listing = listing.replace(item, b"")
    return listing


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Hand on bytes until one side ends."""
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
