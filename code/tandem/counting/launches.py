"""Counts the kernels that a GPU would launch, their operations and bytes, without a GPU.

Models on the meta device run as they would on a GPU. Each operator counts as one kernel, and so does each fused kernel.
Its bytes are those of its arguments and results, each read or written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tandem import attention, fused, fused_fp8, fused_vqvae

PRODUCTS = {"linear", "mm", "addmm", "bmm", "baddbmm", "matmul", "_addmm_activation"}
FP8_PRODUCTS = {"_scaled_mm"}
CONVOLUTIONS = {"conv2d", "convolution", "_convolution"}
# Operators that read a tensor out of order or in several passes: sums, norms, sorts, look-ups
REDUCTIONS = {
    *(
        "layer_norm",
        "native_layer_norm",
        "group_norm",
        "native_group_norm",
        "linalg_vector_norm",
        "softmax",
        "_softmax",
    ),
    *("sum", "cumsum", "topk", "sort", "searchsorted", "gather", "index", "index_select", "embedding", "argmax"),
    *("upsample_bicubic2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"),
}
NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "lift_fresh", "detach_", "flatten"}
FUSED = (
    (fused, ("gated_norm", "split_heads", "head_norm")),
    (fused_fp8, ("quantised_rows",)),
    (fused_vqvae, ("add_and_measure", "group_factors", "scale_and_activate")),
)


@dataclass(frozen=True)
class Launch:
    """One kernel. `kind` is product, fp8 (a product in FP8), convolution, attention, fused, reduction or step (any
    other). Only the first four have `flops`, only products `rows`: those of the output."""

    name: str
    kind: str
    flops: float
    bytes: float
    rows: int = 0


class Counter(TorchDispatchMode):
    """Counts operators on meta tensors."""

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        given, made = tensors_of((args, kwargs)), tensors_of(result)
        places = {tensor.untyped_storage()._cdata for tensor in given}
        is_view = not name.endswith("_") and all(tensor.untyped_storage()._cdata in places for tensor in made)
        if name not in NO_KERNEL and made and not is_view:
            kind, flops = kind_of(name), flops_of(name, args, made)
            rows = made[0].numel() // made[0].shape[-1] if kind in ("product", "fp8") else 0
            self.launches.append(Launch(name, kind, flops, bytes_of([*given, *made]), rows))
        return result


@contextmanager
def counted() -> Iterator[list[Launch]]:
    """Context manager: the launches of the code inside, on meta tensors that `tandem.limits.pretend` has on a GPU."""
    launches: list[Launch] = []
    with ExitStack() as stack:
        for module, names in FUSED:
            for name in names:
                stack.enter_context(replaced(module, name, FusedKernel(name, launches)))
        stack.enter_context(replaced(attention, "attention", counting_attention(launches)))
        stack.enter_context(Counter(launches))
        yield launches


class FusedKernel:
    """Stands in for a Triton kernel: takes its grid and arguments, and counts a launch."""

    def __init__(self, name: str, launches: list[Launch]) -> None:
        self.name, self.launches = name, launches

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self.launch

    def launch(self, *args: Any, **constants: Any) -> None:
        tensors = [value for value in args if isinstance(value, Tensor)]
        moved = bytes_of(tensors)
        if self.name == "split_heads":  # writes only a few tokens of the given caches
            qkv, _, q = tensors[:3]
            moved = bytes_of([qkv, q]) + 2 / 3 * bytes_of([qkv])
        elif self.name == "head_norm":  # reads only the rows of some images
            out = tensors[-1]
            moved = bytes_of([out]) * (3 if constants["GUIDED"] else 2)
        self.launches.append(Launch(self.name, "fused", 0.0, moved))


@contextmanager
def replaced(module: Any, name: str, stand_in: Any) -> Iterator[None]:
    """Context manager: replaces a function of a module."""
    before = getattr(module, name)
    setattr(module, name, stand_in)
    try:
        yield
    finally:
        setattr(module, name, before)


def counting_attention(launches: list[Launch]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention as one kernel: torch has no fused one for meta tensors."""

    def attend(q_RHlc: Tensor, k_RHLc: Tensor, v_RHLc: Tensor) -> Tensor:
        rows, heads, tokens, size = q_RHlc.shape
        flops = 4.0 * rows * heads * tokens * k_RHLc.shape[2] * size
        elements = 2 * q_RHlc.numel() + k_RHLc.numel() + v_RHLc.numel()
        launches.append(Launch("attention", "attention", flops, elements * q_RHlc.element_size()))
        return torch.empty_like(q_RHlc)

    return attend


def kind_of(name: str) -> str:
    if name in PRODUCTS:
        return "product"
    if name in FP8_PRODUCTS:
        return "fp8"
    if name in CONVOLUTIONS:
        return "convolution"
    return "reduction" if name in REDUCTIONS else "step"


def flops_of(name: str, args: Sequence[Any], made: Sequence[Tensor]) -> float:
    """Multiplications and additions of a product or a convolution."""
    if name in CONVOLUTIONS:
        weight = args[1]
        return 2.0 * made[0].numel() * math.prod(weight.shape[1:])
    if name not in PRODUCTS | FP8_PRODUCTS:
        return 0.0
    first = args[1] if name in ("addmm", "baddbmm", "_addmm_activation") else args[0]
    return 2.0 * made[0].numel() * first.shape[-1]


def tensors_of(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def bytes_of(tensors: Sequence[Tensor]) -> float:
    """Bytes of distinct tensors; of an expanded one, those of its storage."""
    return float(
        sum(
            min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
            for tensor in {id(tensor): tensor for tensor in tensors}.values()
        )
    )
