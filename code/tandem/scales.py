"""Decodes token maps scale by scale: the loop of draft and refine.

Shapes: B images, R rows (B with their classes, then those without, see `tandem.guidance`), L tokens of all scales, l
tokens of one scale, C width or latent channels, V codes.
Source: VAR (arXiv 2404.02905); CoDe (arXiv 2411.17787), section 3. The published code samples the prefix again and
throws it away; its author says that this only keeps the random stream aligned, so it is left out here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from tandem.attention import KVCache
from tandem.checks import check_batch, check_pair, check_source, check_values
from tandem.conditioning import Conditioning
from tandem.config import SamplingConfig, VarConfig
from tandem.edit_source import Source
from tandem.errors import JobError
from tandem.guidance import Guidance, ScaleGuidance
from tandem.limits import limits
from tandem.quantizer import Latents, Quantizer
from tandem.sampling import RowGroups, sample
from tandem.var import Var


@torch.inference_mode()
def decode_scales(
    var: Var,
    quantizer: Quantizer,
    labels_B: Tensor,
    uniforms_BL: Tensor,
    prefix_BL: Tensor,
    stop: int,
    sampling: SamplingConfig | Sequence[SamplingConfig],
    source: Source | None = None,
) -> Iterator[Tensor]:
    """Continue the given token maps up to scale `stop`; yields ids int64 [B, L'] of scales 1..k after each scale k.

    The prefix and the first new scale enter in one block-causal forward; every further scale is one forward on
    the KV cache. Only positions that are sampled get logits.

    Args:
        var: the transformer.
        quantizer: that of its VQVAE (`vqvae.quantize`).
        labels_B: class of each image, whole numbers [B] below `num_classes`.
        uniforms_BL: random integers of each image, int64 [B, L], as `uniforms` gives them.
        prefix_BL: token ids of the scales to continue, int64 [B, L']; [B, 0] if none.
        stop: number of scales in the end, above that of the prefix, at most K.
        sampling: one setting for all images, or one for each.
        source: what edits keep of their pictures; see `Source`.

    Raises InputError at the first step for arguments that do not fit, and JobError before the last yield for logits
    that are not finite.
    """
    decode = Decode.of(var, quantizer, labels_B, uniforms_BL, prefix_BL, stop, sampling, source=source)
    for scale, (ids_BL, total) in enumerate(decode.scales(by_graphs=True), decode.start + 1):
        if scale == stop:
            decode.check(total)
        yield ids_BL


@dataclass(frozen=True)
class Decode:
    """The decode of one batch from scale `start` to `stop`, its arguments checked.

    Attributes:
        labels_R: labels of the images, and "no class" for their further rows under guidance.
        guidance: strengths and rows; None if no image has any.
        vectors: modulation vectors of the rows if they come from a table, else empty.
        groups: images with the same sampling settings.
        source: what edits keep; None if no image is an edit.
    """

    var: Var
    quantizer: Quantizer
    labels_R: Tensor
    uniforms_BL: Tensor
    prefix_BL: Tensor
    guidance: Guidance | None
    vectors: tuple[Tensor, ...]
    groups: RowGroups
    start: int
    stop: int
    source: Source | None = None

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        var: Var,
        quantizer: Quantizer,
        labels_B: Tensor,
        uniforms_BL: Tensor,
        prefix_BL: Tensor,
        stop: int,
        sampling: SamplingConfig | Sequence[SamplingConfig],
        read_values: bool = True,
        source: Source | None = None,
    ) -> Decode:
        """Raises InputError. `read_values` False: the caller has checked the values of labels and uniforms; to read
        them from a GPU, the host would wait for all queued work. With a source, the label `num_classes` means "no
        class"."""
        check_pair(var.config, quantizer)
        check_batch(var.config, labels_B, uniforms_BL, prefix_BL, stop, sampling)
        if source is not None:
            check_source(var.config.pyramid, var.config.vocab_size, source, labels_B)
        if read_values:
            check_values(var.config.num_classes + (source is not None), labels_B, uniforms_BL)
        batch, device = len(labels_B), labels_B.device
        configs = [sampling] * batch if isinstance(sampling, SamplingConfig) else list(sampling)
        start = len(quantizer.split(prefix_BL))
        guidance = Guidance.of(configs, var.config.pyramid.num_scales, start, stop, device)
        labels_R = labels_B
        if guidance is not None:
            none_G = labels_B.new_full((guidance.rows[0] - batch,), var.config.num_classes)
            labels_R = torch.cat([labels_B, none_G])
        return cls(
            var,
            quantizer,
            labels_R,
            uniforms_BL,
            prefix_BL,
            guidance,
            var.table_vectors(labels_R),
            RowGroups(configs, device),
            start,
            stop,
            source,
        )

    @torch.inference_mode()
    def tokens(self) -> Tensor:
        """Ids int64 [B, L'] of scales 1..stop, the last that `decode_scales` yields. With CUDA graphs, repeated
        shapes take one launch. Raises JobError for logits that are not finite."""
        ids_BL, total = self.launch()
        self.check(total)
        return ids_BL

    @torch.inference_mode()
    def launch(self) -> tuple[Tensor, Tensor]:
        """The ids of `tokens`, and the sum of all logits for `check`. A GPU may still be computing both."""
        graphs = self.var.graphs
        made = graphs.whole(self.key, self.work, self.tensors) if graphs is not None else None
        ids_BL, total = made or last(self.scales(by_graphs=True))
        return ids_BL, total

    @property
    def key(self) -> Hashable:
        """All that a decode depends on, except its tensors."""
        return self.start, self.stop, self.groups.key, self.source is not None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that a decode reads, except weights: a graph needs them at fixed addresses."""
        guidance = self.guidance.tensors if self.guidance else ()
        kept = (self.source.ids_BL, self.source.drawn_Bhw) if self.source else ()
        own = (self.labels_R, self.uniforms_BL, self.prefix_BL)
        return [*own, *kept, *guidance, *self.vectors, *self.groups.tensors]

    def work(self, labels_R: Tensor, uniforms_BL: Tensor, prefix_BL: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """The last that `scales` yields for a batch of these tensors. CUDA graphs capture this."""
        rest = iter(others)
        new = replace(
            self,
            labels_R=labels_R,
            uniforms_BL=uniforms_BL,
            prefix_BL=prefix_BL,
            source=self.source and Source(next(rest), next(rest)),
            guidance=self.guidance and self.guidance.with_tensors(*islice(rest, len(self.guidance.tensors))),
            vectors=tuple(islice(rest, len(self.vectors))),
            groups=self.groups.at(tuple(rest)),
        )
        return last(new.scales(by_graphs=False))

    def scales(self, by_graphs: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields ids int64 [B, L'] of scales 1..k, and the sum of all logits so far, after each new scale k."""
        var, quantizer, start, stop = self.var, self.quantizer, self.start, self.stop
        offsets = var.config.pyramid.offsets
        sizes = [n * n for n in var.config.pyramid.patch_nums]
        guidance = self.guidance
        rows = guidance.rows if guidance else (len(self.labels_R),) * (stop - start)

        condition = var.condition(self.labels_R, self.vectors)
        x_RlC = var.embed_start(condition.class_RC)
        latents = Latents(quantizer, len(self.prefix_BL), self.prefix_BL.device, self.source)
        inputs_BlD = latents.extend(self.prefix_BL)
        if start > 0:
            entry_BlC = var.embed(inputs_BlD, start=offsets[1])
            x_RlC = torch.cat([x_RlC, guidance.spread(entry_BlC, start) if guidance else entry_BlC], dim=1)
        make_cache = partial(new_cache, var.config, rows, start, stop, x_RlC.dtype, x_RlC.device)
        shape = (*rows, start, stop)

        ids_BL, total = self.prefix_BL, torch.zeros((), device=self.labels_R.device)
        with var.forwards(condition, make_cache, shape, by_graphs) as forward:
            for scale in range(start, stop):
                h_RlC = forward(x_RlC, sizes[: scale + 1] if scale == start else sizes[scale : scale + 1])
                noise_Bl = self.uniforms_BL[:, offsets[scale] : offsets[scale + 1]]
                ids_Bl, summed = draw_tokens(
                    var, h_RlC, condition, guidance.at(scale) if guidance else None, noise_Bl, self.groups, scale
                )
                ids_BL = torch.cat([ids_BL, ids_Bl], dim=1)
                # checked once, in the end: the host does not wait at every scale
                total = total + summed
                yield ids_BL, total
                if scale + 1 < stop:
                    latents.add(ids_Bl)
                    x_RlC = var.embed(latents.next_input(), start=offsets[scale + 1])
                    if guidance is not None:
                        x_RlC = guidance.spread(x_RlC, scale + 1)

    def check(self, total: Tensor) -> None:
        """Raise JobError if the sum of all logits is not finite."""
        check_logits(total, self.start, self.stop)


def check_logits(total: Tensor, start: int, stop: int) -> None:
    """Raise JobError if the sum of all logits of a decode from `start` scales to `stop` is not finite."""
    if not total.is_meta and not torch.isfinite(total):
        raise JobError(f"logits of scales {start + 1} to {stop} are not finite: weights or dtype are unfit")


def new_cache(
    config: VarConfig,
    rows: Sequence[int],
    start: int,
    stop: int,
    dtype: torch.dtype,
    device: torch.device,
    narrows: bool = True,
) -> KVCache:
    """The cache of a decode from `start` scales to `stop`, with `rows` R at each of them. It leaves out the last scale,
    which no other reads; with one new scale it is empty. `narrows` False: it has room for all rows to the end."""
    offsets = config.pyramid.offsets
    length = offsets[stop - 1] if stop - start > 1 else 0
    dropped = rows.index(rows[-1])  # the first scale with the rows of the last
    if not (narrows and length and dropped):
        return KVCache(config, rows[0], length, offsets[stop], dtype, device)
    return KVCache(config, rows[0], length, offsets[stop], dtype, device, rows[-1], offsets[start + dropped])


def draw_tokens(
    var: Var,
    h_RlC: Tensor,
    condition: Conditioning,
    guidance: ScaleGuidance | None,
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
            logits_BlV = var.fused.logits(h_RlC, condition.head_R2C, guidance, some)
        elif guidance is None:
            logits_BlV = var.logits(h_RlC[some], condition.head_R2C[some])
        else:
            pairs, strength_B11 = guidance.pairs(some), guidance.strength_B[some].view(-1, 1, 1)
            logits_BlV = var.logits(h_RlC[pairs], condition.head_R2C[pairs], strength_B11)
        total = total + logits_BlV.sum()
        for config, chosen in groups.among(some.start, some.stop):
            ids_Bl[some][chosen] = sample(logits_BlV[chosen], noise_Bl[some][chosen], config, scale)
    return ids_Bl, total


def last(scales: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The last ids and sum, without reading those before."""
    return deque(scales, maxlen=1).pop()
