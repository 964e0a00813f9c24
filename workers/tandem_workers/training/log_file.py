"""OUT/log.jsonl: a JSON line for each record of a training run, without gaps or repetitions after a resume."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from tandem_workers.storage.store import Store

LOG = "log.jsonl"
REPLACED_EVERY_S = 10.0


class LogFile:
    """The log in a store. It is replaced whole: before each checkpoint, so that no line of its steps is missing, and
    now and then in between."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lines: list[str] = []
        self.replaced = 0.0

    def begin(self, step: int) -> None:
        """Take the lines up to the step that the run goes on from. Lines that are not ours are dropped."""
        try:
            lines = self.store.read(LOG).decode(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        self.lines = [line for line in lines if 0 <= _step_of(line) <= step]

    def add(self, values: Mapping[str, float]) -> None:
        self.lines.append(json.dumps(dict(values)))
        if time.monotonic() - self.replaced > REPLACED_EVERY_S:
            self.write()

    def write(self) -> None:
        """Replace the file. OutputError."""
        self.store.replace(LOG, "".join(f"{line}\n" for line in self.lines).encode())
        self.replaced = time.monotonic()


def _step_of(line: str) -> int:
    """The step of a line, -1 for other content, such as half a line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return -1
    return step if type(step) is int else -1
