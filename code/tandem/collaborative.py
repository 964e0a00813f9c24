"""Collaborative decoding: a drafter makes the first N token maps, a refiner the rest.

Shapes: B images, R rows (with CFG: B conditional, then B unconditional), L tokens of all scales, l tokens of one
scale, C width or latent channels, V codes.
Source: CoDe (arXiv 2411.17787), section 3. The published code samples the prefix again and throws it away;
its author says that this only keeps the random stream aligned, so it is left out here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from tandem.attention import KVCache
from tandem.checks import check_batch, check_ids, check_pair, describe
from tandem.config import SamplingConfig, VarConfig
from tandem.errors import InputError, JobError
from tandem.limits import limits
from tandem.prefix import Prefix
from tandem.quantizer import Quantizer
from tandem.sampling import RowGroups, guidance, sample
from tandem.var import Conditioning, Var
from tandem.vqvae import Vqvae


def draft(
    drafter: Var,
    quantizer: Quantizer,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    draft_steps: int,
    sampling: SamplingConfig | Sequence[SamplingConfig],
) -> Prefix:
    """Scales 1..N: token ids of the low frequencies, as a Prefix of B images.

    Args:
        drafter: the transformer, usually the larger of the two.
        quantizer: that of the VQVAE (`vqvae.quantize`).
        labels_B: class of each image, whole numbers [B] below `num_classes`.
        uniforms_BL: random integers of each image, int64 [B, L], as `uniforms` gives them.
        draft_steps: N, scales that the drafter makes, 1 to K - 1.
        sampling: guidance, top-k, top-p and temperatures, of all images or of each.

    Raises InputError for arguments that do not fit, JobError for logits that are not finite.
    """
    drafter.config.pyramid.check_draft_steps(draft_steps)
    none_B0 = no_tokens(uniforms_BL)
    scales = decode_scales(drafter, quantizer, labels_B, uniforms_BL, none_B0, draft_steps, sampling)
    return Prefix.from_ids(last(scales), draft_steps)


def refine(
    refiner: Var,
    quantizer: Quantizer,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    prefix: Prefix,
    sampling: SamplingConfig | Sequence[SamplingConfig],
) -> Tensor:
    """Scales N+1..K behind a prefix: token ids of all scales, int64 [B, L].

    Args:
        refiner: the transformer, usually the smaller of the two.
        quantizer: that of the VQVAE (`vqvae.quantize`).
        labels_B: class of each image, whole numbers [B] below `num_classes`.
        uniforms_BL: random integers of each image, int64 [B, L], as `uniforms` gives them.
        prefix: what `draft` made for these images.
        sampling: guidance, top-k, top-p and temperatures, of all images or of each.

    Raises InputError for arguments that do not fit, JobError for logits that are not finite.
    """
    pyramid = refiner.config.pyramid
    if not isinstance(prefix, Prefix):
        raise InputError(f"prefix: expected a Prefix, got {describe(prefix)}")
    ids_BL = prefix.check(pyramid, refiner.config.vocab_size).ids(getattr(labels_B, "device", None))
    return last(decode_scales(refiner, quantizer, labels_B, uniforms_BL, ids_BL, pyramid.num_scales, sampling))


def generate(
    drafter: Var,
    refiner: Var,
    vqvae: Vqvae,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    draft_steps: int,
    sampling: SamplingConfig,
) -> tuple[Tensor, Tensor]:
    """The whole of CoDe: (pixels float [B, 3, H, W] in [0, 1], token ids int64 [B, L]).

    Args:
        drafter: the transformer of scales 1..N.
        refiner: the transformer of scales N+1..K.
        vqvae: the tokenizer of both.
        labels_B: class of each image, whole numbers [B] below `num_classes`.
        uniforms_BL: random integers of each image, int64 [B, L], as `uniforms` gives them.
        draft_steps: N, 1 to K - 1.
        sampling: guidance, top-k, top-p and temperatures.

    Raises InputError for arguments that do not fit, JobError for logits that are not finite.
    """
    prefix = draft(drafter, vqvae.quantize, labels_B, uniforms_BL, draft_steps, sampling)
    ids_BL = refine(refiner, vqvae.quantize, labels_B, uniforms_BL, prefix, sampling)
    return decode(vqvae, ids_BL), ids_BL


def generate_alone(
    var: Var, vqvae: Vqvae, labels_B: Tensor, uniforms_BL: Tensor, sampling: SamplingConfig
) -> tuple[Tensor, Tensor]:
    """Plain VAR, one model for all scales: the yardstick of CoDe. Returns what `generate` returns.

    Args:
        var: the transformer.
        vqvae: its tokenizer.
        labels_B: class of each image, whole numbers [B] below `num_classes`.
        uniforms_BL: random integers of each image, int64 [B, L], as `uniforms` gives them.
        sampling: guidance, top-k, top-p and temperatures.

    Raises InputError for arguments that do not fit, JobError for logits that are not finite.
    """
    none_B0, num_scales = no_tokens(uniforms_BL), var.config.pyramid.num_scales
    ids_BL = last(decode_scales(var, vqvae.quantize, labels_B, uniforms_BL, none_B0, num_scales, sampling))
    return decode(vqvae, ids_BL), ids_BL


@torch.inference_mode()
def decode(vqvae: Vqvae, ids_BL: Tensor) -> Tensor:
    """Token ids of the first scales, or of all -> pixels float32 [B, 3, H, W] in [0, 1].

    Args:
        vqvae: the tokenizer.
        ids_BL: int64 [B, L], or fewer columns: those of whole scales.

    Raises InputError for ids that do not fit; on a GPU their values are not looked at.
    """
    check_ids(vqvae.quantize.pyramid, vqvae.quantize.vocab_size, ids_BL)
    f_hat_BChw, _ = vqvae.quantize.unroll(ids_BL)
    return vqvae.decode(f_hat_BChw)


@torch.inference_mode()
def decode_scales(
    var: Var,
    quantizer: Quantizer,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    prefix_BL: Tensor,
    stop: int,
    sampling: SamplingConfig | Sequence[SamplingConfig],
) -> Iterator[Tensor]:
    """Continue the given token maps up to scale `stop`; after each new scale k: ids int64 [B, L'] of scales 1..k.

    The prefix and the first new scale enter in one block-causal forward; every further scale is one forward on
    the KV cache. Only positions that are sampled get logits.

    Args:
        var: the transformer.
        quantizer: that of its VQVAE (`vqvae.quantize`).
        labels_B: class of each image, whole numbers [B] below `num_classes`.
        uniforms_BL: random integers of each image, int64 [B, L], as `uniforms` gives them.
        prefix_BL: token ids of the scales that are there, int64 [B, L'], perhaps none: [B, 0].
        stop: scales that are there in the end, above those of the prefix, at most K.
        sampling: one setting for all images, or one for each.

    Raises, at the first step, InputError for arguments that do not fit; JobError in the end, before the last scale is
    given out, for logits that are not finite.
    """
    check_pair(var.config, quantizer)
    check_batch(var.config, labels_B, uniforms_BL, prefix_BL, stop, sampling)
    pyramid, offsets = var.config.pyramid, var.config.pyramid.offsets
    sizes = [n * n for n in pyramid.patch_nums]
    start = len(quantizer.split(prefix_BL))
    batch, device = len(labels_B), labels_B.device
    configs = [sampling] * batch if isinstance(sampling, SamplingConfig) else list(sampling)
    cfg_B11 = torch.tensor([config.cfg for config in configs], device=device).view(-1, 1, 1)
    guided = any(config.cfg > 0 for config in configs)
    groups = RowGroups(configs, device)
    labels_R = torch.cat([labels_B, torch.full_like(labels_B, var.config.num_classes)]) if guided else labels_B
    times = 2 if guided else 1

    condition = var.condition(labels_R)
    x_RlC = var.embed_start(condition)
    f_hat_BChw, inputs_BlD = quantizer.unroll(prefix_BL)
    if start > 0:
        entry_BlC = var.embed(inputs_BlD, start=offsets[1])
        x_RlC = torch.cat([x_RlC, entry_BlC.repeat(times, 1, 1)], dim=1)
    shape = batch * times, start, stop
    make_cache = partial(new_cache, var.config, *shape, x_RlC.dtype, x_RlC.device)

    ids_BL, total = prefix_BL, torch.zeros((), device=device)
    with var.forwards(condition, make_cache, shape) as forward:
        for scale in range(start, stop):
            h_RlC = forward(x_RlC, sizes[: scale + 1] if scale == start else sizes[scale : scale + 1])
            guidance_B11 = guidance(cfg_B11, scale, pyramid.num_scales) if guided else None
            noise_Bl = uniforms_BL[:, offsets[scale] : offsets[scale + 1]]
            ids_Bl, summed = draw_tokens(var, h_RlC, condition, guidance_B11, noise_Bl, groups, scale)
            ids_BL = torch.cat([ids_BL, ids_Bl], dim=1)
            # looked at once in the end: a GPU is not made to wait at every scale
            total = total + summed
            if scale + 1 == stop and not total.is_meta and not torch.isfinite(total):
                raise JobError(f"logits of scales {start + 1} to {stop} are not finite: weights or dtype are unfit")
            yield ids_BL
            if scale + 1 < stop:
                f_hat_BChw = f_hat_BChw + quantizer.residual(ids_Bl, scale)
                next_BlD = quantizer.next_input(f_hat_BChw, scale + 1)
                x_RlC = var.embed(next_BlD, start=offsets[scale + 1]).repeat(times, 1, 1)


def new_cache(config: VarConfig, rows: int, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> KVCache:
    """The cache of a decode from `start` scales to `stop`. It ends before the last scale, which no other reads;
    where the entry is the last scale, nothing is read again."""
    offsets = config.pyramid.offsets
    length = offsets[stop - 1] if stop - start > 1 else 0
    return KVCache(config, rows, length, offsets[stop], dtype, device)


def draw_tokens(
    var: Var,
    h_RlC: Tensor,
    condition: Conditioning,
    guidance_B11: Tensor | None,
    noise_Bl: Tensor,
    groups: RowGroups,
    scale: int,
) -> tuple[Tensor, Tensor]:
    """Ids int64 [B, l] of one scale, and the sum of all logits. A few images at a time: logits are large."""
    batch, length = noise_Bl.shape
    step = max(1, limits(h_RlC.device).logits // length)
    ids_Bl, total = torch.empty_like(noise_Bl), torch.zeros((), device=noise_Bl.device)
    for i in range(0, batch, step):
        some = slice(i, min(i + step, batch))
        if var.fused is not None:
            logits_BlV = var.fused.logits(h_RlC, condition.head_R2C, guidance_B11, some)
        elif guidance_B11 is None:
            logits_BlV = var.logits(h_RlC[some], condition.head_R2C[some])
        else:
            pairs = torch.arange(len(h_RlC), device=h_RlC.device).view(2, batch)[:, some].flatten()
            logits_BlV = var.logits(h_RlC[pairs], condition.head_R2C[pairs], guidance_B11[some])
        total = total + logits_BlV.sum()
        for config, chosen in groups.among(some.start, some.stop):
            ids_Bl[some][chosen] = sample(logits_BlV[chosen], noise_Bl[some][chosen], config, scale)
    return ids_Bl, total


def no_tokens(uniforms_BL: Tensor) -> Tensor:
    """The empty prefix of a batch: int64 [B, 0]."""
    if not isinstance(uniforms_BL, Tensor) or uniforms_BL.ndim != 2:
        raise InputError(f"uniforms: expected int64 [B, L], got {describe(uniforms_BL)}")
    return uniforms_BL[:, :0].long()


def last(scales: Iterator[Tensor]) -> Tensor:
    """The ids of all scales, where nobody looks at them on the way."""
    return deque(scales, maxlen=1).pop()
