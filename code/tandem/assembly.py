"""Models put together tensor by tensor, each brought into the form in which it computes before the next is read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tandem.config import VarConfig, VqvaeConfig
from tandem.errors import InputError, TandemWarning
from tandem.kernels import compute_dtype, multiplies_int8
from tandem.linear import Linear
from tandem.modulation import ModulationTable
from tandem.var import Var
from tandem.vqvae import Upsample, Vqvae

# A float tensor by its name in the checkpoint, to be copied from
Values = Callable[[str], Tensor]


@dataclass(frozen=True)
class Preparation:
    """How a transformer computes, beyond its weights. All of it may change rounding, int8 more than that.

    Attributes:
        fold_adaln: keep modulation vectors of every class in host memory instead of the AdaLN weights on the device.
        int8: weights and activations of the blocks' matrices in int8 (W8A8). Not exact.
    """

    fold_adaln: bool = False
    int8: bool = False


PLAIN = Preparation()


def build_empty(config: VarConfig | VqvaeConfig) -> Var | Vqvae:
    """The model of a config on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return Var(config) if isinstance(config, VarConfig) else Vqvae(config)


@torch.inference_mode()
def assemble_var(
    config: VarConfig, values: Values, dtype: torch.dtype, device: torch.device, how: Preparation | None
) -> Var:
    """A Var of the given values. Without `how` it has plain parameters; with it, it is fit for inference alone."""
    var = build_empty(config)
    assert isinstance(var, Var)
    if how is not None and how.int8 and device.type == "cpu" and not multiplies_int8():
        warnings.warn("int8: this CPU has no VNNI, so that it saves memory but no time", TandemWarning, stacklevel=2)
    if how is not None and how.fold_adaln:
        if config.shared_adaln:
            raise InputError("fold_adaln: expected a model with AdaLN weights in every block, got one that shares them")
        var.table = ModulationTable(config, dtype, device)
    for name, module in list(var.named_modules()):
        put_all(name, module, values, lambda full: var.dtype_of(full, dtype), device)
        if how is None or not isinstance(module, Linear):
            continue
        if ".ada_lin." in name and var.table is not None:
            var.table.fold(module, var.class_emb.weight)
            module.drop()
        elif how.int8 and name.startswith("blocks.") and ".ada_lin." not in name:
            module.quantize()
        else:
            module.pack()
    var.to(device)
    return var.requires_grad_(False).eval() if how is not None else var


@torch.inference_mode()
def assemble_vqvae(
    config: VqvaeConfig, values: Values, dtype: torch.dtype, device: torch.device, prepared: bool
) -> Vqvae:
    """A Vqvae of the given values. `prepared`, it is fit for inference alone: upsampling folded, convolutions in
    `dtype` (or what computes it, see `tandem.kernels`) and channels last. The quantizer stays float32, since f_hat
    sums up over all scales."""
    vqvae = build_empty(config)
    assert isinstance(vqvae, Vqvae)
    modules = dict(vqvae.named_modules())
    for name, module in modules.items():
        put_all(name, module, values, lambda _: torch.float32, device)
        parent = modules[name.rpartition(".")[0]]
        if prepared and name and not name.startswith("quantize") and module._parameters:
            if isinstance(parent, Upsample):
                parent.fold()
                module = parent
            module.to(compute_dtype(dtype, device)).to(memory_format=torch.channels_last)
    return vqvae.requires_grad_(False).eval() if prepared else vqvae


def put_all(
    name: str, module: nn.Module, values: Values, dtype_of: Callable[[str], torch.dtype], device: torch.device
) -> None:
    """Copy values into the parameters of a module itself. What is mapped stays on disk, but for the copy."""
    for part, empty in module._parameters.items():
        if empty is not None:
            full = f"{name}.{part}".lstrip(".")
            copied = values(full).to(device=device, dtype=dtype_of(full), copy=True)
            module._parameters[part] = nn.Parameter(copied, requires_grad=empty.requires_grad)
