"""The queue of a device: it works on one batch while the host prepares the next and fetches the results of the last.

One stream is enough: kernels of two streams do not gain from each other (docs/GPU.md), and copies are short.
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
    """A batch whose results are in host memory from the moment `done` on."""

    @property
    def done(self) -> Any: ...


BatchT = TypeVar("BatchT")
LaunchedT = TypeVar("LaunchedT", bound=Launched)


class DeviceQueue:
    """That of a CPU, which has computed everything when a launch returns."""

    ahead = 0  # batches that are launched before the results of another are fetched

    def run(self, launch: Callable[[BatchT], LaunchedT], batches: Iterable[BatchT]) -> Iterator[LaunchedT]:
        """Launch one batch after the other, and give each out, in their order, when its results are there."""
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
        """The moment when what has been launched so far is done."""
        return time.perf_counter()

    def wait(self, mark: Any) -> None:
        """Let the host wait for a moment."""

    def seconds(self, began: Any, ended: Any) -> float:
        """Between two moments, of which the second has come."""
        return float(ended - began)

    def to_host(self, tensor: Tensor) -> Tensor:
        """The tensor in host memory, where it is complete at the next mark."""
        return tensor


class CudaQueue(DeviceQueue):
    """That of a CUDA device, in its current stream."""

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
    """Ids [b, L'] of some rows of a batch on the device, and in host memory with the sum of their logits. The decode
    itself, whose tensors may be large, is not kept."""

    scales: tuple[int, int]  # before and after
    ids_bL: Tensor
    host_ids_bL: Tensor
    host_total: Tensor

    @classmethod
    def of(cls, decode: Decode, queue: DeviceQueue) -> LaunchedDecode:
        ids_bL, total = decode.launch()
        return cls((decode.start, decode.stop), ids_bL, queue.to_host(ids_bL), queue.to_host(total))

    @property
    def tokens(self) -> np.ndarray:
        """uint16 [b, L'], once they are there. JobError for logits that are not finite."""
        check_logits(self.host_total, *self.scales)
        return to_tokens(self.host_ids_bL)


def tokens_of(parts: Sequence[LaunchedDecode]) -> np.ndarray:
    """Of all rows of a batch: uint16 [B, L']."""
    return np.concatenate([part.tokens for part in parts])
