"""Losses of the transformer: cross-entropy with the tokens of pictures, and divergence from a teacher.

Shapes: B batch, b rows of a chunk, L tokens that the model sees, l tokens after the first scale, D latent channels,
V codes, K scales.
Sources: VAR (arXiv 2404.02905); CoDe (arXiv 2411.17787), section 3.3. Guidance distillation is that of Meng et al.
(arXiv 2210.03142), with the guidance of VAR, which grows from scale to scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tandem.config import Pyramid, SamplingConfig
from tandem.errors import InputError
from tandem.limits import limits
from tandem.precision import at_least_float32
from tandem.quantizer import Quantizer
from tandem.training.sums import Sums
from tandem.var import Var

Model = Callable[[Tensor, Tensor], Tensor]  # `Var.forward`, or what DDP makes of it


@dataclass(frozen=True)
class TokenBatch:
    """Token maps of pictures.

    Attributes:
        ids_BL: of all scales, int64 [B, L].
        labels_B: int64 [B]; `num_classes` where a label was dropped, to learn what guidance subtracts.
    """

    ids_BL: Tensor
    labels_B: Tensor


@dataclass(frozen=True)
class Objective:
    """What a transformer learns at each token: alpha x KL(teacher || student) + (1 - alpha) x cross-entropy.

    The loss of a row is the sum over its tokens, weighted by scale, over the number of tokens that the model sees.

    Attributes:
        draft_steps: N, scales that the drafter makes; None: the model makes all of them.
        cut: train a drafter: the sequence ends after scale N, and all scales have weight 1. Otherwise a refiner is
            trained: scales after N have weight 1, those before a weight that falls linearly from 1 to 0.
        teacher: its logits are the target, frozen, in its own dtype; None: cross-entropy alone.
        alpha: share of the divergence, if there is a teacher.
        distill_cfg: guidance at the last scale. The target is then the teacher as sampling guides it, before top-k,
            top-p and temperature. Rows whose label was dropped learn the teacher without class.
        smoothing: of the labels, in the cross-entropy.
    """

    draft_steps: int | None = None
    cut: bool = False
    teacher: Var | None = None
    alpha: float = 1.0
    distill_cfg: float | None = None
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha: expected 0 to 1, got {self.alpha}")
        if self.distill_cfg is not None and not 0 <= self.distill_cfg < math.inf:
            raise InputError(f"distill_cfg: expected >= 0, got {self.distill_cfg}")
        if self.teacher is None and self.distill_cfg is not None:
            raise InputError("distill_cfg: expected a teacher to learn from, got none")
        if self.cut and self.draft_steps is None:
            raise InputError("draft_steps: expected the scale after which to cut, got none")

    @property
    def divergence(self) -> float:
        """Share of the divergence from the teacher; the rest is cross-entropy."""
        return 0.0 if self.teacher is None else self.alpha

    def weights(self, pyramid: Pyramid, progress: float) -> list[float]:
        """Weight of each scale that the model sees. `progress` is the share of the steps done."""
        if self.draft_steps is None:
            return [1.0] * pyramid.num_scales
        steps = pyramid.check_draft_steps(self.draft_steps)
        return [1.0] * steps if self.cut else [1.0 - progress] * steps + [1.0] * (pyramid.num_scales - steps)

    def __call__(
        self, model: Model, quantizer: Quantizer, batch: TokenBatch, progress: float = 0.0
    ) -> tuple[Tensor, Sums]:
        """Sum of the loss over the rows, float32, and loss and accuracy of each scale.

        Those are means over tokens, unweighted; accuracy is the share of tokens that the model finds likeliest.
        """
        pyramid = quantizer.pyramid
        weights = self.weights(pyramid, progress)
        offsets = pyramid.offsets[: len(weights) + 1]
        ids_BL = batch.ids_BL[:, : offsets[-1]]
        with torch.no_grad(), torch.autocast(ids_BL.device.type, enabled=False):
            _, inputs_BlD = quantizer.unroll(ids_BL[:, : offsets[-2]])
            target_BLV = self.target(batch.labels_B, inputs_BlD, pyramid)
        losses_BL, hits_BL = self.token_losses(model(batch.labels_B, inputs_BlD), target_BLV, ids_BL)
        sizes = [stop - start for start, stop in pairwise(offsets)]
        summed = torch.stack([losses_BL.sum(0), hits_BL.sum(0)]).split(sizes, dim=1)
        by_scale_2K = torch.stack([scale_2l.sum(1) for scale_2l in summed], dim=1)
        sums: Sums = {}
        for name, values_K in zip(("loss", "accuracy"), by_scale_2K.detach(), strict=True):
            for scale, (size, value) in enumerate(zip(sizes, values_K, strict=True), start=1):
                sums[f"{name}_scale_{scale}"] = value, torch.full_like(value, len(ids_BL) * size)
        loss = (by_scale_2K[0] * by_scale_2K.new_tensor(weights)).sum() / offsets[-1]
        return loss, sums

    def target(self, labels_B: Tensor, inputs_BlD: Tensor, pyramid: Pyramid) -> Tensor | None:
        """Logits of the teacher, guided if that is to be learnt: float32 [B, L, V]."""
        teacher = self.teacher
        if teacher is None or not self.divergence:
            return None
        if not self.distill_cfg:
            return teacher(labels_B, inputs_BlD)
        labels_R = torch.cat([labels_B, torch.full_like(labels_B, teacher.config.num_classes)])
        level_L = teacher.level_L[: pyramid.offsets[1] + inputs_BlD.shape[1]]
        strengths = SamplingConfig(cfg=self.distill_cfg).strengths(pyramid.num_scales)
        strength_1L1 = torch.tensor(strengths, device=labels_B.device)[level_L].view(1, -1, 1)
        return teacher(labels_R, inputs_BlD.repeat(2, 1, 1), strength_1L1)

    def token_losses(self, logits_BLV: Tensor, target_BLV: Tensor | None, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each token, and 1 where the model finds its id the likeliest: float32 [B, L] each.

        A few rows at a time. With a teacher they are computed again for the gradients, as their distributions would
        otherwise take several times the memory of the logits.
        """
        step = max(1, limits(logits_BLV.device).logits // logits_BLV.shape[1])
        targets = [None] * len(ids_BL) if target_BLV is None else target_BLV.split(step)
        losses, hits = [], []
        for logits_bLV, target_bLV, ids_bL in zip(logits_BLV.split(step), targets, ids_BL.split(step), strict=False):
            if target_bLV is None:
                losses.append(self.losses_of_rows(logits_bLV, None, ids_bL))
            else:
                losses.append(checkpoint(self.losses_of_rows, logits_bLV, target_bLV, ids_bL, use_reentrant=False))
            hits.append(logits_bLV.detach().argmax(dim=-1) == ids_bL)
        return torch.cat(losses), torch.cat(hits).to(losses[0].dtype)

    def losses_of_rows(self, logits_bLV: Tensor, target_bLV: Tensor | None, ids_bL: Tensor) -> Tensor:
        """Loss of each token of a few rows: float32 [b, L]."""
        share, logits_bLV = self.divergence, at_least_float32(logits_bLV)
        losses_bL = torch.zeros_like(ids_bL, dtype=logits_bLV.dtype)
        if share < 1:
            entropy_n = F.cross_entropy(
                logits_bLV.flatten(0, 1), ids_bL.flatten(), reduction="none", label_smoothing=self.smoothing
            )
            losses_bL = (1 - share) * entropy_n.view_as(losses_bL)
        if target_bLV is not None:
            student, teacher = (logits.log_softmax(-1) for logits in (logits_bLV, at_least_float32(target_bLV)))
            losses_bL = losses_bL + share * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        return losses_bL
