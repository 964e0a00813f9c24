"""Processes of this machine as /proc shows them, to tell a stopped process from a busy one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessTimes:
    """State letter (T: stopped) and CPU time in clock ticks of a process."""

    state: str
    ticks: int


def pid_space() -> str:
    """Equal in two processes if a process id means the same in both; empty where that is unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def process_times(pid: int) -> ProcessTimes | None:
    """None if there is no such process, or no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return ProcessTimes(fields[0], int(fields[11]) + int(fields[12]))
