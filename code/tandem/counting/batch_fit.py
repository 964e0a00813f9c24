"""The largest batch that fits a device's memory, by counting bytes instead of trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tandem.counting.costs import Bytes

# Bytes of a stage on its device at a given batch size
Stage = Callable[[int], Bytes]
MAX_GUESSES = 6


def device_bytes(stages: Sequence[Stage], batch: int, on_host: bool = False, all_kept: bool = False) -> int:
    """Bytes of stages that take turns on a device: all weights, plus the working memory of the largest stage.

    `on_host`: the device is the host, so tables of modulation vectors count too. `all_kept`: every stage keeps its
    working memory (CUDA graphs).
    """
    counted = [stage(batch) for stage in stages]
    working = [c.cache + c.activations for c in counted]
    tables = sum(c.host for c in counted) if on_host else 0
    return sum(c.weights for c in counted) + tables + (sum(working) if all_kept else max(working))


def largest_batch(bytes_of: Callable[[int], int], budget: int, most: int) -> int:
    """The largest batch of 1 to `most` images whose bytes fit into `budget`, or 0 if not even one image fits.

    Bytes must grow with the batch. They grow almost linearly, so interpolation needs only a few counts; otherwise
    bisection finds the batch.
    """
    counts: dict[int, int] = {}

    def count(batch: int) -> int:
        if batch not in counts:
            counts[batch] = bytes_of(batch)
        return counts[batch]

    if count(most) <= budget:
        return most
    if count(1) > budget:
        return 0
    low, high = 1, most  # the largest known to fit, the smallest known not to
    while high - low > 1:
        straight = low + (high - low) * (budget - counts[low]) // (counts[high] - counts[low])
        guess = straight if len(counts) < MAX_GUESSES else (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        low, high = (guess, high) if count(guess) <= budget else (low, guess)
    return low
