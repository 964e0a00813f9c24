"""Real jobs without a cluster: all of `Job`, but for the making of shards, which a test does itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from support.sample_shards import sha256
from tandem_jobs.run import job, pipeline
from tandem_jobs.run.job import Job
from tandem_jobs.run.pools import ActorPool
from tandem_workers.dataset.commit import Format
from tandem_workers.dataset.shards import ShardPlan, ShardRows
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

MakeShards = Callable[[pipeline.Pipeline, list[int], int, int, Any], dict[str, Any]]


class JobWithoutRay(Job):
    """The job of a command; `read` makes a shard ready to be written, when `make_shards` asks for it."""

    result = "dataset"
    num_producers = shard_bytes = 1
    models: Any = SimpleNamespace(hashes={})

    def __init__(
        self,
        store: Store,
        plan: ShardPlan,
        fmt: Format,
        read: Callable[..., ShardRows],
        identity: Mapping[str, Any],
        info: Mapping[str, Any],
        card: bool = True,
        **options: Any,
    ) -> None:
        defaults = {"shards": None, "overwrite": False, "max_failed_shards": 0, "address": None, "logical_gpus": 1}
        chosen: Any = SimpleNamespace(**{**defaults, "int8": False, **options})
        super().__init__(chosen, store, plan)
        self.fmt, self.read, self.fields, self.kept, self.card = fmt, read, dict(identity), dict(info), card
        self.required_files = (layout.CARD,) if card else ()

    def run(self) -> dict[str, Any]:
        """As each command runs its job."""
        if not self.is_done():
            with self.session() as session:
                self.begin(session, *self.place(session))
                self.make(self.pipeline(), session)
        return self.close()

    def identity(self, on_real_gpus: bool) -> dict[str, Any]:
        return self.fields

    def info(self) -> dict[str, Any]:
        return self.kept

    def describe(self) -> list[str]:
        return []

    def place(self, session: Any) -> Any:
        return SimpleNamespace(mode="cpu", describe=lambda: ""), []

    def pipeline(self) -> pipeline.Pipeline:
        writer = pipeline.Writer(None, self.fmt, self.plan, self.store, self.record.epoch)
        reader: Any = self.read
        return pipeline.Pipeline(self.plan, [ActorPool("", ShardRows, [reader], 1)], writer, 0, 1)

    def files(self, entries: Any, failed: Any) -> dict[str, bytes]:
        """What a card depends on; a contact sheet is made of files that are read back."""
        if not self.card:
            return {}
        pictures = [sha256(self.store.read(entry.files[0].path)) for entry in entries]
        return {layout.CARD: f"{self.record.epoch} {pictures} {sorted(failed)}".encode()}


@contextlib.contextmanager
def no_ray(make_shards: MakeShards) -> Iterator[pytest.MonkeyPatch]:
    """The driver without a cluster and without signals, and silent."""
    session = SimpleNamespace(
        simulated=True, describe=lambda: "", object_store_bytes=1, device_of=lambda on_real_gpus: on_real_gpus
    )
    replaced = {
        "open_session": lambda *_: contextlib.nullcontext(session),
        "StartUp": lambda: SimpleNamespace(join=lambda: None),
        "about_to_open": lambda address: "",
        "describe_store": lambda *_: "",
        "stop_in_time": lambda command: contextlib.nullcontext(),
        "watch_store": lambda store: contextlib.nullcontext(),
        "versions": dict,
        "say": lambda text: None,
        "report": lambda summary, result: None,
        "make_shards": make_shards,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in replaced.items():
            patch.setattr(job, name, value)
        patch.setattr(pipeline, "replica_name", lambda: "replica")
        yield patch
