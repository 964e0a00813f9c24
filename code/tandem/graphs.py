"""CUDA graphs of decoding: all kernels of a scale are launched at once, instead of one after the other.

A graph works on the addresses that it was captured with. So decodes of one shape, one after the other, share their
KV cache, their modulation vectors and the inputs of each scale, into which new values are copied.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor

from tandem.attention import KVCache
from tandem.compiling import told
from tandem.errors import TandemWarning
from tandem.memory import is_out_of_memory
from tandem.var import Conditioning, Forward, Hidden

Replay = Callable[[], Tensor]
# Captures some work; what it returns does that work again and gives the same tensor with new values
Capture = Callable[[Callable[[], Tensor]], Replay]
WARM_UPS = 3
KNOWN: WeakSet[Graphs] = WeakSet()
MOST_SHAPES = 8  # each keeps a KV cache
IDLE_DECODES = 64  # after so many decodes of other shapes one makes room: capturing costs a second or two
FIRST_CAPTURED = 2  # times that a shape has come: one that comes once is not worth it


@dataclass
class Place:
    """What decodes of one shape share.

    Attributes:
        captured: input [R, L, C] and graph of each scale, by the tokens in the cache before it.
        taken: a decode is under way here.
        used_at: number of the last decode here.
    """

    cache: KVCache
    condition: Conditioning
    captured: dict[int, tuple[Tensor, Replay]] = field(default_factory=dict)
    taken: bool = False
    used_at: int = 0

    def begin(self, condition: Conditioning) -> None:
        """Make ready for a batch of other classes."""
        for kept_R6C, new_R6C in zip(self.condition.blocks, condition.blocks, strict=True):
            kept_R6C.copy_(new_R6C)
        self.cache.filled = 0


class Graphs:
    """The graphs of one model. With the first that cannot be captured it warns, and captures no more."""

    def __init__(self, capture: Capture):
        self.capture = capture
        self.works = True
        KNOWN.add(self)
        self.places: dict[tuple[int, ...], Place] = {}
        self.seen: Counter[tuple[int, ...]] = Counter()  # shapes without a place
        self.decodes = 0

    @contextmanager
    def forwards(
        self, hidden: Hidden, condition: Conditioning, make_cache: Callable[[], KVCache], shape: tuple[int, ...]
    ) -> Iterator[Forward]:
        """How the scales of one decode go through all blocks. `shape` is what its tensors' sizes follow from.

        The tensor that a scale gives is good until the next scale. A decode beside another of its shape runs plainly.
        """
        self.decodes += 1
        place = self.places.get(shape)
        if place is None and self.works and self.is_worth_it(shape):
            kept = [modulation_R6C.clone() for modulation_R6C in condition.blocks]
            place = self.places[shape] = Place(make_cache(), replace(condition, blocks=kept))
        if place is not None:
            place.used_at = self.decodes
        if place is None or place.taken:
            yield partial(hidden, condition=condition, cache=make_cache())
            return
        place.begin(condition)
        place.taken = True
        try:
            yield partial(self.forward, hidden, place)
        finally:
            place.taken = False

    def is_worth_it(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape without a place should have one now: it comes again, and there is room or one is idle."""
        self.seen[shape] += 1
        if self.seen[shape] < FIRST_CAPTURED:
            return False
        if len(self.places) >= MOST_SHAPES:
            oldest = min(self.places, key=lambda known: self.places[known].used_at)
            if self.decodes - self.places[oldest].used_at <= IDLE_DECODES:
                return False
            del self.places[oldest]
        del self.seen[shape]
        return True

    def forward(self, hidden: Hidden, place: Place, x_RLC: Tensor, sizes: Sequence[int]) -> Tensor:
        """One scale through all blocks: captured at its first time, else replayed. As `Var.hidden`."""
        cache, start = place.cache, place.cache.filled
        if start not in place.captured:
            plain = partial(hidden, sizes=sizes, condition=place.condition, cache=cache)
            static_RLC = x_RLC.clone()

            def work() -> Tensor:
                cache.filled = start
                return plain(static_RLC)

            if not self.works or not (replay := self.try_capture(work)):
                return work()
            place.captured[start] = static_RLC, replay
        static_RLC, replay = place.captured[start]
        static_RLC.copy_(x_RLC)
        cache.filled = start + sum(sizes)
        return replay()

    def release(self) -> None:
        """Give up graphs and caches, to make room. They are captured again when they are needed."""
        self.places.clear()

    def try_capture(self, work: Callable[[], Tensor]) -> Replay | None:
        try:
            return self.capture(work)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            warnings.warn(f"cuda-graphs: {told(error)}; going on without them", TandemWarning, stacklevel=2)
            self.works = False
            self.release()
            return None


def release_graphs() -> None:
    """Give up graphs and caches of all models of this process."""
    for graphs in KNOWN:
        graphs.release()


class CudaCapture:
    """Captures work on a CUDA device. All graphs take their memory from one pool: none runs beside another,
    and none reads what another has left there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        # one for all captures: cuBLAS keeps a workspace for each stream that it has seen, and never frees it
        self.stream = torch.cuda.Stream(device)

    def __call__(self, work: Callable[[], Tensor]) -> Replay:
        with torch.cuda.device(self.device):
            return self.captured(work)

    def captured(self, work: Callable[[], Tensor]) -> Replay:
        # what kernels and libraries do at their first calls cannot be captured; it happens on a stream beside
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                work()
        current.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            out_RlC = work()

        def replay() -> Tensor:
            graph.replay()
            return out_RlC

        return replay
