"""A queue of launched batches: the device works on one while the host prepares the next and fetches earlier results.

One stream is enough: kernels on two streams are no faster (docs/GPU.md), and copies are short.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from tandem.prefix import to_tokens
from tandem.scales import Decode, check_logits


class Launched(Protocol):
    """A launched batch. Its results are in host memory once the mark `done` is reached."""

    @property
    def done(self) -> Any: ...


BatchT = TypeVar("BatchT")
LaunchedT = TypeVar("LaunchedT", bound=Launched)


class DeviceQueue:
    """The queue of a CPU, where a launch returns when everything is computed."""

    ahead = 0  # batches launched before the results of an earlier one are fetched

    def run(self, launch: Callable[[BatchT], LaunchedT], batches: Iterable[BatchT]) -> Iterator[LaunchedT]:
        """Launch batches in order, and yield each one when its results are there."""
        pending: deque[LaunchedT] = deque()
        for batch in batches:
            pending.append(launch(batch))
            if len(pending) > self.ahead:
                yield self.waited_for(pending.popleft())
        while pending:
            yield self.waited_for(pending.popleft())

    def waited_for(self, launched: LaunchedT) -> LaunchedT:
        self.wait(launched.done)
        return launched

    def mark(self) -> Any:
        """A mark that is reached when all work launched so far is done."""
        return time.perf_counter()

    def wait(self, mark: Any) -> None:
        """Block the host until a mark is reached."""

    def seconds(self, began: Any, ended: Any) -> float:
        """Seconds between two marks that have been reached."""
        return float(ended - began)

    def to_host(self, tensor: Tensor) -> Tensor:
        """The tensor in host memory, complete at the next mark."""
        return tensor


class CudaQueue(DeviceQueue):
    """The queue of a CUDA device, on its current stream."""

    ahead = 1

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record()
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()

    def seconds(self, began: torch.cuda.Event, ended: torch.cuda.Event) -> float:
        return float(began.elapsed_time(ended)) / 1000

    def to_host(self, tensor: Tensor) -> Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


def queue_of(device: torch.device) -> DeviceQueue:
    return CudaQueue() if device.type == "cuda" else DeviceQueue()


@dataclass(frozen=True)
class LaunchedDecode:
    """Ids [b, L'] of some rows of a batch, on the device and in host memory, and the sum of their logits. Does not keep
    the decode itself, whose tensors may be large."""

    scales: tuple[int, int]  # first scale, scale after the last
    ids_bL: Tensor
    host_ids_bL: Tensor
    host_total: Tensor

    @classmethod
    def of(cls, decode: Decode, queue: DeviceQueue) -> LaunchedDecode:
        ids_bL, total = decode.launch()
        return cls((decode.start, decode.stop), ids_bL, queue.to_host(ids_bL), queue.to_host(total))

    @property
    def tokens(self) -> np.ndarray:
        """uint16 [b, L'], valid once the mark is reached. JobError for logits that are not finite."""
        check_logits(self.host_total, *self.scales)
        return to_tokens(self.host_ids_bL)


def tokens_of(parts: Sequence[LaunchedDecode]) -> np.ndarray:
    """The tokens of all rows of a batch: uint16 [B, L']."""
    return np.concatenate([part.tokens for part in parts])
