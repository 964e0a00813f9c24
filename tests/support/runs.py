"""Runs of the command line in processes of their own, and ways to disturb them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from support.sources import PYTHONPATH

Digests = dict[str, str]  # SHA-256 of shard files by their names
IMAGES = 48  # one image a shard: time enough to disturb a run


def job(models: dict[str, str], out: Path | str, *more: str, images: int = IMAGES) -> list[str]:
    """Arguments of `tandem generate` for a job of many small shards."""
    files = [part for role, path in models.items() for part in (f"--{role}", path)]
    size = ["--classes", "all", "--images", str(images), "--batch", "1", "--shard-size", "1", "--seed", "3"]
    return ["generate", *files, *size, "--out", str(out), *more]


def start(argv: Sequence[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """The command in a process group of its own; stderr goes to the log, stdout beside it."""
    environment = os.environ | {"PYTHONPATH": PYTHONPATH} | variables
    with log.open("wb") as errors, log.with_suffix(".out").open("wb") as output:
        command = [sys.executable, "-m", "tandem_jobs", *argv]
        return subprocess.Popen(command, stdout=output, stderr=errors, env=environment, start_new_session=True)


def digests(out: Path | str) -> Digests:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(out, "shards").iterdir())}


def committed(out: Path | str) -> int:
    """Shards that are done."""
    folder = Path(out, "manifest")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 120) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.1)  # looking costs time as well, of the cores that it waits for
    return time.monotonic() - began


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether that process started it, or one that it started did: others may test on this machine as well."""
    while pid > 1 and pid != ancestor:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == ancestor


def processes(title: str, ancestor: int | None = None) -> list[int]:
    """Processes below that one, or below this, whose command line begins so."""
    pids = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace")
                if words.startswith(title) and descends_from(int(folder.name), ancestor or os.getpid()):
                    pids.append(int(folder.name))
            except OSError:  # it has ended
                continue
    return pids


def kill_workers(stage: str) -> int:
    """SIGKILL the actors of a stage; how many there were."""
    pids = processes(f"ray::MapWorker(MapBatches({stage}))")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return len(pids)
