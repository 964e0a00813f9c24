"""Assembles models tensor by tensor: each takes the form in which it computes before the next one is read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tandem.config import VarConfig, VqvaeConfig
from tandem.errors import FallbackWarning, InputError
from tandem.fp8 import check_device
from tandem.fusing import fuse_var, fuse_vqvae
from tandem.graphs import CudaCapture, Graphs
from tandem.kernels import compute_dtype, multiplies_int8
from tandem.linear import Linear
from tandem.modulation import ModulationTable
from tandem.var import Var
from tandem.vqvae import Upsample, Vqvae

# Gives the float tensor of a name in the checkpoint; it is copied, not kept
Values = Callable[[str], Tensor]


@dataclass(frozen=True)
class Preparation:
    """How models compute, beyond their weights. All options but graphs may change rounding; int8 and FP8 change more.

    Attributes:
        fold_adaln: keep modulation vectors of every class in host memory instead of the AdaLN weights on the device.
        int8: weights and activations of the blocks' matrices in int8 (W8A8), on CPUs. Not exact.
        fp8: the blocks' large products in FP8, on GPUs of compute capability 8.9 or higher. Not exact.
        cuda_graphs: launch all kernels of a decode at once, on CUDA.
        kernels: "auto" fuses the small steps between products, on CUDA; "plain" does not.
    """

    fold_adaln: bool = False
    int8: bool = False
    fp8: bool = False
    cuda_graphs: bool = False
    kernels: Literal["auto", "plain"] = "plain"

    @classmethod
    def of(cls, options: object, on_gpu: bool) -> Preparation:
        """The preparation from attributes of the same names, such as the options of a command.

        On CPUs kernels are always plain. `cuda_graphs` None means: on GPUs.
        """
        asked = {field.name: getattr(options, field.name) for field in fields(cls)}
        if asked["cuda_graphs"] is None:
            asked["cuda_graphs"] = on_gpu
        return cls(**asked) if on_gpu else replace(cls(**asked), kernels="plain")

    @property
    def names(self) -> list[str]:
        """Names of the switches that are on."""
        return [field.name for field in fields(self) if getattr(self, field.name) is True]

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        """Raise InputError for options that a kind of device does not support, or not in this dtype."""
        if self.int8 and self.fp8:
            raise InputError("fp8: expected either int8 or fp8, got both")
        if self.fp8 and device.type == "cuda" and dtype != torch.bfloat16:
            raise InputError(f"fp8: expected dtype bfloat16 on a GPU, got {str(dtype).removeprefix('torch.')}")
        if self.int8 and device.type == "cuda":
            raise InputError(
                "int8: expected a CPU, got a GPU, where bfloat16 is 2.4 times as fast", "use fp8 there, or neither"
            )

    def unavailable(self, device: torch.device) -> list[str]:
        """One warning for each option that this device does not support, or that gains nothing there."""
        if device.type != "cpu":
            return []
        sentences = {
            "int8: this CPU has no VNNI, so int8 saves memory but no time": self.int8 and not multiplies_int8(),
            "fp8: a CPU computes the same values in float32: good to measure quality, no faster": self.fp8,
            "cuda-graphs: expected a CUDA device, got cpu; going on without them": self.cuda_graphs,
        }
        return [sentence for sentence, holds in sentences.items() if holds]


PLAIN = Preparation()


class Uninitialised(TorchFunctionMode):
    """Disables `torch.nn.init`, which on meta tensors would import torch's compiler and take seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def build_empty(config: VarConfig | VqvaeConfig) -> Var | Vqvae:
    """The model of a config on the meta device: names and shapes, no memory."""
    with torch.device("meta"), Uninitialised():
        return Var(config) if isinstance(config, VarConfig) else Vqvae(config)


@torch.no_grad()
def assemble_var(
    config: VarConfig, values: Values, dtype: torch.dtype, device: torch.device, preparation: Preparation | None
) -> Var:
    """A Var of the given values: with plain parameters if `preparation` is None, else for inference only."""
    var = build_empty(config)
    assert isinstance(var, Var)
    if preparation is not None:
        preparation.check(device, dtype)
        if preparation.fp8 and device.type == "cuda":
            check_device(device)
        for sentence in preparation.unavailable(device):
            warnings.warn(sentence, FallbackWarning, stacklevel=2)
    if preparation is not None and preparation.fold_adaln:
        if config.shared_adaln:
            raise InputError("fold_adaln: expected a model with AdaLN weights in every block, got one that shares them")
        var.table = ModulationTable(config, dtype, device)
    for name, module in list(var.named_modules()):
        fill_parameters(name, module, values, lambda full: var.dtype_of(full, dtype), device)
        if preparation is None or not isinstance(module, Linear):
            continue
        if ".ada_lin." in name and var.table is not None:
            var.table.fold(module, var.class_emb.weight)
            module.drop()
            continue
        in_blocks = name.startswith("blocks.") and ".ada_lin." not in name
        if preparation.int8 and in_blocks:
            module.quantize()
        if preparation.fp8 and in_blocks:
            module.add_fp8()
        module.pack()
    var.to(device)
    if preparation is None:
        return var
    if preparation.kernels == "auto" and device.type == "cuda":
        fuse_var(var)
    if preparation.cuda_graphs and device.type == "cuda":
        var.graphs = Graphs(CudaCapture(device))
    return var.requires_grad_(False).eval()


@torch.no_grad()
def assemble_vqvae(
    config: VqvaeConfig,
    values: Values,
    dtype: torch.dtype,
    device: torch.device,
    preparation: Preparation | None,
) -> Vqvae:
    """A Vqvae of the given values: with plain parameters if `preparation` is None, else for inference only.

    Prepared, it has folded upsampling, and convolutions in the dtype that computes `dtype` (see `tandem.kernels`),
    channels last. The quantizer stays float32, as f_hat sums up over all scales.
    """
    vqvae = build_empty(config)
    assert isinstance(vqvae, Vqvae)
    modules = dict(vqvae.named_modules())
    for name, module in modules.items():
        fill_parameters(name, module, values, lambda _: torch.float32, device)
        parent = modules[name.rpartition(".")[0]]
        if preparation is not None and name and not name.startswith("quantize") and module._parameters:
            if isinstance(parent, Upsample):
                parent.fold()
                module = parent
            module.to(compute_dtype(dtype, device)).to(memory_format=torch.channels_last)
    if preparation is None:
        return vqvae
    if preparation.kernels == "auto" and device.type == "cuda":
        fuse_vqvae(vqvae)
    if preparation.cuda_graphs and device.type == "cuda":
        vqvae.graphs = Graphs(CudaCapture(device))
    return vqvae.requires_grad_(False).eval()


def fill_parameters(
    name: str, module: nn.Module, values: Values, dtype_of: Callable[[str], torch.dtype], device: torch.device
) -> None:
    """Copy values into a module's own parameters. Memory-mapped tensors stay on disk; only the copy is in memory."""
    for part, empty in module._parameters.items():
        if empty is not None:
            full = f"{name}.{part}".lstrip(".")
            given = values(full)
            moved = given.to(device)  # moved, then converted: a GPU converts faster than an actor's one thread
            copied = moved.to(dtype_of(full), copy=moved is given)
            module._parameters[part] = nn.Parameter(copied, requires_grad=empty.requires_grad)
