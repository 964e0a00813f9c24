"""Runs of actors over the blocks of pictures: options of the pool, a Ray session if there is work, progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from tandem.errors import PlacementError
from tandem_cluster.session import Session, about_to_open, open_session
from tandem_jobs.options.options import Replicas, Threads
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.progress import LINE_EVERY_S, say
from tandem_workers.stages.block_actors import ActorPool, BlockWork, make_missing

MOST_THREADS = 8  # of an actor, by default


class PoolOptions(Spec):
    """Actors and the cluster that they run on."""

    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: GPUs, if the cluster has any")
    actors: Replicas | None = Field(
        None, description="networks that work at once; default: one on each GPU, or one for each CPU"
    )
    threads: Threads | None = Field(None, description="CPU threads of each; default: the CPUs there are, shared evenly")
    address: str | None = Field(None, description="Ray cluster to join (also RAY_ADDRESS); default: start Ray here")


def make_all(works: Sequence[BlockWork], options: PoolOptions) -> None:
    """Make all blocks that are missing. Starts no Ray where none are."""
    works = [work for work in works if work.missing()]
    if not works:
        return
    say(about_to_open(options.address))
    with open_session(options.address, 0, 1) as session:
        say(session.describe())
        for work in works:
            run_blocks(work, choose_pool(options, session, work.source.num_blocks))


def run_blocks(work: BlockWork, pool: ActorPool) -> None:
    """Make the missing blocks of one place, with a line of progress every few seconds."""
    missing, began = len(work.missing()), time.monotonic()
    if not missing:  # the same place may be the reference and the other dataset
        return
    there = work.source.num_blocks - missing
    where = "GPUs" if pool.gpus else f"CPUs, {pool.cpus} threads each"
    found = f", {there} are there" if there else ""
    say(
        f"{work.title} on {work.source.place} ({work.source.kind}): {missing} of {work.source.num_blocks} "
        f"blocks{found}; {pool.actors} on {where} -> {work.files.place}"
    )
    done = pictures = 0
    shown_at = began
    for block in make_missing(work, pool):
        done, pictures, now = done + 1, pictures + block.pictures, time.monotonic()
        if now - shown_at > LINE_EVERY_S or done == missing:
            shown_at = now
            say(f"{done} of {missing} blocks, {pictures:,} pictures, {pictures / (now - began):.1f} pictures/s")
    work.files.store.clean()


def choose_pool(options: PoolOptions, session: Session, num_blocks: int) -> ActorPool:
    """Actors and their resources. PlacementError for more than the cluster has: Ray would wait for ever.

    By default the number of actors follows from the cluster and from all blocks, so that a resumed run has the same.
    """
    has_gpus = session.num_gpus > 0 and not session.simulated
    if options.device == "gpu" and not has_gpus:
        raise PlacementError("--device: expected a cluster with GPUs, this one has none")
    cpus = max(1, int(session.num_cpus))
    on_gpus = has_gpus and options.device != "cpu"
    most = session.num_gpus if on_gpus else cpus
    actors = options.actors or max(1, min(most, num_blocks))
    threads = options.threads or max(1, min(MOST_THREADS, cpus // actors))
    if not session.can_grow and (actors > most or actors * threads > cpus):
        there = f"{session.num_gpus} GPUs and {cpus} CPUs" if on_gpus else f"{cpus} CPUs"
        raise PlacementError(f"expected at most {there} for all actors, got {actors} with {threads} threads each")
    return ActorPool(actors, threads, 1 if on_gpus else 0)
