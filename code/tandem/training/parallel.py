"""A model on several workers: DDP or FSDP2, and computation in bfloat16 with float32 master weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tandem.errors import TandemError

Sharding = Literal["ddp", "fsdp"]
SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)
ComputeDtype = Literal["float32", "bfloat16"]
COMPUTE_DTYPES: tuple[ComputeDtype, ...] = get_args(ComputeDtype)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """This worker among those of the process group; one of one without a process group."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def here(cls, device: torch.device) -> Workers:
        if not dist.is_initialized():
            return cls(0, 1, device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def sum(self, values: Tensor) -> Tensor:
        """Sums over the workers, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def share(self, value: Any) -> list[Any]:
        """What each worker gives, by rank. Values travel pickled, between workers of one run."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def together(self, action: Callable[[], Result]) -> list[Result]:
        """Results of all workers' actions, by rank. If one raises an error of ours, all do, and none waits for it."""
        result: Any
        try:
            result = action()
        except TandemError as error:
            result = error
        results = self.share(result)
        for one in results:
            if isinstance(one, TandemError):
                raise one
        return results

    def by_first(self, action: Callable[[], Result]) -> Result:
        """The result of the first worker's action, on all of them."""
        return self.together(lambda: action() if self.rank == 0 else None)[0]  # type: ignore[return-value]


def parallelise(model: nn.Module, workers: Workers, sharding: Sharding, partial: bool = False) -> nn.Module:
    """The module to call in training. Its parameters stay float32.

    Args:
        model: on the workers' device, with the same weights on each. FSDP changes it in place.
        sharding: `ddp` keeps a copy on each worker, `fsdp` a part of each tensor: of every block, and of the rest.
        partial: some steps leave some parameters without gradient.
    """
    if not dist.is_initialized():
        return model
    if sharding == "ddp":
        if workers.world == 1:
            return model
        ids = [workers.device] if workers.device.type == "cuda" else None
        return DistributedDataParallel(
            model, ids, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=partial
        )
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # which no loss changes in place
    mesh = init_device_mesh(workers.device.type, (workers.world,))
    for block in cast("Iterable[nn.Module]", getattr(model, "blocks", ())):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def computing(device: torch.device, dtype: ComputeDtype) -> AbstractContextManager[Any]:
    """Context manager: matrix products and convolutions in this dtype.

    The same for FSDP, whose own mixed precision would keep the residual stream in bfloat16, too. Weights are used once
    in a pass, so that a cache of their casts would only keep them.
    """
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if dtype == "bfloat16" else nullcontext()


@contextmanager
def gradient_sync(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Context manager: whether gradients of a backward pass are summed over the workers, or wait for a later one.

    FSDP sums each time: gradients that wait are whole, in float32, and FSDP is for models whose gradients do not fit.
    """
    if isinstance(model, DistributedDataParallel) and not wanted:
        with model.no_sync():
            yield
    else:
        yield


def clip_gradients(model: nn.Module, most: float) -> float:
    """Scale the gradients so that their norm over all workers is at most `most`; returns the norm before that.

    Nothing changes where the norm is not finite.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if norm.isfinite() and most:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm.item()
