"""A running `tandem serve` in a process of its own, and ways to ask it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.ports import free_port
from support.runs import start, wait_until

MARK = "TANDEM_TEST_SERVER"  # in the environment of all processes of one server: its port


@dataclass
class Served:
    """`url` is where it listens, `key` what it asks for."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    key: str = ""

    def post(self, timeout: float = 120, **body: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a request for images."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1/images/generations", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def stream(self, **body: Any) -> list[tuple[str, dict[str, Any]]]:
        """The server-sent events of a request, by name."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        data = json.dumps(body | {"stream": True}).encode()
        request = urllib.request.Request(f"{self.url}/v1/images/generations", data, headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            events = answer.read().decode().strip().split("\n\n")
        pairs = [event.split("\n", 1) for event in events]
        return [(name.removeprefix("event: "), json.loads(text.removeprefix("data: "))) for name, text in pairs]

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> int:
        """SIGTERM; the exit code. One that does not end is killed."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL to all its processes: Ray starts some in sessions of their own."""
        while pids := processes(self):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()


def serve(log: Path, *options: str, port: int = 0, key: str = "", seconds: float = 120, **variables: str) -> Served:
    """Start a server, by default on a free port, and wait until it is ready. One that is not in time is killed."""
    port = port or free_port()
    keys = {"TANDEM_API_KEYS": key} if key else {}
    process = start(["serve", "--port", str(port), *options], log, **keys, **{MARK: str(port)}, **variables)
    served = Served(process, f"http://127.0.0.1:{port}", log, key)
    try:
        wait_until(lambda: served.is_ready() and "serving http" in log.read_text(), "the server is ready", seconds)
    except BaseException:
        served.kill()
        raise
    return served


def processes(served: Served) -> dict[int, str]:
    """Process ids and command lines of this server."""
    mark = f"{MARK}={served.url.rpartition(':')[2]}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has ended
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
    return found


def replicas(deployment: str, served: Served) -> list[int]:
    """Process ids of the replicas of one deployment ("Drafter", "Refiner", "Ingress") of this server."""
    title = f"ray::ServeReplica:tandem:{deployment}"
    return [pid for pid, command in processes(served).items() if command.startswith(title)]


def kill_replicas(deployment: str, served: Served) -> int:
    """SIGKILL the replicas of one deployment of this server; how many there were."""
    pids = replicas(deployment, served)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return len(pids)
