"""The micro-batch that is chosen: what fits a worker's device by counted bytes."""

import pytest

from support.tiny_models import tiny_var
from tandem.errors import InputError
from tandem.training.train_costs import TrainingStep, step_bytes
from tandem_cluster.devices import Memory
from tandem_jobs.run.batch_size import GPU_SHARE, HOST_SHARE
from tandem_jobs.train.micro_batch import choose_micro_batch
from tandem_workers.training.run import WorkerGroup

STEP = TrainingStep(tiny_var(1, 0).config, mixed=False)


def needed(rows: int) -> int:
    """Memory of a machine whose share suffices for so many rows, and no more."""
    return int(step_bytes(TrainingStep(STEP.student, rows=rows, mixed=False)).total / HOST_SHARE) + 2


def test_all_rows_of_a_worker_where_they_fit(capsys):
    assert choose_micro_batch(STEP, 10, WorkerGroup(4), Memory((), 10**12)) == 3
    assert capsys.readouterr().err == ""


def test_the_most_rows_that_fit_and_a_line_that_says_so(capsys):
    assert choose_micro_batch(STEP, 64, WorkerGroup(1), Memory((), needed(24))) == 24
    assert "micro-batch: 24 rows" in capsys.readouterr().err
    assert choose_micro_batch(STEP, 128, WorkerGroup(2), Memory((), 2 * needed(24))) == 24  # which share a machine
    card = int(HOST_SHARE * needed(24) / GPU_SHARE) + 2
    assert choose_micro_batch(STEP, 64, WorkerGroup(1, gpus=1, cuda=True), Memory((card,), 1)) == 24


def test_a_model_too_large_for_one_row_is_refused():
    with pytest.raises(InputError, match=r"expected .* GB a worker for a single row, got"):
        choose_micro_batch(STEP, 8, WorkerGroup(1), Memory((), needed(1) // 2))
