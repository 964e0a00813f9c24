"""How many rows go through a model at once, where nobody says: as many as fit by counted bytes."""

from __future__ import annotations

from dataclasses import replace

from tandem.counting.batch_fit import largest_batch
from tandem.errors import InputError
from tandem.training.train_costs import TrainingStep, step_bytes
from tandem_cluster.devices import Memory
from tandem_jobs.run.batch_size import GPU_SHARE, HOST_SHARE
from tandem_jobs.run.progress import say
from tandem_workers.training.run import WorkerGroup


def choose_micro_batch(step: TrainingStep, batch: int, group: WorkerGroup, memory: Memory) -> int:
    """Rows of a micro-batch: at most a worker's part of the batch, and no more than fit its device.

    `step` is that of a worker, of any number of rows. InputError where not even one row fits.
    """
    most = -(-batch // group.num)
    if group.cuda:
        there = min(memory.cards)
        budget, what = int(GPU_SHARE * there), f"{GPU_SHARE} of the smallest GPU's {there / 1e9:.1f} GB"
    else:
        budget = int(HOST_SHARE * memory.host / group.num)
        what = f"{budget / 1e9:.2f} GB ({HOST_SHARE} of {memory.host / 1e9:.1f} GB, for each of {group.num} workers)"

    def bytes_of(rows: int) -> int:
        return step_bytes(replace(step, rows=rows)).total

    rows = largest_batch(bytes_of, budget, most)
    if rows == 0:
        raise InputError(
            f"expected {bytes_of(1) / 1e9:.2f} GB a worker for a single row, got {what}",
            "--recompute keeps less, --shard fsdp divides the weights among --workers",
        )
    if rows < most:
        say(f"micro-batch: {rows} rows, the most that fit {what}; {-(-most // rows)} of them make a worker's part")
    return rows
