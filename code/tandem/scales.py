"""Token maps one scale after the other: the loop of draft and refine.

Shapes: B images, R rows (with CFG: B conditional, then B unconditional), L tokens of all scales, l tokens of one
scale, C width or latent channels, V codes.
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
from tandem.checks import check_batch, check_pair, check_values
from tandem.conditioning import Conditioning
from tandem.config import SamplingConfig, VarConfig
from tandem.errors import JobError
from tandem.limits import limits
from tandem.quantizer import Quantizer
from tandem.sampling import RowGroups, guidance, sample
from tandem.transfers import upload
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
    decode = Decode.of(var, quantizer, labels_B, uniforms_BL, prefix_BL, stop, sampling)
    for scale, (ids_BL, total) in enumerate(decode.scales(by_graphs=True), decode.start + 1):
        if scale == stop:
            decode.check(total)
        yield ids_BL


@dataclass(frozen=True)
class Decode:
    """One batch, its arguments checked, between two scales of the pyramid.

    Attributes:
        labels_R: those of the images, and under guidance as many of no class.
        strength_B11: of guidance at the last scale; None where no image has any.
        vectors: modulation vectors of the rows where they come from a table, else empty.
        groups: the images that are sampled alike.
    """

    var: Var
    quantizer: Quantizer
    labels_R: Tensor
    uniforms_BL: Tensor
    prefix_BL: Tensor
    strength_B11: Tensor | None
    vectors: tuple[Tensor, ...]
    groups: RowGroups
    start: int
    stop: int

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
    ) -> Decode:
        """Raises InputError. Values of labels and uniforms are not read where the caller has: on a GPU the host would
        wait for all that was launched before."""
        check_pair(var.config, quantizer)
        check_batch(var.config, labels_B, uniforms_BL, prefix_BL, stop, sampling)
        if read_values:
            check_values(var.config.num_classes, labels_B, uniforms_BL)
        batch, device = len(labels_B), labels_B.device
        configs = [sampling] * batch if isinstance(sampling, SamplingConfig) else list(sampling)
        guided = any(config.cfg > 0 for config in configs)
        none_B = torch.full_like(labels_B, var.config.num_classes)
        labels_R = torch.cat([labels_B, none_B]) if guided else labels_B
        strength_B = upload(torch.tensor([config.cfg for config in configs]), device)
        return cls(
            var,
            quantizer,
            labels_R,
            uniforms_BL,
            prefix_BL,
            strength_B.view(-1, 1, 1) if guided else None,
            var.table_vectors(labels_R),
            RowGroups(configs, device),
            len(quantizer.split(prefix_BL)),
            stop,
        )

    @torch.inference_mode()
    def tokens(self) -> Tensor:
        """Ids int64 [B, L'] of scales 1..stop, as `decode_scales` gives them in the end. With CUDA graphs it is one
        launch for shapes that come again. Raises JobError for logits that are not finite."""
        ids_BL, total = self.launch()
        self.check(total)
        return ids_BL

    @torch.inference_mode()
    def launch(self) -> tuple[Tensor, Tensor]:
        """The same ids, and the sum of all logits, which the caller has to `check`. A GPU has yet to compute them."""
        graphs = self.var.graphs
        made = graphs.whole(self.key, self.work, self.tensors) if graphs is not None else None
        ids_BL, total = made or last(self.scales(by_graphs=True))
        return ids_BL, total

    @property
    def key(self) -> Hashable:
        """What a decode depends on, beside its tensors."""
        return self.start, self.stop, self.groups.key

    @property
    def tensors(self) -> list[Tensor]:
        """All that a decode reads beside the weights: a graph must find it at the same addresses each time."""
        strength = () if self.strength_B11 is None else (self.strength_B11,)
        return [self.labels_R, self.uniforms_BL, self.prefix_BL, *strength, *self.vectors, *self.groups.tensors]

    def work(self, labels_R: Tensor, uniforms_BL: Tensor, prefix_BL: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """All scales of a batch of these tensors: what `scales` gives last."""
        rest = iter(others)
        new = replace(
            self,
            labels_R=labels_R,
            uniforms_BL=uniforms_BL,
            prefix_BL=prefix_BL,
            strength_B11=None if self.strength_B11 is None else next(rest),
            vectors=tuple(islice(rest, len(self.vectors))),
            groups=self.groups.at(tuple(rest)),
        )
        return last(new.scales(by_graphs=False))

    def scales(self, by_graphs: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """After each new scale k: ids int64 [B, L'] of scales 1..k, and the sum of all logits so far."""
        var, quantizer, start, stop = self.var, self.quantizer, self.start, self.stop
        offsets, num_scales = var.config.pyramid.offsets, var.config.pyramid.num_scales
        sizes = [n * n for n in var.config.pyramid.patch_nums]
        rows, batch = len(self.labels_R), len(self.uniforms_BL)

        condition = var.condition(self.labels_R, self.vectors)
        x_RlC = var.embed_start(condition)
        f_hat_BChw, inputs_BlD = quantizer.unroll(self.prefix_BL)
        if start > 0:
            entry_BlC = var.embed(inputs_BlD, start=offsets[1])
            x_RlC = torch.cat([x_RlC, entry_BlC.repeat(rows // batch, 1, 1)], dim=1)
        shape = rows, start, stop
        make_cache = partial(new_cache, var.config, *shape, x_RlC.dtype, x_RlC.device)

        ids_BL, total = self.prefix_BL, torch.zeros((), device=self.labels_R.device)
        with var.forwards(condition, make_cache, shape, by_graphs) as forward:
            for scale in range(start, stop):
                h_RlC = forward(x_RlC, sizes[: scale + 1] if scale == start else sizes[scale : scale + 1])
                strength_B11 = guidance(self.strength_B11, scale, num_scales) if self.strength_B11 is not None else None
                noise_Bl = self.uniforms_BL[:, offsets[scale] : offsets[scale + 1]]
                ids_Bl, summed = draw_tokens(var, h_RlC, condition, strength_B11, noise_Bl, self.groups, scale)
                ids_BL = torch.cat([ids_BL, ids_Bl], dim=1)
                # looked at once in the end: a GPU is not made to wait at every scale
                total = total + summed
                yield ids_BL, total
                if scale + 1 < stop:
                    f_hat_BChw = f_hat_BChw + quantizer.residual(ids_Bl, scale)
                    next_BlD = quantizer.next_input(f_hat_BChw, scale + 1)
                    x_RlC = var.embed(next_BlD, start=offsets[scale + 1]).repeat(rows // batch, 1, 1)

    def check(self, total: Tensor) -> None:
        """JobError where the sum of all logits is no number."""
        check_logits(total, self.start, self.stop)


def check_logits(total: Tensor, start: int, stop: int) -> None:
    """JobError where the sum of all logits of a decode from `start` scales to `stop` is no number."""
    if not total.is_meta and not torch.isfinite(total):
        raise JobError(f"logits of scales {start + 1} to {stop} are not finite: weights or dtype are unfit")


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


def last(scales: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Ids and sum of all scales, where nobody looks at them on the way."""
    return deque(scales, maxlen=1).pop()
