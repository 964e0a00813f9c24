"""Parts of a dataset: `--shards 0-9/40` lets a job make some of its shards."""

from __future__ import annotations

import re
import shlex
import sys

from tandem.errors import InputError
from tandem_workers.dataset.shards import ShardPlan


def choose_part(text: str | None, plan: ShardPlan) -> range:
    """'0-9/40': shards 0 to 9 of a job with 40; None: all. Raises InputError."""
    if text is None:
        return range(plan.num_shards)
    match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?/(\d{1,18})", text.strip())
    if not match:
        raise InputError(
            f"--shards: expected FIRST-LAST/ALL such as 0-{plan.num_shards - 1}/{plan.num_shards}, got {text}"
        )
    first, last, num_shards = int(match[1]), int(match[2] or match[1]), int(match[3])
    if num_shards != plan.num_shards:
        raise InputError(f"--shards: expected the {plan.num_shards} shards of this job after /, got {text}")
    if not first <= last < num_shards:
        raise InputError(f"--shards: expected ascending shards from 0 to {num_shards - 1}, got {text}")
    return range(first, last + 1)


def describe_part(part: range, plan: ShardPlan) -> str:
    images = f"{plan.num_rows} images in {plan.num_shards} shards"
    return images if len(part) == plan.num_shards else f"{images}, {part.start} to {part.stop - 1} of them here"


def full_command(command: str) -> str:
    """The command that makes the whole dataset: without --shards and --overwrite."""
    parts = shlex.split(command)
    while "--shards" in parts:
        at = parts.index("--shards")
        del parts[at : at + 2]
    return shlex.join(part for part in parts if not part.startswith("--shards=") and part != "--overwrite")


def command_line() -> str:
    return shlex.join(["tandem", *sys.argv[1:]])


def resume_command() -> str:
    """The command that resumes this one: without --overwrite, which would begin again."""
    return shlex.join(["tandem", *(part for part in sys.argv[1:] if part != "--overwrite")])
