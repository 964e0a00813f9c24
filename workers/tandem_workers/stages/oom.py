"""Smaller batches when memory runs out."""

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
    """Cuts rows into batches, and halves the batch size whenever memory runs out:

        for attempt in halving.attempts(num_rows):
            with attempt as rows:
                ...  # work on this slice of rows

    Smaller batches may be rounded differently, so a warning says what happened.
    """

    def __init__(self, stage: str, batch: int):
        self.stage, self.size = stage, batch

    def attempts(self, num_rows: int) -> Iterator[Attempt]:
        """Consecutive slices of all `num_rows`; a slice that did not fit is repeated in smaller parts. Other errors are
        raised, and so is out of memory for a single row."""
        start = 0
        while start < num_rows:
            attempt = Attempt(slice(start, min(start + self.size, num_rows)))
            yield attempt
            if not attempt.memory_error:
                start = attempt.rows.stop
                continue
            # here the error has been freed, and with it the tensors that its traceback held
            count = attempt.rows.stop - start
            self.size = (count + 1) // 2
            on_gpu = torch.cuda.is_initialized()
            if on_gpu:
                torch.cuda.synchronize()  # a graph to be released may still run the previous batch
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
        """Results of `work` on all slices."""
        return list(self.run(lambda rows: [work(rows)], num_rows))

    def run(self, work: Callable[[slice], Iterable[T]], num_rows: int) -> Iterator[T]:
        """The same for work that yields its results one by one: if memory runs out midway, the results of the current
        slice are yielded again from its first row."""
        for attempt in self.attempts(num_rows):
            with attempt as rows:
                yield from work(rows)


class Attempt:
    """Work on a slice of rows. `memory_error`: message if memory ran out, else empty."""

    def __init__(self, rows: slice):
        self.rows, self.memory_error = rows, ""

    def __enter__(self) -> slice:
        return self.rows

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """Suppress out of memory, unless it is for a single row."""
        if not isinstance(error, RuntimeError | MemoryError) or not is_out_of_memory(error):
            return False
        if self.rows.stop - self.rows.start == 1:
            return False
        self.memory_error = " ".join(str(error).split()) or type(error).__name__
        return True
