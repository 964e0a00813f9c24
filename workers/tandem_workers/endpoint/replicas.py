"""The model deployments of the endpoint: a drafter sends its prefix to a refiner, in another replica or its own
process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from tandem.errors import TandemError
from tandem.images import Provenance, cover, encode_image
from tandem_workers.endpoint.batching import Batcher, BatchReport, BatchWork, sizes_of_batches
from tandem_workers.endpoint.deadlines import BatchClock
from tandem_workers.endpoint.decoding import Pixels, PreviewPixels, Row, Tokens
from tandem_workers.endpoint.endpoint_metrics import BatchMetrics
from tandem_workers.endpoint.local_process import pid_space
from tandem_workers.endpoint.retries import RemoteRefiners
from tandem_workers.requests.messages import Drafted, ImageRequest, Pictures, Preview

LOWEST_PRIORITY = 19
ENCODERS = 2  # threads; image encoders release the GIL
# Bounds of the deadline of a batch, a multiple of the longest measured one of its shape. On a busy CPU the decoding
# thread, which has the lowest priority, may wait for minutes
LEAST_ON_GPU_S, LEAST_ON_CPU_S, LONGEST_BATCH_S = 10.0, 60.0, 120.0


@dataclass(frozen=True)
class FileEncoder:
    """Pixels to image files with provenance, as a job writes them. `class_names`: with "none" behind them."""

    provenance: Provenance
    class_names: tuple[str, ...]

    def __call__(self, pixels: NDArray[np.uint8], request: ImageRequest, index: int) -> bytes:
        job = replace(self.provenance, seed=request.seed, draft_steps=request.draft_steps)
        own = {}
        if request.edit is not None:
            job = replace(job, edit=request.edit.about)
            pixels = request.edit.put_back.whole(pixels, request.edit.found, request.codec)
        if request.size is not None:
            pixels, own = cover(pixels, *request.size), {"size": list(request.size)}
        about = job.for_image(index, request.label, self.class_names[request.label], own)
        return encode_image(pixels, request.codec, request.quality, about)


@dataclass(frozen=True)
class ReplicaSettings:
    """Settings of batching.

    Attributes:
        batch: most rows of a batch, and the fixed size of deterministic ones.
        batch_wait_s: longest wait to fill a batch.
        warm_up: a request that every new replica decodes before it takes others.
        warm_prefix: number of tokens of its drafted scales.
        on_gpu: whether the models are on a GPU, where the first batch of every size needs extra set-up.
    """

    batch: int
    batch_wait_s: float
    warm_up: ImageRequest
    warm_prefix: int
    on_gpu: bool = False

    @property
    def warm_sizes(self) -> list[int]:
        """Batch sizes that are decoded before any request."""
        return sizes_of_batches(self.batch) if self.on_gpu else [self.batch]


def lower_priority() -> None:
    """Lower the priority of the computing thread, so that on a busy CPU requests still arrive and fill batches."""
    os.nice(LOWEST_PRIORITY - os.nice(0))  # on Linux it affects only this thread, and threads that it starts


class Replica:
    """Base of drafters and refiners: a model behind a batcher, encoders of files, health."""

    name: str

    def warm_prefix(self) -> NDArray[np.uint16]:
        """The prefix of a warm-up row at this stage."""
        return np.zeros(self.settings.warm_prefix if self.name == "refiner" else 0, np.uint16)

    def __init__(
        self,
        work: Callable[[], BatchWork[Row, Any]],
        encode: Callable[[NDArray[np.uint8], ImageRequest, int], bytes],
        settings: ReplicaSettings,
        turn: asyncio.Lock | None = None,
    ):
        """`turn` is shared by stages of one process, whose models are on one device."""
        turn = turn or asyncio.Lock()
        self.encode, self.settings = encode, settings
        self.num_refining = 0  # requests in work at the next stage
        self.metrics = BatchMetrics(self.name)
        model = work()
        self.batcher: Batcher[Row, Any] = Batcher(
            model,
            settings.batch,
            settings.batch_wait_s,
            self.observe,
            lambda: self.num_refining,
            (lambda: None) if settings.on_gpu else lower_priority,
            turn,
            clock=BatchClock(LEAST_ON_GPU_S if settings.on_gpu else LEAST_ON_CPU_S, LONGEST_BATCH_S),
        )
        # in the decoding thread: cuDNN and torch cache the set-up of first calls per thread
        self.batcher.pool.submit(self.warm, model).result()
        self.encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
        self.fault: Exception | None = None
        self.pid_space = pid_space()

    def warm(self, model: BatchWork[Row, Any]) -> None:
        for size in self.settings.warm_sizes:
            for _ in model([Row(self.settings.warm_up, 0, self.warm_prefix())], size):
                pass

    def observe(self, report: BatchReport) -> None:
        self.metrics.observe(report, self.batcher.waiting)
        # invalid requests were refused before, so any other error is a fault of the process or the device
        if report.error is not None and not isinstance(report.error, TandemError):
            self.fault = report.error

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises: after a CUDA error the process is unusable."""
        if self.fault is not None:
            raise RuntimeError(f"{self.name}: {self.fault!r}")

    def overdue(self) -> str:
        """The batch that takes far longer than those before it, in words; empty: there is none."""
        return self.batcher.clock.overdue()

    def record_routing_stats(self) -> dict[str, Any]:
        """For `ReplicaWatch`, which calls it by the name that Ray Serve gives to a free form of report."""
        return {"pid": os.getpid(), "pid_space": self.pid_space, "overdue": self.overdue()}

    async def file(self, pixels: NDArray[np.uint8], request: ImageRequest, index: int) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self.encoders, self.encode, pixels, request, index)

    async def decode(self, drafted: Drafted, results: list[Any]) -> AsyncIterator[Preview]:
        """Run the rows of a request through the model: yields previews and fills `results`, one per row."""
        request = drafted.request
        rows = [Row(request, index, tokens, drafted.source) for index, tokens in enumerate(drafted.tokens)]
        key = request.draft_steps, request.kept_scales
        async for index, value in self.batcher.run(rows, key, alone=request.deterministic):
            if isinstance(value, PreviewPixels):
                data = await self.file(value.pixels, request, index)
                yield Preview(index, value.scale, self.name, data)
            else:
                results[index] = value


