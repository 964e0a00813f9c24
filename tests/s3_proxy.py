"""A proxy before an S3 server that counts requests and now and then does what networks and busy servers do.

Clients reach it as their endpoint, over TLS as well, or as their HTTP_PROXY or HTTPS_PROXY.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["slow down", "reset", "cut body"] | None
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


class S3Proxy(ThreadingHTTPServer):
    """`fault(n, method, path)` decides what happens to the n-th request. `seen` counts (method, path).

    Whatever host a request or a tunnel asks for, it goes to `target`.
    """

    daemon_threads = True

    def __init__(
        self,
        target: str,
        fault: Callable[[int, str, str], Fault] = lambda n, method, path: None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "https" if tls else "http"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.target, self.fault = urlsplit(target).netloc, fault
        self.seen: Counter[tuple[str, str]] = Counter()
        self.faults: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.number = 0

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> S3Proxy:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, address: object) -> None:
        """Clients that hang up are part of the game."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Proxy

    def forward(self) -> None:
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self.chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy = self.server
        if not self.path.startswith("/"):  # asked as a proxy
            self.path = "/" + self.path.split("/", 3)[3]
        path = self.path.partition("?")[0]
        with proxy.lock:
            proxy.number += 1
            proxy.seen[self.command, path] += 1
            fault = proxy.fault(proxy.number, self.command, path)
            if fault:
                proxy.faults[fault] += 1
        if fault == "reset":
            self.close_connection = True
            return
        if fault == "slow down":
            self.answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
            return
        connection = http.client.HTTPConnection(proxy.target, timeout=60)
        # the signature is over the Host that the client has seen
        headers = dict(self.headers.items())
        connection.request(self.command, self.path, [body] if chunked else body, headers, encode_chunked=chunked)
        response = connection.getresponse()
        data = response.read()
        headers = {name: value for name, value in response.getheaders() if name.lower() != "transfer-encoding"}
        self.answer(response.status, headers, data, cut=fault == "cut body")
        connection.close()

    def chunks(self) -> bytes:
        """The body of a request that does not say its length, as boto3 sends them over TLS."""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

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

    def log_message(self, *_: object) -> None:
        """Quiet."""


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Hand on bytes until one side ends."""
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
