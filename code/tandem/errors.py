"""Every error that Tandem raises on purpose.

TandemError                 has .hint: one sentence that says what to do, or None
├── InputError              the caller's input is wrong; the command line exits 2
│   ├── CheckpointError     a weights file is missing, corrupt, misshapen or does not fit
│   ├── PictureSizeError    a picture has more pixels than are taken
│   ├── LabelError          a label, class name or label file is wrong
│   └── PlacementError      more replicas than devices, or roles that cannot be placed
├── OutputError             the place of a dataset holds another job, or cannot be read or written; exits 2
├── JobError                the input was right and the run failed; the command line exits 1
└── StoppedError            somebody stopped a job that was followed; the command line exits 3
"""

from __future__ import annotations


class TandemError(Exception):
    """Base of all errors here: a message that names expected and actual, and an optional hint."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.hint = hint

    # Ray pickles errors between processes: keep the hint
    def __reduce__(self) -> tuple[type[TandemError], tuple[str, str | None]]:
        return type(self), (str(self), self.hint)


class InputError(TandemError, ValueError):
    """The caller's input is wrong; nothing was started."""

    exit_code = 2


class CheckpointError(InputError):
    """A weights file is missing, corrupt, misshapen, or does not fit its partner."""


class PictureSizeError(InputError):
    """A picture has more pixels than are taken; it was not decoded."""


class LabelError(InputError):
    """A label, class name or label file is wrong."""


class PlacementError(InputError):
    """More replicas than devices, or a role that no device can take."""


class OutputError(TandemError):
    """The place of a dataset holds another job, or cannot be read or written.

    Not a ValueError: code that parses stored content must not mistake a failing place for wrong content.
    """

    exit_code = 2


class JobError(TandemError, RuntimeError):
    """The input was right and the run failed."""


class StoppedError(TandemError):
    """A followed job was stopped by someone else; its committed shards are kept."""

    exit_code = 3


class TandemWarning(UserWarning):
    """Something did not go as asked, but work continued. Actors pass it on to the driver of the job."""


class FallbackWarning(TandemWarning):
    """A device falls back: to plain kernels, to no graphs, or to smaller batches."""


def one_line(error: Exception) -> str:
    """Type and first line of an error, for messages."""
    first = next((line.strip(" :") for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