def seconds_of(results: Sequence[Tokens] | Sequence[Pixels]) -> dict[str, float]:
    """Seconds of each stage, over all batches that the rows of a request were in."""
    batches = {id(result.seconds): result.seconds for result in results}.values()  # rows of one batch share them
    return {stage: sum(batch[stage] for batch in batches) for stage in results[0].seconds}


class Refiners(Protocol):
    """The next stage of a drafter: refiners in other replicas, or the one in its own process."""

    async def ready(self) -> bool: ...

    async def generate(self, drafted: Drafted) -> Pictures: ...

    def stream(self, drafted: Drafted) -> AsyncGenerator[Preview | Pictures, None]: ...


class DraftReplica(Replica):
    """Makes scales 1..N, sends them to a refiner, and passes on its results."""

    name = "drafter"

    def __init__(self, work: Any, encode: Any, settings: ReplicaSettings, refiner: DeploymentHandle[Any]):
        super().__init__(work, encode, settings)
        self.refiner: Refiners = RemoteRefiners(refiner)

    async def ready(self) -> bool:
        """Whether a refiner answers too."""
        return await self.refiner.ready()

    async def generate(self, request: ImageRequest) -> Pictures:
        """The images alone."""
        drafted = [event async for event in self.draft(request)][-1]
        assert isinstance(drafted, Drafted)
        with self.refining():
            return await self.refiner.generate(drafted)

    async def stream(self, request: ImageRequest) -> AsyncIterator[Preview | Pictures]:
        """Previews as they are made, then the images."""
        async for event in self.draft(request):
            if isinstance(event, Drafted):
                drafted = event
            else:
                yield event
        with self.refining():
            async with aclosing(self.refiner.stream(drafted)) as events:
                async for made in events:
                    yield made

    @contextmanager
    def refining(self) -> Iterator[None]:
        self.num_refining += 1
        try:
            yield
        finally:
            self.num_refining -= 1

    async def draft(self, request: ImageRequest) -> AsyncIterator[Preview | Drafted]:
        drafted = Drafted(request, np.zeros((request.n, 0), np.uint16), {})
        if request.draft_steps > request.kept_scales:
            results: list[Tokens] = [Tokens(drafted.tokens[0], {})] * request.n
            async for preview in self.decode(drafted, results):
                yield preview
            tokens = np.stack([result.ids for result in results])
            drafted = Drafted(request, tokens, seconds_of(results), results[0].source)
        yield drafted


class RefineReplica(Replica):
    """Makes the remaining scales, pixels and files."""

    name = "refiner"

    async def ready(self) -> bool:
        return True

    async def generate(self, drafted: Drafted) -> Pictures:
        """The images alone."""
        pictures = [event async for event in self.stream(drafted)][-1]
        assert isinstance(pictures, Pictures)
        return pictures

    async def stream(self, drafted: Drafted) -> AsyncGenerator[Preview | Pictures, None]:
        """Previews as they are made, then the images."""
        request = drafted.request
        results: list[Pixels] = [Pixels(np.zeros((0, 0, 3), np.uint8), {})] * request.n
        async for preview in self.decode(drafted, results):
            yield preview
        began = asyncio.get_running_loop().time()
        files = await asyncio.gather(*(self.file(made.pixels, request, i) for i, made in enumerate(results)))
        self.metrics.images.inc(request.n)
        encode = {"encode": asyncio.get_running_loop().time() - began}
        yield Pictures(list(files), drafted.seconds | seconds_of(results) | encode)


class ColocatedReplica(DraftReplica):
    """Drafter and refiner in one process on one GPU: their batches take turns, as in a job's colocated actor."""

    def __init__(self, draft: Any, refine: Any, encode: Any, settings: ReplicaSettings):
        turn = asyncio.Lock()
        Replica.__init__(self, draft, encode, settings, turn)
        self.refine_replica = RefineReplica(refine, encode, settings, turn)
        self.refiner = self.refine_replica

    def check_health(self) -> None:
        super().check_health()
        self.refine_replica.check_health()

    def overdue(self) -> str:
        return super().overdue() or self.refine_replica.overdue()
