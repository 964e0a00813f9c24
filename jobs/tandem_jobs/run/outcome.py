"""How a run ends: for each shard, and the one line for a run that fails."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tandem.errors import JobError
from tandem_workers.dataset.fallbacks import Fallback
from tandem_workers.dataset.shards import FailedShard, ShardRows
from tandem_workers.dataset.start_times import ReplicaStart
from tandem_workers.stages.ray_data import Row, Span, from_row, is_failed

# The last line of a traceback; remote errors arrive only as text
RAISED = re.compile(r"^(?P<type>[A-Za-z_][\w.]*(?:Error|Exception|Killed|Interrupt)): (?P<message>.+)$", re.M)
# Ray's message for actors that it drops before they have a process. It drops them if it cannot ask the driver whether
# they are still wanted: a driver that checks tokens refuses the calls of a cluster without tokens.
NEVER_RAN = "The actor never ran"


@dataclass(frozen=True)
class StoredShard:
    """A committed shard, and which replica worked on it when."""

    shard: int
    num_rows: int
    spans: tuple[Span, ...]
    warnings: tuple[str, ...] = ()  # all warnings so far of the actors that worked on it
    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage, for stages run by actors
    starts: tuple[ReplicaStart, ...] = ()  # of actors whose first shard this is
    fallbacks: tuple[Fallback, ...] = ()  # of the actors that worked on it


def outcome(row: Row) -> StoredShard | FailedShard:
    """The result of a shard from the last stage's row."""
    if is_failed(row):
        return from_row(row, FailedShard)[0]
    shard, spans = from_row(row, ShardRows)
    num_rows, notes = int(row["rows"][0]), (tuple(shard.warnings), shard.seconds, tuple(shard.starts))
    return StoredShard(shard.shard, num_rows, tuple(spans), *notes, tuple(shard.fallbacks))


def as_job_error(error: BaseException) -> JobError:
    """The cause of a failed run in one line: the error of a stage, preferably ours, without Ray's wrapping."""
    raised = [m for m in RAISED.finditer(str(error)) if not m["type"].startswith("ray.")]
    ours = [m for m in raised if m["type"].startswith("tandem.errors.")]
    if ours:
        cause = ours[-1]["message"]
    elif raised:
        cause = f"{raised[-1]['type']}: {raised[-1]['message']}"
    elif NEVER_RAN in str(error) and os.environ.get("RAY_AUTH_MODE") == "token":
        return JobError("Ray dropped an actor before it ran", "RAY_AUTH_MODE is token here: is it so on the cluster?")
    else:
        cause = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    return JobError(cause.strip(), "committed shards are kept; the same command resumes from them")
