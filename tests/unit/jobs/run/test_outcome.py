"""The one line that a failed run prints."""

import pytest

from tandem_jobs.run.outcome import as_job_error

REMOTE = """\x1b[36mray::MapWorker(MapBatches(StageActor)).submit()\x1b[39m (pid=1, ip=192.0.2.2)
  File "/x/workers/refiner.py", line 43, in __call__
    raise JobError("...")
{raised}

The above exception was the direct cause of the following exception:

ray.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, configure `retried_io_errors` and `max_map_retries`."""


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        ("tandem.errors.JobError: shard 3: pixels are not finite", "shard 3: pixels are not finite"),
        ("ValueError: first\n\ntandem.errors.OutputError: disk full", "disk full"),
        ("OSError: [Errno 28] No space left on device", "OSError: [Errno 28] No space left on device"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "torch.OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_the_cause_is_found_in_a_remote_traceback(raised, line):
    error = as_job_error(RuntimeError(REMOTE.format(raised=raised)))
    assert str(error) == line
    assert "resumes from" in (error.hint or "")


def test_an_error_without_a_known_form_keeps_its_first_line():
    assert str(as_job_error(RuntimeError("\n  the cluster went away\nmore"))) == "the cluster went away"


@pytest.mark.parametrize(("mode", "hint"), [("token", "is it so on the cluster"), ("disabled", "resumes from them")])
def test_actors_that_never_ran_point_to_tokens_where_those_are_checked(mode, hint, monkeypatch):
    """What the driver of a run with `RAY_AUTH_MODE=token` gets on a cluster without tokens."""
    died = "The actor died unexpectedly before finishing this task.\n\tThe actor never ran - it was cancelled before it"
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert hint in (as_job_error(RuntimeError(died)).hint or "")
