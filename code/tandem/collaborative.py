"""Collaborative decoding: a drafter makes the first N token maps, a refiner the rest.

Shapes: B images, L tokens of all scales, H and W pixels.
Source: CoDe (arXiv 2411.17787), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tandem.checks import check_ids, check_source, describe
from tandem.config import SamplingConfig
from tandem.edit_source import Source
from tandem.errors import InputError
from tandem.prefix import Prefix
from tandem.quantizer import Quantizer
from tandem.scales import Decode
from tandem.var import Var
from tandem.vqvae import Vqvae


def draft(
    drafter: Var,
    quantizer: Quantizer,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    draft_steps: int,
    sampling: SamplingConfig | Sequence[SamplingConfig],
    source: Source | None = None,
) -> Prefix:
    """Scales 1..N: token ids of the low frequencies, as a Prefix of B images.

    Args:
        drafter: the transformer, usually the larger of the two.
        quantizer: that of the VQVAE (`vqvae.quantize`).
        labels_B: class of each image, whole numbers [B] below `num_classes`.
        uniforms_BL: random integers of each image, int64 [B, L], as `uniforms` gives them.
        draft_steps: N, scales that the drafter makes, 1 to K - 1.
        sampling: guidance, top-k, top-p and temperatures, of all images or of each.
        source: what edits keep of their pictures; see `Source`.

    Raises InputError for arguments that do not fit, JobError for logits that are not finite.
    """
    ids_BL = begin_draft(drafter, quantizer, labels_B, uniforms_BL, draft_steps, sampling, source=source).tokens()
    return Prefix.from_ids(ids_BL, draft_steps)


def begin_draft(
    drafter: Var,
    quantizer: Quantizer,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    draft_steps: int,
    sampling: SamplingConfig | Sequence[SamplingConfig],
    read_values: bool = True,
    source: Source | None = None,
) -> Decode:
    """The decode of `draft`, to be launched. See `Decode.of` for `read_values`."""
    drafter.config.pyramid.check_draft_steps(draft_steps)
    none_B0 = no_tokens(uniforms_BL)
    return Decode.of(drafter, quantizer, labels_B, uniforms_BL, none_B0, draft_steps, sampling, read_values, source)


def refine(
    refiner: Var,
    quantizer: Quantizer,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    prefix: Prefix,
    sampling: SamplingConfig | Sequence[SamplingConfig],
    source: Source | None = None,
) -> Tensor:
    """Scales N+1..K after a prefix: token ids of all scales, int64 [B, L].

    Args:
        refiner: the transformer, usually the smaller of the two.
        quantizer: that of the VQVAE (`vqvae.quantize`).
        labels_B: class of each image, whole numbers [B] below `num_classes`.
        uniforms_BL: random integers of each image, int64 [B, L], as `uniforms` gives them.
        prefix: what `draft` made for these images.
        sampling: guidance, top-k, top-p and temperatures, of all images or of each.
        source: that of the draft.

    Raises InputError for arguments that do not fit, JobError for logits that are not finite.
    """
    return begin_refine(refiner, quantizer, labels_B, uniforms_BL, prefix, sampling, source=source).tokens()


def begin_refine(
    refiner: Var,
    quantizer: Quantizer,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    prefix: Prefix,
    sampling: SamplingConfig | Sequence[SamplingConfig],
    read_values: bool = True,
    source: Source | None = None,
) -> Decode:
    """The decode of `refine`, to be launched. See `Decode.of` for `read_values`."""
    pyramid = refiner.config.pyramid
    if not isinstance(prefix, Prefix):
        raise InputError(f"prefix: expected a Prefix, got {describe(prefix)}")
    ids_BL = prefix.check(pyramid, refiner.config.vocab_size).ids(getattr(labels_B, "device", None))
    sampling = of_refiner(sampling)
    stop = pyramid.num_scales
    return Decode.of(refiner, quantizer, labels_B, uniforms_BL, ids_BL, stop, sampling, read_values, source)


def of_refiner(sampling: SamplingConfig | Sequence[SamplingConfig]) -> SamplingConfig | Sequence[SamplingConfig]:
    """The settings of all images or of each, for the scales that the refiner makes."""
    if isinstance(sampling, SamplingConfig):
        return sampling.of_refiner
    return [config.of_refiner for config in sampling]


def generate(
    drafter: Var,
    refiner: Var,
    vqvae: Vqvae,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    draft_steps: int,
    sampling: SamplingConfig,
    source: Source | None = None,
) -> tuple[Tensor, Tensor]:
    """CoDe from labels to images: (pixels float [B, 3, H, W] in [0, 1], token ids int64 [B, L]).

    Args:
        drafter: the transformer of scales 1..N.
        refiner: the transformer of scales N+1..K.
        vqvae: the tokenizer of both.
        labels_B: class of each image, whole numbers [B] below `num_classes`.
        uniforms_BL: random integers of each image, int64 [B, L], as `uniforms` gives them.
        draft_steps: N, 1 to K - 1.
        sampling: guidance, top-k, top-p and temperatures.
        source: what edits keep of their pictures; see `Source`.

    Raises InputError for arguments that do not fit, JobError for logits that are not finite.
    """
    prefix = draft(drafter, vqvae.quantize, labels_B, uniforms_BL, draft_steps, sampling, source)
    ids_BL = refine(refiner, vqvae.quantize, labels_B, uniforms_BL, prefix, sampling, source)
    return decode(vqvae, ids_BL, source), ids_BL


def generate_alone(
    var: Var,
    vqvae: Vqvae,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    sampling: SamplingConfig,
    source: Source | None = None,
) -> tuple[Tensor, Tensor]:
    """Plain VAR, one model for all scales: the baseline of CoDe. Returns what `generate` returns.

    Args:
        var: the transformer.
        vqvae: its tokenizer.
        labels_B: class of each image, whole numbers [B] below `num_classes`.
        uniforms_BL: random integers of each image, int64 [B, L], as `uniforms` gives them.
        sampling: guidance, top-k, top-p and temperatures.
        source: what edits keep of their pictures; see `Source`.

    Raises InputError for arguments that do not fit, JobError for logits that are not finite.
    """
    none_B0, stop = no_tokens(uniforms_BL), var.config.pyramid.num_scales
    found = Decode.of(var, vqvae.quantize, labels_B, uniforms_BL, none_B0, stop, sampling, source=source)
    ids_BL = found.tokens()
    return decode(vqvae, ids_BL, source), ids_BL


@torch.inference_mode()
def decode(vqvae: Vqvae, ids_BL: Tensor, source: Source | None = None) -> Tensor:
    """Token ids of the first scales, or of all -> pixels float32 [B, 3, H, W] in [0, 1].

    Args:
        vqvae: the tokenizer.
        ids_BL: int64 [B, L], or fewer columns: those of whole scales.
        source: that of the edits, of which the ids alone say too little.

    Raises InputError for ids that do not fit; on a GPU their values are not checked.
    """
    quantizer = vqvae.quantize
    check_ids(quantizer.pyramid, quantizer.vocab_size, ids_BL)
    inputs = [ids_BL]
    if source is not None:
        check_source(quantizer.pyramid, quantizer.vocab_size, source, ids_BL)
        inputs += [source.ids_BL, source.drawn_Bhw]
    made = vqvae.graphs.whole((len(inputs),), vqvae.decode_ids, inputs) if vqvae.graphs is not None else None
    return (made or vqvae.decode_ids(*inputs))[0]


def no_tokens(uniforms_BL: Tensor) -> Tensor:
    """The empty prefix of a batch: int64 [B, 0]."""
    if not isinstance(uniforms_BL, Tensor) or uniforms_BL.ndim != 2:
        raise InputError(f"uniforms: expected int64 [B, L], got {describe(uniforms_BL)}")
    return uniforms_BL[:, :0].long()
