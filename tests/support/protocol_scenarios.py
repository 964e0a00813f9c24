"""Interleavings of the model of the commit protocol, each by its number."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from greenlet import greenlet

from support.jobs_without_ray import no_ray
from support.protocol_contents import cached_format, pictures
from support.protocol_model import DRAFTS, IMAGES, Command, Model, Violation
from tandem.errors import InputError, JobError, OutputError
from tandem_workers.dataset import claim, manifest, verify
from tandem_workers.storage import layout

FAULTS = {"kill": 0.0, "late": 0.0, "lost": 0.0, "twice": 0.15, "lag": 0.3}
HARSH = {"kill": 0.004, "late": 0.02, "lost": 0.03, "twice": 0.25, "lag": 0.5}


def choose_commands(rng: random.Random) -> list[Command]:
    """Two to four commands that meet in one place, and sometimes drafts that are made and refined meanwhile."""

    def another() -> Command:
        kind = rng.choice(
            ["same", "same", "part", "part", "overwrite", "overwrite", "again", "fails", "fails", "other"]
        )
        return {
            "same": lambda: Command(IMAGES, 1),
            "part": lambda: Command(IMAGES, 1, shards=rng.choice(["0-1/3", "2/3", "1-2/3", "0/3"])),
            "overwrite": lambda: Command(IMAGES, rng.choice([2, 3]), overwrite=True),
            "again": lambda: Command(IMAGES, 1, overwrite=True),
            "fails": lambda: Command(IMAGES, 1, fails=frozenset([rng.randrange(3)])),
            "other": lambda: Command(IMAGES, 2),
        }[kind]()

    if rng.random() < 0.15:
        commands = [Command(DRAFTS, 1), Command(IMAGES, 1, from_drafts=True), Command(IMAGES, 1, from_drafts=True)]
        return [*commands, Command(DRAFTS, 2, overwrite=True)]
    return [Command(IMAGES, 1), *(another() for _ in range(rng.randint(1, 3)))]


def interleave(number: int) -> Model:
    """The interleaving of this number; raises Violation, whose notes are its operations."""
    rng = random.Random(number)
    commands = choose_commands(rng)
    drafts = any(command.from_drafts for command in commands)
    harsh = rng.random() < 0.5
    model = Model(rng, rng.choice(["webdataset", "webdataset", "parquet", "folder"]), dict(HARSH if harsh else FAULTS))
    with no_ray(model.make_shards) as patch:
        for module in (manifest, claim, verify):
            patch.setattr(module, "ThreadPoolExecutor", Serial)
        try:
            first = commands[:1]
            if drafts:
                undisturbed, model.faults = model.faults, dict.fromkeys(FAULTS, 0.0)
                model.run(first)
                model.faults, commands = undisturbed, commands[1:]
            elif rng.random() < 0.3:
                model.scheduler = greenlet.getcurrent()
                epoch = rng.randrange(2)
                for path, _ in cached_format(model.name).files(pictures(1, rng.randrange(3), 0), layout.tag(epoch)):
                    model.start(partial(model.leave_junk, IMAGES, path))
            model.run(commands)
            for uri in [DRAFTS, IMAGES] if drafts else [IMAGES]:
                if f"{uri}/{layout.JOB}" not in model.disk.files:
                    continue
                model.check(uri)
                if not harsh:
                    model.check_closed(uri)
                model.heal(uri)
            for command in commands:
                check_outcome(command, commands)
        except BaseException as error:
            error.add_note("\n".join([f"interleaving {number}", *model.trace[-400:], *map(repr, model.commands)]))
            raise
    return model


REFUSALS = ("holds another job", "not empty and holds no job", "another job has taken this place", "--drafts:")
FAILURES = ("no numbers", "drafts in ", "another job has taken this place")  # of shards


def check_outcome(command: Command, commands: list[Command]) -> None:
    """It ended well, was killed, was refused or fenced, or failed at a shard that it could not make."""
    error = str(command.outcome)
    if isinstance(command.outcome, (OutputError, InputError)):
        fenced = "another job has taken" in error and not any(each.overwrite for each in commands)
        expected = not fenced and any(text in error for text in REFUSALS)
    else:
        expected = not isinstance(command.outcome, JobError) or any(text in error for text in FAILURES)
    if not expected:
        raise Violation(f"{command}: {error}")


class Serial:
    """In place of a pool of threads, whose operations no scheduler could order."""

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: Any) -> None: ...

    map = staticmethod(map)
