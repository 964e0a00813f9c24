"""Real jobs without a cluster: all of `Job.run`, but for the making of shards, which a test does itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from sample_shards import sha256

from jobs import pipeline, running
from workers import layout
from workers.closing import no_files
from workers.commit import Format
from workers.shards import ShardPlan, ShardRows
from workers.store import Store

MakeShards = Callable[[pipeline.Pipeline, list[int], int, int, Any], dict[str, Any]]


def job_without_ray(
    store: Store,
    plan: ShardPlan,
    fmt: Format,
    read: Callable[..., ShardRows],
    identity: Mapping[str, Any],
    info: Mapping[str, Any],
    card: bool = True,
    **options: Any,
) -> running.Job:
    """The job of a command; `read` makes a shard ready to be written, when `make_shards` asks for it."""
    writer = pipeline.Writer(None, fmt, plan, store)
    place: Any = SimpleNamespace(mode="cpu", describe=lambda: "")
    work = running.Work(pipeline.Pipeline(plan, read, [], writer, 0, 1), place, [], dict(info))
    chosen: Any = SimpleNamespace(
        **{"shards": None, "overwrite": False, "max_failed_shards": 0, "address": None, "logical_gpus": 1, **options}
    )
    render, beside = (partial(render_card, store), (layout.CARD,)) if card else (no_files, ())
    return running.Job(chosen, store, plan, 0, lambda _: dict(identity), lambda _: (work, False), render, beside)


def render_card(store: Store, job: Any, entries: Any, failed: Any) -> dict[str, bytes]:
    """What a card depends on; a contact sheet is made of files that are read back."""
    pictures = [sha256(store.read(entry.files[0].path)) for entry in entries]
    return {layout.CARD: f"{job.epoch} {pictures} {sorted(failed)}".encode()}


@contextlib.contextmanager
def no_ray(make_shards: MakeShards) -> Iterator[pytest.MonkeyPatch]:
    """The driver without a cluster and without signals, and silent."""
    session = SimpleNamespace(simulated=True, describe=lambda: "", object_store_bytes=1)
    replaced = {
        "open_session": lambda *_: contextlib.nullcontext(session),
        "StartUp": lambda: SimpleNamespace(join=lambda: None, elapsed_s=0.0),
        "about_to_open": lambda address: "",
        "describe_store": lambda *_: "",
        "stop_in_time": lambda command: contextlib.nullcontext(),
        "watch_store": lambda store: contextlib.nullcontext(),
        "versions": dict,
        "say": lambda text: None,
        "make_shards": make_shards,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in replaced.items():
            patch.setattr(running, name, value)
        patch.setattr(pipeline, "replica_name", lambda: "replica")
        yield patch
