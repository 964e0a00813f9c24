"""A Ray cluster of two nodes as people start it: `ray start`, twice, in an environment without our code.

The environment borrows the packages of this one by a path file: the path hook of an editable installation is not
among them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
import uuid
import venv
from contextlib import suppress
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from support.ports import free_port
from support.runs import wait_until
from support.sources import ROOT


def make_codeless(folder: Path) -> Path:
    """Python of a fresh environment that has Ray and all our dependencies. Fails where it has our code too."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    packages = next(folder.glob("lib/python3*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    names = ("tandem", "tandem_jobs", "tandem_workers")
    look = f"import importlib.util as u, ray, torch; print([n for n in {names} if u.find_spec(n)])"
    found = subprocess.run([python, "-c", look], env=bare(), cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", found.stdout
    return python


def bare(**variables: str) -> dict[str, str]:
    """This environment without what points to our code or to another cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON", "TANDEM_"))}
    return kept | variables


class RealCluster:
    """Head and one more node, each with two simulated GPUs and a cache of its own, token authentication on."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder, self.token = folder, uuid.uuid4().hex * 2
        self.python = make_codeless(folder / "codeless")
        self.port, self.dashboard = free_port(), f"http://127.0.0.1:{free_port()}"
        self.variables = variables
        self.caches = [folder / "cache0", folder / "cache1"]
        self.nodes: list[subprocess.Popen[bytes]] = []

    @property
    def client_variables(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    @property
    def logs(self) -> list[Path]:
        """Folders with all that the nodes write."""
        return [self.folder / f"ray{number}" for number in range(len(self.nodes))]

    def start(self) -> None:
        self.start_head()
        self.start_node(f"--address=127.0.0.1:{self.port}", "--num-cpus=2")
        wait_until(lambda: self.answers(2), "the second node", 60)

    def start_head(self) -> None:
        port = self.dashboard.rsplit(":", 1)[1]
        # session folders hold sockets, whose paths have to be short
        Path(f"/tmp/tandem-{self.port}").symlink_to(self.folder)
        head = ["--head", f"--port={self.port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
        self.start_node(*head, "--num-cpus=3")
        wait_until(lambda: self.answers(1), "the head node", 60)

    def start_node(self, *options: str) -> None:
        number = len(self.nodes)
        # a folder of its own, or both nodes would unpack the code in one place, under the feet of who runs it
        mine = [f"--temp-dir=/tmp/tandem-{self.port}/ray{number}", f"--dashboard-agent-listen-port={free_port()}"]
        path = f"{self.python.parent}:{os.environ['PATH']}"
        environment = bare(PATH=path, TANDEM_CACHE=str(self.caches[number]), **self.client_variables, **self.variables)
        command = [str(self.python), "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1"]
        with (self.folder / f"node{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *mine, f"--labels=node={number}", "--num-gpus=2", *options],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        self.nodes.append(process)

    def answers(self, nodes: int) -> bool:
        """Whether the dashboard knows so many living nodes."""
        import requests

        assert all(node.poll() is None for node in self.nodes), (self.folder / "node0.log").read_text()
        try:
            answer = requests.get(
                f"{self.dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {self.token}"}, timeout=5
            )
            found = answer.json()["data"]["result"]["result"] if answer.ok else []
        except requests.exceptions.RequestException:
            return False
        return sum(node["state"] == "ALIVE" for node in found) == nodes

    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.dashboard, headers={"Authorization": f"Bearer {self.token}"})

    def stop(self) -> None:
        for node in self.nodes:
            node.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        for node in self.nodes:
            with suppress(subprocess.TimeoutExpired):  # it would wait for its jobs
                node.wait(timeout=max(0, deadline - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
        Path(f"/tmp/tandem-{self.port}").unlink(missing_ok=True)

    def run(self, *argv: str, cwd: Path = ROOT, **variables: str) -> subprocess.Popen[str]:
        """A program of this environment beside the cluster, as on the laptop of a user."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = bare(PATH=path) | self.client_variables | variables
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)
