"""CPU seconds (user and system) of this process and of the Ray that it has started, by kind of process."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

DRIVER, TASKS = "driver", "tasks"
PROC = Path("/proc")

CpuSeconds = Mapping[int, tuple[str, float]]  # by process id: kind, seconds


def cpu_seconds() -> CpuSeconds:
    """CPU seconds so far of this process and of its living descendants."""
    parents, seconds = {}, {}
    for folder in PROC.iterdir():
        with suppress(OSError, ValueError):  # no process, or one that has ended
            pid = int(folder.name)
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[pid] = int(fields[1])
            seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found = {os.getpid(): (DRIVER, seconds[os.getpid()])}
    for pid in parents:
        if descends(pid, os.getpid(), parents):
            with suppress(OSError):
                found[pid] = process_kind((PROC / str(pid) / "cmdline").read_bytes()), seconds[pid]
    return found


def descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    parent = parents.get(pid)
    while parent is not None and parent != ancestor:
        parent = parents.get(parent)
    return parent is not None


def process_kind(command_line: bytes) -> str:
    """A short name of a process: the actor class or pool of Ray's workers, "tasks" for workers that run tasks, whose
    name changes with each, and the name of the program of others."""
    words = command_line.decode(errors="replace").rstrip("\0").split("\0")
    if words[0].startswith("ray::"):
        title = words[0].removeprefix("ray::").partition(".")[0]
        is_task = title.startswith(("IDLE", "MapBatches("))
        return TASKS if is_task else title.rstrip(")").rpartition("(")[2]
    programs = [word for word in words if word.endswith(".py")] if "python" in Path(words[0]).name else []
    return Path([*programs, words[0]][0]).name.removesuffix(".py")


def ms_per_shard(before: CpuSeconds, after: CpuSeconds, shards: int) -> dict[str, float]:
    """CPU milliseconds for each shard between two moments, by kind, the largest first. Processes that ended in between
    are not counted."""
    spent: dict[str, float] = defaultdict(float)
    for pid, (kind, seconds) in after.items():
        spent[kind] += 1000 * (seconds - before[pid][1] if pid in before else seconds) / shards
    return {kind: round(ms, 2) for kind, ms in sorted(spent.items(), key=lambda item: -item[1])}
