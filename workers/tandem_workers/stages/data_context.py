"""Executions of Ray Data: their settings, which last as long as the execution, and their rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import ray
from ray.data import DataContext, Dataset
from ray.data.block import BlockAccessor


@contextmanager
def own_context() -> Iterator[DataContext]:
    """Context manager: a copy of this process's settings, in force until the end; then its own are again.

    Without it the next execution in the process, ours or a user's, would have the policies of this one.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # a thread for each task, for a number that nobody reads
    context.execution_no_progress_timeout_s = -1  # waiting for a node is said, and the watchdog knows slow blocks
    with DataContext.current(context):
        yield context


def iterate_blocks(dataset: Dataset) -> Iterator[dict[str, np.ndarray]]:
    """Execute a dataset, and yield each of its blocks as soon as it is made, as arrays by column.

    `Dataset.iter_batches` would do the same with two more threads, and pickles its statistics with those of all blocks
    every few seconds.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for block in ray.get(bundle.block_refs):
            yield BlockAccessor.for_block(block).to_batch_format("numpy")
