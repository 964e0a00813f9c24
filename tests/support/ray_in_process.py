"""Ray without a cluster: a pipeline of Ray Data runs stage after stage in this process.

To be installed before modules of the project are imported, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import ray
import ray._raylet
import ray.data
from ray.data.block import BlockAccessor

Row = dict[str, np.ndarray]


class InProcessDataset:
    """What the pipeline uses of a Ray Dataset. Rows pass all stages one by one."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows, self.stages = rows, []

    def map_batches(
        self,
        stage: Callable[..., Any],
        fn_constructor_args: Sequence[Any] = (),
        fn_kwargs: Mapping[str, Any] = MappingProxyType({}),
        **_: Any,
    ) -> Any:
        """An actor is made at once, where Ray would place it."""
        self.stages.append(stage(*fn_constructor_args) if isinstance(stage, type) else partial(stage, **fn_kwargs))
        return self

    def iter_internal_ref_bundles(self) -> Iterator[SimpleNamespace]:
        for row in self.rows:
            for stage in self.stages:
                row = stage(row)
            yield SimpleNamespace(block_refs=[BlockAccessor.batch_to_block(row)])


def from_items(items: Sequence[Any], **_: Any) -> InProcessDataset:
    return InProcessDataset([{"item": np.array([item])} for item in items])


class NoGcs:
    """A GCS without entries."""

    def __init__(self, address: str) -> None:
        pass

    def internal_kv_keys(self, *_: Any, **__: Any) -> list[bytes]:
        return []

    def internal_kv_del(self, *_: Any, **__: Any) -> None:
        pass

    def get_cluster_status(self, **_: Any) -> bytes:
        return b""


def install(num_gpus: int = 0) -> None:
    """Put these in place of Ray's, for the rest of the process."""
    context = SimpleNamespace(
        gcs_address="none", get_accelerator_ids=dict, get_node_id=lambda: "node", get_actor_id=lambda: "actor"
    )
    ray._raylet.GcsClient = NoGcs
    replaced: dict[str, Any] = {
        "is_initialized": lambda: True,
        "cluster_resources": lambda: {"CPU": 2.0, "GPU": float(num_gpus), "object_store_memory": 2.0**30},
        "nodes": lambda: [{"Alive": True, "NodeID": "node"}],
        "get_runtime_context": lambda: context,
        "put": lambda value: value,
        "get": lambda value: value,
        "shutdown": lambda: None,
    }
    for name, value in replaced.items():
        setattr(ray, name, value)
    ray.data.from_items = from_items
