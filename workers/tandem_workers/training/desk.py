"""The desk of a training run: an actor between driver and workers, for records, wishes to stop, and errors.

Ray Train restarts workers whatever they died of. Workers ask here first: after an error of ours, or after several
attempts without a new checkpoint, they end at once, and the driver raises what the desk holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray._raylet import RAY_NODE_ID_KEY  # type: ignore[attr-defined]
from ray.actor import ActorHandle

from tandem.errors import JobError, TandemError

MAX_ATTEMPTS = 3  # without a new checkpoint
RESUME = "the same command goes on from the last checkpoint"


@dataclass
class News:
    """What has happened at the desk since it was asked last. lines: for the user."""

    records: list[dict[str, float]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


class Desk:
    """Only the driver and the first worker of a group call it, except for errors."""

    def __init__(self) -> None:
        self.news = News()
        self.error: TandemError | None = None
        self.stopping = self.started = False
        self.attempts = 0
        self.cause: str | None = None
        self.outcome: dict[str, Any] | None = None

    def begin(self) -> bool:
        """A group of workers starts. False if it is not to: after an error, or after too many attempts."""
        if self.attempts >= MAX_ATTEMPTS and self.error is None:
            cause = self.cause or "a worker was lost"
            self.error = JobError(f"training ended {self.attempts} times without a new checkpoint: {cause}", RESUME)
        if self.attempts and self.error is None and not self.stopping:
            self.say(f"{self.cause or 'a worker was lost'}; starting the workers again")
        self.attempts += 1
        self.cause = None
        return self.error is None and not self.stopping

    def committed(self) -> None:
        """A new checkpoint is there."""
        self.attempts = 1

    def record(self, values: Mapping[str, float]) -> None:
        self.news.records.append(dict(values))

    def say(self, line: str) -> None:
        self.news.lines.append(line)

    def fail(self, error: TandemError) -> None:
        """An error that a restart would meet again; the first one counts."""
        self.error = self.error or error

    def lost(self, cause: str) -> None:
        """An error that a restart may not meet again; the first one of an attempt is its cause."""
        self.cause = self.cause or cause

    def finish(self, outcome: Mapping[str, Any]) -> None:
        """The workers have come to an end: of the run, or where they were stopped."""
        self.outcome = dict(outcome)

    def stop(self) -> None:
        self.stopping = True

    def is_stopping(self) -> bool:
        return self.stopping

    def take_news(self) -> News:
        news, self.news = self.news, News()
        return news

    def result(self) -> tuple[TandemError | None, dict[str, Any] | None]:
        """Error and outcome."""
        return self.error, self.outcome


def open_desk() -> ActorHandle:
    """A desk on the driver's node."""
    here = {RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
    return cast(ActorHandle, ray.remote(num_cpus=0, label_selector=here)(Desk).remote())
