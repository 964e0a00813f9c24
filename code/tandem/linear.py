"""Linear layers whose weights can be packed for the kernels of this CPU, or quantised to int8 or FP8.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.fp8 import LEAST_ROWS, SMALLEST, Fp8Rows, product, quantise
from tandem.kernels import FUSED_GELU, compute_dtype, multiplies, multiplies_int8, to_compute

INT8_ZERO = 128
INT8_LARGEST = 126  # of an activation: in bfloat16 127 may round to 128, which int8 lacks


class Linear(nn.Linear):
    """nn.Linear, optionally followed by GELU (tanh approximation).

    `pack` replaces `weight` by a copy in oneDNN's own order, into which plain layers rearrange it at every call.
    """

    packed: Tensor | None = None
    int8_scale_O: Tensor | None = None
    fp8_OI: Tensor | None = None  # added to the weights, which products of few rows still use
    fp8_scale_O1: Tensor | None = None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, gelu: bool = False):
        super().__init__(in_features, out_features, bias)
        self.gelu = gelu

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Outputs [..., O] of inputs [..., I], in their dtype. `bias` [O] is for layers without their own."""
        bias = self.bias if bias is None else bias
        if self.int8_scale_O is not None:
            return self.int8(x, bias)
        if self.takes_fp8(x.numel() // x.shape[-1]):
            return self.activated(self.fp8(quantise(x.flatten(0, -2)), bias, x.dtype)).view(*x.shape[:-1], -1)
        if self.packed is None:
            return self.activated(linear(x, self.weight, bias))
        if self.gelu and FUSED_GELU:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "gelu", [], "tanh")
        y = torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")
        return torch.ops.aten.gelu_(y, approximate="tanh") if self.gelu else y

    def activated(self, y: Tensor) -> Tensor:
        return F.gelu(y, approximate="tanh") if self.gelu else y

    def pack(self) -> None:
        """Rearrange the weights for inference. Does nothing if there is no kernel for this device and dtype."""
        if self.packed is None and self.int8_scale_O is None and can_pack(self.weight):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)
            self.weight = None  # type: ignore[assignment]

    def drop(self) -> None:
        """Free the weights of a layer whose outputs are in a table."""
        self.weight = self.bias = None  # type: ignore[assignment]

    def quantize(self) -> None:
        """Convert the weights to int8, with a scale per output. Call it before `pack`."""
        weight_OI = self.weight.detach().float()
        scale_O = weight_OI.abs().amax(dim=1).clamp_min(SMALLEST) / 127
        int8_OI = (weight_OI / scale_O[:, None]).round().to(torch.int8)
        by_onednn = multiplies_int8() and not weight_OI.is_meta
        self.packed = torch.ops.onednn.qlinear_prepack(int8_OI, None) if by_onednn else int8_OI
        self.int8_scale_O = scale_O
        self.weight = None  # type: ignore[assignment]

    def add_fp8(self) -> None:
        """Add a copy of the weights in FP8. Call it before `pack`."""
        self.fp8_OI, self.fp8_scale_O1 = quantise(self.weight.detach())

    def takes_fp8(self, rows: int) -> bool:
        """Whether a product of so many rows is computed in FP8."""
        return self.fp8_OI is not None and rows >= LEAST_ROWS

    def fp8(self, x_NI: Fp8Rows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Outputs [N, O] of rows in FP8, without GELU."""
        assert self.fp8_OI is not None and self.fp8_scale_O1 is not None
        return product(x_NI, Fp8Rows(self.fp8_OI, self.fp8_scale_O1), bias, dtype)

    def int8(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """W8A8 on a CPU. Activations are scaled per row, except before GELU, where one scale serves all rows: oneDNN
        fuses GELU into the kernel, and layer norm has made rows alike. Sums are exact in int32; a CPU without VNNI
        computes them in float32, which saves memory but no time."""
        assert self.packed is not None and self.int8_scale_O is not None
        x_NI = x.reshape(-1, x.shape[-1])
        largest = x_NI.abs().max() if self.gelu else x_NI.abs().amax(dim=1, keepdim=True)
        scale = largest.float().clamp_min(SMALLEST) / INT8_LARGEST
        wide = torch.float32 if x.dtype == torch.float16 else x.dtype  # float16 has no room for scales and sums
        int8_NI = (x_NI * scale.reciprocal().to(wide)).round_().to(torch.int8)
        if not multiplies_int8():
            y_NO = (F.linear(int8_NI.float(), self.packed.float()) * self.int8_scale_O * scale).to(x.dtype)
            return self.activated(y_NO if bias is None else y_NO + bias).view(*x.shape[:-1], -1)
        if self.gelu:
            y_NO = self.int8_kernel(int8_NI, scale, bias, wide, "gelu", "tanh")
        else:
            y_NO = self.int8_kernel(int8_NI, 1.0, None, wide, "none", "")
            y_NO = y_NO * scale.to(wide) if bias is None else torch.addcmul(bias.to(wide), y_NO, scale.to(wide))
        return y_NO.to(x.dtype).view(*x.shape[:-1], -1)

    def int8_kernel(
        self, int8_NI: Tensor, scale: Tensor | float, bias: Tensor | None, dtype: torch.dtype, post: str, algorithm: str
    ) -> Tensor:
        """oneDNN's kernel for unsigned activations: flipping the top bit adds 128, which it subtracts as zero point."""
        assert self.int8_scale_O is not None
        if int8_NI.is_meta:
            return torch.empty(len(int8_NI), len(self.int8_scale_O), dtype=dtype, device=int8_NI.device)
        uint8_NI = int8_NI.view(torch.uint8).bitwise_xor_(INT8_ZERO)
        zeros_O = torch.zeros_like(self.int8_scale_O, dtype=torch.int64)
        return torch.ops.onednn.qlinear_pointwise(
            uint8_NI,
            float(scale),
            INT8_ZERO,
            self.packed,
            self.int8_scale_O,
            zeros_O,
            bias,
            1.0,
            0,
            dtype,
            post,
            [],
            algorithm,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, multiplied in the dtype that this device has fast kernels for."""
    if compute_dtype(x.dtype, x.device) == x.dtype:
        return F.linear(x, weight, bias)
    return F.linear(to_compute(x), to_compute(weight), None if bias is None else to_compute(bias)).to(x.dtype)


def can_pack(weight: Tensor) -> bool:
    """Whether this torch and CPU have oneDNN kernels for packed weights of this dtype."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return weight.dtype in (torch.float32, torch.bfloat16) and multiplies(weight.dtype)
