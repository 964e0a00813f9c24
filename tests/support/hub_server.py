"""A server with the paths and headers of the Hugging Face hub, and plain files beside them, which can break off."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

from support.loopback import LoopbackServer, QuietHandler

TOKEN = "hf_only-for-tests-9b2f"
RESOLVE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")


class HubServer(LoopbackServer):
    """`files` by (repository, commit, name); `refs` name commits; `plain` by path. `gated` repositories want TOKEN."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.refs: dict[str, str] = {}
        self.plain: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.seen: Counter[str] = Counter()
        self.cut_after: list[int] = []  # bytes after which the next bodies end
        self.status: list[int] = []  # of the next answers
        self.ranges = True

    def push(self, repo: str, name: str, data: bytes, ref: str = "main") -> str:
        """Add a commit with one file. Returns its hash."""
        commit = hashlib.sha1(data + name.encode()).hexdigest()
        self.files[repo, commit, name] = data
        self.refs[ref] = commit
        return commit


class Handler(QuietHandler):
    server: HubServer

    def refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.server
        server.seen[f"{self.command} {self.path}"] += 1
        if server.status:
            self.refuse(server.status.pop(0))
        elif (data := server.plain.get(self.path)) is not None:
            self.send(data, {})
        elif match := RESOLVE.fullmatch(self.path):
            self.resolve(*match.groups())
        else:
            self.refuse(404)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        server = self.server
        commit = server.refs.get(revision, revision)
        if repo not in {held for held, _, _ in server.files}:
            self.refuse(401, "RepoNotFound")
        elif repo in server.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "GatedRepo")
        elif commit not in {c for held, c, _ in server.files if held == repo}:
            self.refuse(404, "RevisionNotFound")
        elif (data := server.files.get((repo, commit, name))) is None:
            self.refuse(404, "EntryNotFound")
        else:
            self.send(data, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def send(self, data: bytes, headers: dict[str, str]) -> None:
        start = 0
        if (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) and self.server.ranges:
            start = int(asked[1])
            if start >= len(data):
                self.refuse(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cut_after.pop(0) if self.server.cut_after else None
            self.wfile.write(data[start:] if cut is None else data[start : start + cut])
            self.close_connection = cut is not None
