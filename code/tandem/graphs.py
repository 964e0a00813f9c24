"""CUDA graphs of decoding: captured kernels are launched together instead of one by one.

A graph works on the addresses that it was captured with, so it has inputs of its own, into which new values are copied.
`whole` captures a decode from labels to ids, or from ids to pixels: one launch. `forwards` captures each scale's pass
through the blocks, for decodes that are read between scales and for batches whose sampling settings seldom repeat;
consecutive decodes of one shape share a KV cache.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

from tandem.attention import KVCache
from tandem.conditioning import Conditioning, Forward, Hidden
from tandem.errors import FallbackWarning, one_line
from tandem.memory import is_out_of_memory
from tandem.timing import timed

Tensors = tuple[Tensor, ...]
Replay = Callable[[], Tensors]
# Captures some work and returns a replay, which repeats the work and writes new values into the same tensors
Capture = Callable[[Callable[[], Tensors]], Replay]
T = TypeVar("T")
WARM_UPS = 2
ALL_GRAPHS: WeakSet[Graphs] = WeakSet()
MOST_SHAPES = 8  # of each kind; each keeps memory
IDLE_DECODES = 64  # decodes of other shapes after which a shape is evicted; capturing it again costs a second or two
MOST_SEEN = 1024  # shapes whose uses are counted; there are many, as each row of a batch may have its own sampling
FIRST_CAPTURED = 2  # a shape is captured at its second use: once is not worth it


class ShapeCache(Generic[T]):
    """Captured work by shape, for shapes that are used repeatedly."""

    def __init__(self) -> None:
        self.items: dict[Hashable, T] = {}
        self.used_at: dict[Hashable, int] = {}
        self.seen: Counter[Hashable] = Counter()  # uses of shapes that are not cached
        self.decodes = 0

    def get(self, shape: Hashable, make: Callable[[], T | None]) -> T | None:
        """The cached value of a shape. Made now if the shape was used before and there is room, or an idle entry."""
        self.decodes += 1
        if shape not in self.items:
            if not self.is_worth_it(shape) or (made := make()) is None:
                return None
            del self.seen[shape]
            self.items[shape] = made
        self.used_at[shape] = self.decodes
        return self.items[shape]

    def is_worth_it(self, shape: Hashable) -> bool:
        if len(self.seen) >= MOST_SEEN and shape not in self.seen:
            self.seen.clear()
        self.seen[shape] += 1
        if self.seen[shape] < FIRST_CAPTURED:
            return False
        if len(self.items) < MOST_SHAPES:
            return True
        oldest = min(self.items, key=lambda known: self.used_at[known])
        if self.decodes - self.used_at[oldest] <= IDLE_DECODES:
            return False
        del self.items[oldest]
        return True


@dataclass
class ScaleGraphs:
    """The graphs of the scales of one shape, and the state that its decodes share.

    Attributes:
        captured: input [R, L, C] and graph of each scale, by the tokens in the cache before it.
        busy: a decode is using it.
    """

    cache: KVCache
    condition: Conditioning
    captured: dict[int, tuple[Tensor, Replay]] = field(default_factory=dict)
    busy: bool = False

    def begin(self, condition: Conditioning) -> None:
        """Prepare for a batch with other classes."""
        for kept_R6C, new_R6C in zip(self.condition.blocks, condition.blocks, strict=True):
            kept_R6C.copy_(new_R6C)
        self.cache.filled = 0


class Graphs:
    """The graphs of one model. A kind whose capture fails is given up, with a warning."""

    def __init__(self, capture: Capture):
        self.capture = capture
        self.captures_whole = self.captures_scales = True
        ALL_GRAPHS.add(self)
        self.release()

    @property
    def in_use(self) -> bool:
        """Whether no kind of graph was given up."""
        return self.captures_whole and self.captures_scales

    def release(self) -> None:
        """Free graphs and caches. They are captured again when needed."""
        self.scale_graphs: ShapeCache[ScaleGraphs] = ShapeCache()
        self.whole_graphs: ShapeCache[tuple[Sequence[Tensor], Replay]] = ShapeCache()

    def whole(self, key: Hashable, work: Callable[..., Tensors], inputs: Sequence[Tensor]) -> Tensors | None:
        """`work(*inputs)` by one graph, or None if the shape is new or too rare to have one.

        `key` identifies all else that the work depends on. The work must not make the host wait for the device.
        """
        if not self.captures_whole:
            return None

        def make() -> tuple[Sequence[Tensor], Replay] | None:
            own = [tensor.clone() for tensor in inputs]
            replay = self.try_capture(lambda: work(*own))
            self.captures_whole = replay is not None
            return (own, replay) if replay else None

        kept = self.whole_graphs.get((key, *(tensor.shape for tensor in inputs)), make)
        if kept is None:
            return None
        own, replay = kept
        for mine, new in zip(own, inputs, strict=True):
            mine.copy_(new)
        return tuple(tensor.clone() for tensor in replay())  # the next replay of any graph may write there

    @contextmanager
    def forwards(
        self, hidden: Hidden, condition: Conditioning, make_cache: Callable[..., KVCache], shape: tuple[int, ...]
    ) -> Iterator[Forward]:
        """Context manager: the function that runs the scales of one decode through all blocks.

        `shape` is the cache key: everything that determines tensor sizes. The tensor of a scale is valid until the next
        scale. A concurrent decode of the same shape runs without graphs.
        """

        def make() -> ScaleGraphs | None:
            kept = [modulation_R6C.clone() for modulation_R6C in condition.blocks]
            if not self.captures_scales:
                return None
            # a scale is run more than once while it is captured, and a cache narrows only once
            return ScaleGraphs(make_cache(narrows=False), replace(condition, blocks=kept))

        entry = self.scale_graphs.get(shape, make)
        if entry is None or entry.busy:
            yield partial(hidden, condition=condition, cache=make_cache())
            return
        entry.begin(condition)
        entry.busy = True
        try:
            yield partial(self.forward, hidden, entry)
        finally:
            entry.busy = False

    def forward(self, hidden: Hidden, entry: ScaleGraphs, x_RLC: Tensor, sizes: Sequence[int]) -> Tensor:
        """One scale through all blocks: captured at its first time, else replayed. As `Var.hidden`."""
        cache, start = entry.cache, entry.cache.filled
        if start not in entry.captured:
            plain = partial(hidden, sizes=sizes, condition=entry.condition, cache=cache)
            static_RLC = x_RLC.clone()

            def work() -> Tensors:
                cache.filled = start
                return (plain(static_RLC),)

            if not self.captures_scales or not (replay := self.try_capture(work)):
                self.captures_scales = False
                return work()[0]
            entry.captured[start] = static_RLC, replay
        static_RLC, replay = entry.captured[start]
        static_RLC.copy_(x_RLC)
        cache.filled = start + sum(sizes)
        return replay()[0]

    def try_capture(self, work: Callable[[], Tensors]) -> Replay | None:
        """The work as a graph, if a replay gives the same bits as the work itself; else None, with a warning."""
        try:
            expected = tuple(tensor.clone() for tensor in work())
            replay = self.capture(work)
            if not all(map(same_bits, expected, replay())):
                raise RuntimeError("a graph gives other values than its kernels launched one by one")
            return replay
        except Exception as error:
            if is_out_of_memory(error):
                raise
            warnings.warn(f"cuda-graphs: {one_line(error)}; going on without them", FallbackWarning, stacklevel=2)
            self.release()
            return None


def same_bits(expected: Tensor, found: Tensor) -> bool:
    """Whether two tensors are equal, counting NaN as equal to NaN."""
    return bool(((expected == found) | (expected.isnan() & found.isnan())).all())


def release_graphs() -> None:
    """Free graphs and caches of all models of this process."""
    for graphs in ALL_GRAPHS:
        graphs.release()


class CudaCapture:
    """Captures work on a CUDA device. All graphs share one memory pool: no two run concurrently, and none
    reads what another has left there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        # one for all captures: cuBLAS keeps a workspace for each stream that it has seen, and never frees it
        self.stream = torch.cuda.Stream(device)

    def __call__(self, work: Callable[[], Tensors]) -> Replay:
        with torch.cuda.device(self.device):
            return self.captured(work)

    @timed("graphs")
    def captured(self, work: Callable[[], Tensors]) -> Replay:
        # the first calls of kernels and libraries set things up, which cannot be captured
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                work()
        current.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            made = work()

        def replay() -> Tensors:
            graph.replay()
            return made

        return replay
