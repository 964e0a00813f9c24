"""VAR, the next-scale transformer: one call per scale with a KV cache, or one call for all scales.

Shapes: R rows (with CFG: conditional then unconditional), L tokens, C width, D latent channels, V codes.
Source: VAR (arXiv 2404.02905); tensor names follow its published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tandem.attention import KVCache, attend_by_scale
from tandem.blocks import Block, Modulation, layer_norm
from tandem.conditioning import Conditioning, Forward
from tandem.config import VarConfig
from tandem.guidance import ScaleGuidance
from tandem.limits import rows_together
from tandem.linear import Linear
from tandem.modulation import ModulationTable
from tandem.precision import at_least_float32

if TYPE_CHECKING:
    from tandem.graphs import Graphs


class HeadNorm(nn.Module):
    """AdaLN before the classifier head: scale and shift."""

    def __init__(self, width: int):
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def modulation(self, cond_RC: Tensor) -> Tensor:
        """Scale and shift [R, 2, C]."""
        return self.ada_lin(cond_RC).view(len(cond_RC), 2, -1)

    def forward(self, x_RLC: Tensor, modulation_R2C: Tensor) -> Tensor:
        scale, shift = at_least_float32(modulation_R2C).unsqueeze(2).unbind(1)
        return torch.addcmul(shift, layer_norm(at_least_float32(x_RLC)), scale + 1)


class FusedModel(Protocol):
    """GPU kernels that replace `Var.hidden` and `Var.logits`: `tandem.fused.FusedVar`."""

    def hidden(self, x_RLC: Tensor, sizes: Sequence[int], condition: Conditioning, cache: KVCache) -> Tensor: ...

    def logits(self, x_RlC: Tensor, modulation_R2C: Tensor, guidance: ScaleGuidance | None, some: slice) -> Tensor: ...


class Var(nn.Module):
    """Predicts the tokens of a scale from those of all smaller ones. Class id `num_classes` means "no class"."""

    level_L: Tensor

    def __init__(self, config: VarConfig):
        super().__init__()
        self.config = config
        width, pyramid = config.width, config.pyramid
        self.word_embed = Linear(config.latent_channels, width)
        self.class_emb = nn.Embedding(config.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, pyramid.patch_nums[0] ** 2, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, pyramid.num_tokens, width))
        self.lvl_embed = nn.Embedding(pyramid.num_scales, width)
        if config.shared_adaln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(width)
        self.head = Linear(width, config.vocab_size)
        self.recompute = False  # in training: blocks keep their input alone, and run again for the gradients
        self.table: ModulationTable | None = None  # replaces the AdaLN weights, see `tandem.modulation`
        self.graphs: Graphs | None = None
        self.fused: FusedModel | None = None
        level_L = [scale for scale, n in enumerate(pyramid.patch_nums) for _ in range(n * n)]
        # on the CPU even if the weights are on the meta device
        self.register_buffer("level_L", torch.tensor(level_L, device="cpu"), persistent=False)

    @property
    def layers(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def table_vectors(self, labels_R: Tensor) -> tuple[Tensor, ...]:
        """Rows [R, ., C] of the modulation table for `condition`; empty without a table. The host waits for labels."""
        return () if self.table is None else (self.table.rows(labels_R),)

    def modulations(self, class_RC: Tensor, vectors: Sequence[Tensor] = ()) -> tuple[list[Modulation], Tensor]:
        """Modulation of all blocks, and the vectors [R, 2, C] of the head. `vectors` are those of `table_vectors`.

        Without a table blocks get functions: under FSDP a block has its weights in its own forward alone.
        """
        if vectors:
            *blocks, head_R2C = vectors[0].split(6, dim=1)
            return list(blocks), head_R2C
        shared_R6C = None
        if self.config.shared_adaln:
            shared_R6C = self.shared_ada_lin(class_RC).view(len(class_RC), 6, -1)
        return [partial(b.modulation, class_RC, shared_R6C) for b in self.layers], self.head_nm.modulation(class_RC)

    def condition(self, labels_R: Tensor, vectors: Sequence[Tensor] = ()) -> Conditioning:
        """Modulation vectors of all blocks for labels int64 [R]; `vectors` are those of `table_vectors`."""
        class_RC = self.class_emb(labels_R)
        blocks, head_R2C = self.modulations(class_RC, vectors)
        return Conditioning(class_RC, [each if isinstance(each, Tensor) else each() for each in blocks], head_R2C)

    def embed_start(self, class_RC: Tensor) -> Tensor:
        """Input of the first scale: the class at every position, float [R, l, C]."""
        length = self.pos_start.shape[1]
        return class_RC.unsqueeze(1) + self.pos_start + self.positions(0, length)

    def embed(self, inputs_BlD: Tensor, start: int) -> Tensor:
        """Input of later tokens from position `start` on, from resized f_hat [B, l, D]: float [B, l, C]."""
        stop = start + inputs_BlD.shape[1]
        return self.word_embed(inputs_BlD.to(self.dtype)) + self.positions(start, stop)

    def positions(self, start: int, stop: int) -> Tensor:
        """Level plus position embedding of tokens start..stop: float [1, l, C]."""
        return self.lvl_embed(self.level_L[None, start:stop]) + self.pos_1LC[:, start:stop]

    def forwards(
        self, condition: Conditioning, make_cache: Callable[..., KVCache], shape: tuple[int, ...], by_graphs: bool
    ) -> AbstractContextManager[Forward]:
        """Context manager: the function that runs the scales of one decode, `hidden` or CUDA graphs of it.

        `make_cache` makes an empty cache; `shape` is everything that determines tensor sizes.
        """
        if self.graphs is None or not by_graphs:
            return nullcontext(partial(self.hidden, condition=condition, cache=make_cache()))
        return self.graphs.forwards(self.hidden, condition, make_cache, shape)

    def hidden(self, x_RLC: Tensor, sizes: Sequence[int], condition: Conditioning, cache: KVCache) -> Tensor:
        """Run new tokens [R, L, C], whole scales of `sizes` tokens, through all blocks; returns the last one [R, l, C].

        Earlier tokens are read from `cache`, which also keeps the new ones if it has room. Rows go through a layer in
        groups. In the last layer only the returned tokens have queries.
        """
        if self.fused is not None:
            return self.fused.hidden(x_RLC, sizes, condition, cache)
        for layer, (block, modulation_R6C) in enumerate(zip(self.layers, condition.blocks, strict=True)):
            last = layer == self.config.depth - 1
            wanted, queries = (sizes[-1], sizes[-1:]) if last else (x_RLC.shape[1], sizes)
            groups = [
                block(x_RLC[rows], modulation_R6C[rows], partial(attend_cached, cache, layer, rows, queries), wanted)
                for rows in self.row_groups(*x_RLC.shape[:2])
            ]
            x_RLC = groups[0] if len(groups) == 1 else torch.cat(groups)
        cache.advance(sum(sizes))
        return x_RLC

    def row_groups(self, rows: int, tokens: int) -> Iterator[slice]:
        """Rows of `tokens` tokens each that go through a layer together."""
        step = rows_together(self.config, rows, tokens, self.dtype, self.pos_1LC.device)
        return (slice(i, min(i + step, rows)) for i in range(0, rows, step))

    def logits(self, x_RlC: Tensor, modulation_R2C: Tensor, guidance_B11: Tensor | None = None) -> Tensor:
        """Logits of hidden states: float32 [R, l, V], or [B, l, V] after CFG of strengths `guidance_B11`.

        The head is linear, so hidden states are mixed instead of logits, at half the work.
        """
        h_RlC = self.head_nm(x_RlC, modulation_R2C)
        if guidance_B11 is not None:
            cond_BlC, uncond_BlC = h_RlC.chunk(2)
            h_RlC = cond_BlC + guidance_B11 * (cond_BlC - uncond_BlC)
        return self.head(h_RlC)

    def forward(self, labels_R: Tensor, inputs_RlD: Tensor, guidance_B11: Tensor | None = None) -> Tensor:
        """Teacher-forced logits float32 [R, L, V] from `Quantizer.unroll`'s inputs of the scales after the first.

        With fewer inputs the sequence ends earlier. `guidance_B11`: as in `logits`, or [1, L, 1] for each token.
        """
        class_RC = self.class_emb(labels_R)
        modulations, head_R2C = self.modulations(class_RC, self.table_vectors(labels_R))
        start_RlC = self.embed_start(class_RC)
        x_RLC = torch.cat([start_RlC, self.embed(inputs_RlD, start_RlC.shape[1])], dim=1)
        level_L = self.level_L[: x_RLC.shape[1]]
        mask_LL = level_L[:, None] >= level_L[None, :]  # a token sees its own scale and all smaller ones
        masked = partial(F.scaled_dot_product_attention, attn_mask=mask_LL, scale=1.0)
        for block, modulation in zip(self.layers, modulations, strict=True):
            if self.recompute and torch.is_grad_enabled():
                # blocks draw no random numbers
                x_RLC = checkpoint(block, x_RLC, modulation, masked, use_reentrant=False, preserve_rng_state=False)
            else:
                x_RLC = block(x_RLC, modulation, masked)
        return self.logits(x_RLC, head_R2C, guidance_B11)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of activations and all weights but the head's."""
        return self.pos_1LC.dtype

    @staticmethod
    def dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
        """Dtype of a tensor in a model that computes in `dtype`: the head stays float32, as it makes the logits."""
        return torch.float32 if name.startswith("head.") else dtype


def attend_cached(
    cache: KVCache, layer: int, rows: slice, sizes: Sequence[int], q_RHlc: Tensor, k_RHLc: Tensor, v_RHLc: Tensor
) -> Tensor:
    """Attention of the new scales, of `sizes` tokens, to the cache and to themselves."""
    return attend_by_scale(q_RHlc, *cache.extend(layer, rows, k_RHLc, v_RHLc), sizes)
