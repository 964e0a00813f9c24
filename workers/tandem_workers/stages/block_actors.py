"""Actors that make a file of each block of a source, on Ray Data: numbers of blocks stream through a pool.

An actor holds a network, reads a block, and puts the block's file. Rows hold numbers alone, so nothing that is made
passes through the driver or the object store. What is put is not made again.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import ray.data
import ray.exceptions
import torch
from ray.data import ActorPoolStrategy

from tandem.errors import InputError, JobError, OutputError, TandemError
from tandem_workers.dataset.block_files import BlockFiles
from tandem_workers.pictures.picture_block import PictureSource
from tandem_workers.stages.data_context import own_context
from tandem_workers.stages.ledger import LOADING, Ledger
from tandem_workers.stages.oom import Halving
from tandem_workers.stages.ray_data import Row, end_with, has_lost_its_device, replica_name, rows_of

BLOCKS_AT_ONCE = 2  # in an actor: one is read and decoded while the network works on another
ERRORS = {kind.__name__: kind for kind in (InputError, OutputError)}  # kinds that keep their exit code
T = TypeVar("T")


class BlockWork(ABC):
    """What is made of the blocks of a source. It is pickled, and each actor loads its own copy.

    `name`: what is made, in messages, such as "features".
    """

    name: ClassVar[str]
    source: PictureSource
    files: BlockFiles

    @property
    @abstractmethod
    def title(self) -> str:
        """What makes it, for people."""

    @abstractmethod
    def load(self, device: torch.device, cpus: int) -> Callable[[int], int]:
        """A function that makes and puts the file of a block, and returns its number of pictures.

        Called once by an actor; its function is called by several threads. TandemError where it cannot be loaded.
        """

    def missing(self) -> list[int]:
        """Blocks whose files are not there."""
        return sorted(set(range(self.source.num_blocks)) - self.files.committed())


@dataclass(frozen=True)
class ActorPool:
    """Actors and what each takes. With a GPU (or a share of one) the network is on it, if there is a real one."""

    actors: int = 1
    cpus: int = 1
    gpus: float = 0


@dataclass(frozen=True)
class FinishedBlock:
    """A finished block."""

    block: int
    pictures: int
    seconds: float


def make_missing(work: BlockWork, pool: ActorPool) -> Iterator[FinishedBlock]:
    """Make the missing blocks; yields each one once its file is put, in any order.

    Raises:
        InputError: a broken picture, by its name, or a weights file that is another one on some node.
        OutputError: the place holds other files, or cannot be read or written.
        JobError: anything else.
    """
    todo = work.missing()
    if not todo:
        return
    work.files.claim()
    with own_context():
        rows = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            BlockActor,
            fn_constructor_args=(work, pool, Ledger(f"{work.name}-{uuid.uuid4().hex}", work.name)),
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(
                size=min(pool.actors, len(todo)),
                max_tasks_in_flight_per_actor=BLOCKS_AT_ONCE,
                max_concurrent_calls_per_actor=BLOCKS_AT_ONCE,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        try:
            for bundle in rows.iter_internal_ref_bundles():
                yield from map(finished, rows_of(bundle))
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            cause = lines[-1].strip() if lines else type(error).__name__
            raise JobError(f"{work.name}: {cause}", kept(work.name)) from error


def kept(name: str) -> str:
    """A hint: nothing that is finished is lost."""
    return f"{name} of finished blocks are kept; the same command goes on from them"


def finished(row: Row) -> FinishedBlock:
    """The result of a row. Raises the error that its actor met."""
    values = json.loads(row["done"][0])
    if "error" in values:
        raise ERRORS.get(values["error"], JobError)(values["message"], values["hint"])
    return FinishedBlock(**values)


class BlockActor:
    """Holds the network on its device, and makes files of blocks."""

    def __init__(self, work: BlockWork, pool: ActorPool, ledger: Ledger) -> None:
        self.name, self.ledger, self.replica = work.name, ledger, replica_name()
        torch.set_num_threads(max(1, pool.cpus))
        device = torch.device("cuda" if pool.gpus and torch.cuda.is_available() else "cpu")
        self.make: Callable[[int], int] | None = None
        self.problem: Exception | None = None
        with ledger.loading(self.replica) as attempt:
            attempt.enter(LOADING)
            try:
                if attempt.given_up:
                    raise JobError(f"{self.name}: an actor does not start: {attempt.given_up}")
                self.make = work.load(device, pool.cpus)
            except TandemError as error:  # would end in a traceback of Ray's; the first block reports it
                self.problem = error

    def __call__(self, row: Row) -> Row:
        block = int(row["item"][0])
        try:
            with self.ledger.attempt(f"block {block}", self.replica) as attempt:
                if attempt.given_up:
                    raise JobError(f"block {block}: {attempt.given_up}", kept(self.name))
                attempt.enter(self.name)
                done = vars(self.finish(block))
        except Exception as error:
            if has_lost_its_device(error):
                end_with(error)
            text = " ".join(str(error).split())
            message = text if isinstance(error, TandemError) else f"{self.name}: {type(error).__name__}: {text}"
            kind = next((name for name, known in ERRORS.items() if isinstance(error, known)), "JobError")
            done = {"error": kind, "message": message, "hint": getattr(error, "hint", kept(self.name))}
        return {"done": np.array([json.dumps(done)], dtype=object)}

    def finish(self, block: int) -> FinishedBlock:
        """Make and put one block."""
        if self.problem:
            raise self.problem
        assert self.make is not None
        began = time.monotonic()
        pictures = self.make(block)
        return FinishedBlock(block, pictures, round(time.monotonic() - began, 3))


class SharedNetwork:
    """A network that the threads of an actor use in turn, in smaller parts where memory runs out."""

    def __init__(self, name: str, batch: int) -> None:
        self.halving, self.lock = Halving(name, batch), threading.Lock()

    def run(self, network: Callable[[slice], T], num_rows: int) -> list[T]:
        """What the network gives for slices of all rows, in order."""
        with self.lock:
            return self.halving(network, num_rows)
