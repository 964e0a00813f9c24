"""What is done where a batch does not fit the device after all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from tandem.errors import FallbackWarning
from tandem.graphs import release_graphs
from tandem.memory import is_out_of_memory

T = TypeVar("T")


class Halving:
    """Cuts batches of one size, and halves of it from the moment at which memory runs out:

        for attempt in halving.attempts(num_rows):
            with attempt as some:
                ...  # work on the rows `some`

    Smaller batches may be rounded differently, so a warning says what happened.
    """

    def __init__(self, stage: str, batch: int):
        self.stage, self.size = stage, batch

    def attempts(self, num_rows: int) -> Iterator[Attempt]:
        """Consecutive rows that make up all `num_rows`; those that did not fit come again in smaller parts. An error of
        the work passes, and so does its lack of memory once single rows do not fit either."""
        start = 0
        while start < num_rows:
            attempt = Attempt(slice(start, min(start + self.size, num_rows)))
            yield attempt
            if not attempt.memory_error:
                start = attempt.rows.stop
                continue
            # only here is the error gone, and with it the tensors that its traceback held
            count = attempt.rows.stop - start
            self.size = (count + 1) // 2
            on_gpu = torch.cuda.is_initialized()
            if on_gpu:
                torch.cuda.synchronize()  # a graph that is given up may be at work on the batch before
            release_graphs()
            if on_gpu:
                torch.cuda.empty_cache()
            warnings.warn(
                f"{self.stage}: out of memory with {count} images at once, now {self.size}; images of a "
                f"smaller batch may differ where rounding flips a draw ({attempt.memory_error:.160})",
                FallbackWarning,
                stacklevel=2,
            )

    def __call__(self, work: Callable[[slice], T], num_rows: int) -> list[T]:
        """Results of `work` on all parts."""
        return list(self.run(lambda rows: [work(rows)], num_rows))

    def run(self, work: Callable[[slice], Iterable[T]], num_rows: int) -> Iterator[T]:
        """The same for a work that yields its results one by one: where memory runs out in the middle, those of the
        rows in hand are yielded again from the first."""
        for attempt in self.attempts(num_rows):
            with attempt as rows:
                yield from work(rows)


class Attempt:
    """Work on some rows. `lacked` says how memory ran out, if it did."""

    def __init__(self, rows: slice):
        self.rows, self.memory_error = rows, ""

    def __enter__(self) -> slice:
        return self.rows

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """Whether the error is dealt with: memory may suffice for fewer rows."""
        if not isinstance(error, RuntimeError | MemoryError) or not is_out_of_memory(error):
            return False
        if self.rows.stop - self.rows.start == 1:
            return False
        self.memory_error = " ".join(str(error).split()) or type(error).__name__
        return True
