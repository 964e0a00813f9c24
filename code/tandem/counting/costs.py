"""Cost of decoding: work by formula, and bytes by running the decode itself on meta tensors.

Shapes: B images, R rows (2 B with CFG), L tokens. Units: floating-point operations (a multiply-add is two), bytes.
Work is that of VAR (arXiv 2404.02905) and CoDe (arXiv 2411.17787) as published, so that our savings show as speed, not
as less work.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tandem.assembly import PLAIN, Preparation, Uninitialised, assemble_var, assemble_vqvae, build_empty
from tandem.collaborative import decode
from tandem.config import SamplingConfig, VarConfig, VqvaeConfig
from tandem.guidance import rows_of_scales
from tandem.kernels import compute_dtype
from tandem.limits import pretend
from tandem.quantizer import Quantizer
from tandem.scales import decode_scales, new_cache
from tandem.var import Var

META = torch.device("meta")
BICUBIC = torch.ops.aten.upsample_bicubic2d.vec


def scale_flops(config: VarConfig, start: int, stop: int, rows: float | Sequence[float] = 2) -> list[float]:
    """Work of one image at each of the scales start..stop (0-based). `rows`: of an image at all scales, or at each of
    them; 2: under CFG.

    The first scale includes the prefix, in block-causal attention, and the modulation.
    """
    C, sizes, offsets = config.width, [n * n for n in config.pyramid.patch_nums], config.pyramid.offsets
    token = 2 * (config.depth * (4 + 2 * config.mlp_ratio) * C * C + config.latent_channels * C)
    modulation = 2 * 6 * C * C * (1 if config.shared_adaln else config.depth) + 2 * 2 * C * C
    flops, rows_of = [], rows if isinstance(rows, Sequence) else [rows] * (stop - start)
    for scale in range(start, stop):
        entered = range(scale + 1) if scale == start else range(scale, scale + 1)
        tokens = sum(sizes[s] for s in entered)
        seen = sum(sizes[s] * offsets[s + 1] for s in entered)
        head = 2 * C * config.vocab_size * sizes[scale]
        once = modulation if scale == start else 0
        flops.append(float(rows_of[scale - start] * (tokens * token + 4 * config.depth * C * seen + head + once)))
    return flops


def decode_flops(config: VqvaeConfig) -> float:
    """Work of turning the latent of one image into pixels, as the published decoder does it."""
    from torch.utils.flop_counter import FlopCounterMode  # imported late: it takes half a second

    vqvae: Any = build_empty(config)
    grid = config.pyramid.grid
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        vqvae.decode_latents(torch.empty(1, config.latent_channels, grid, grid, device=META))
    return float(counter.get_total_flops())


@dataclass(frozen=True)
class Bytes:
    """Memory of a stage, in bytes.

    Attributes:
        weights: parameters in their prepared form.
        cache: KV cache and the scratch buffer of the last scale.
        activations: peak of all other tensors.
        host: table of modulation vectors in host memory (fold_adaln).
    """

    weights: int
    cache: int
    activations: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.cache + self.activations


def empty_var(config: VarConfig, dtype: torch.dtype, preparation: Preparation) -> Var:
    """A prepared Var on the meta device."""
    shapes = {name: p.shape for name, p in build_empty(config).named_parameters()}
    return assemble_var(config, lambda name: torch.empty(shapes[name], device=META), dtype, META, preparation)


def var_bytes(
    config: VarConfig,
    batch: int,
    start: int,
    stop: int,
    dtype: torch.dtype,
    device: torch.device,
    preparation: Preparation,
    sampling: SamplingConfig | Sequence[SamplingConfig],
) -> Bytes:
    """Bytes of a transformer that decodes the scales start..stop of `batch` images on a kind of device.

    Activations are measured with two layers: further layers reuse their memory, except for modulation vectors.
    """
    offsets = config.pyramid.offsets
    few = replace(config, depth=min(2, config.depth), num_heads=config.heads)
    with pretend(device), torch.inference_mode():
        whole, var = empty_var(config, dtype, preparation), empty_var(few, dtype, preparation)
        with torch.device(META), Uninitialised():
            quantizer = Quantizer(config.pyramid, config.vocab_size, config.latent_channels, 0.5, 4)
            labels_B = torch.empty(batch, dtype=torch.int64)
            noise_BL = torch.empty(batch, offsets[-1], dtype=torch.int64)
        each = [sampling] * batch if isinstance(sampling, SamplingConfig) else sampling
        rows = rows_of_scales(each, config.pyramid.num_scales, start, stop)

        def work() -> None:
            for _ in decode_scales(var, quantizer, labels_B, noise_BL, noise_BL[:, : offsets[start]], stop, sampling):
                pass

        of_two = peak_bytes(work) - kv_bytes(few, rows, start, stop, dtype, device)
    of_others = (config.depth - few.depth) * rows[0] * 6 * config.width * dtype.itemsize
    host = whole.table.num_bytes if whole.table is not None else 0
    cache = kv_bytes(config, rows, start, stop, dtype, device)
    return Bytes(tensor_bytes(whole), cache, of_two + of_others, host)


def kv_bytes(
    config: VarConfig, rows: Sequence[int], start: int, stop: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Bytes of KV cache and scratch of a decode of the scales start..stop on a kind of device. `rows`: R at each."""
    with pretend(device):
        return new_cache(config, rows, start, stop, dtype, META).num_bytes


def vqvae_bytes(config: VqvaeConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Bytes:
    """Bytes of decoding `batch` images to pixels on a kind of device."""
    shapes = {name: p.shape for name, p in build_empty(config).named_parameters()}
    with pretend(device), torch.inference_mode():
        computed = compute_dtype(dtype, device)
        vqvae = assemble_vqvae(config, lambda name: torch.empty(shapes[name], device=META), computed, META, PLAIN)
        ids_BL = torch.empty(batch, config.pyramid.num_tokens, dtype=torch.int64, device=META)
        peak = peak_bytes(lambda: decode(vqvae, ids_BL))
    return Bytes(tensor_bytes(vqvae), 0, peak)


def tensor_bytes(model: torch.nn.Module) -> int:
    """Bytes of the parameters of a model, plain or prepared."""
    kept = {id(t): t for module in model.modules() for t in vars(module).values() if isinstance(t, Tensor)}
    kept |= {id(t): t for t in model.parameters()}
    return sum(t.numel() * t.element_size() for t in kept.values())


def peak_bytes(work: Callable[[], Any]) -> int:
    """Peak of the bytes of live tensors among those that `work` makes."""
    with LiveBytes() as live:
        work()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is BICUBIC and args[0].is_meta:  # torch takes 0.15 s to compute the shape
            func, args, kwargs = torch.ops.aten.new_empty.default, (args[0], (*args[0].shape[:2], *args[1])), None
        before = [t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        result = func(*args, **(kwargs or {}))
        old = {s._cdata for s in before}
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in old or storage in self.known:
                continue
            self.known.add(storage)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, size)
        return result

    def free(self, size: int) -> None:
        self.now -= size
