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
    """Works on batches of one size, and on halves of it from the moment at which memory runs out.

    Smaller batches may be rounded differently, so a warning says what happened.
    """

    def __init__(self, what: str, batch: int):
        self.what, self.size = what, batch

    def __call__(self, work: Callable[[slice], T], num_rows: int) -> list[T]:
        """Results of `work` on consecutive rows that make up all `num_rows`. Raises what `work` does, and its lack of
        memory once single rows do not fit either."""
        return list(self.run(lambda some: [work(some)], num_rows))

    def run(self, work: Callable[[slice], Iterable[T]], num_rows: int) -> Iterator[T]:
        """The same for a work that yields its results one by one: where memory runs out in the middle, those of the
        rows in hand are yielded again from the first."""
        start = 0
        while start < num_rows:
            some = slice(start, min(start + self.size, num_rows))
            try:
                yield from work(some)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or some.stop - start == 1:
                    raise
                cause = " ".join(str(error).split())
            else:
                start = some.stop
                continue
            # only here is the error gone, and with it the tensors that its traceback held
            self.size = (some.stop - start + 1) // 2
            on_gpu = torch.cuda.is_initialized()
            if on_gpu:
                torch.cuda.synchronize()  # a graph that is given up may be at work on the batch before
            release_graphs()
            if on_gpu:
                torch.cuda.empty_cache()
            warnings.warn(
                f"{self.what}: out of memory with {some.stop - start} images at once, now {self.size}; images of a "
                f"smaller batch may differ where rounding flips a draw ({cause:.160})",
                FallbackWarning,
                stacklevel=2,
            )
