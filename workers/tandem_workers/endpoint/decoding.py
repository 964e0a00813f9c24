"""Decoding for the endpoint: batches of rows from many requests, through drafter or refiner.

The models are those of a job (`stages.drafter`, `stages.refiner`); here each row has its own seed and sampling,
and previews are decoded after the scales that a request asks for.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tandem.assembly import PLAIN, Preparation
from tandem.collaborative import decode, of_refiner
from tandem.config import Pyramid
from tandem.edit_source import Source, latent_cells
from tandem.errors import JobError
from tandem.prefix import to_tokens
from tandem.sampling import uniforms
from tandem.scales import Decode, decode_scales
from tandem.var import Var
from tandem.vqvae import Vqvae
from tandem_workers.endpoint.picture_encoder import PictureEncoder
from tandem_workers.models.model_set import DTYPES, ModelSet, load_tokenizer, load_transformer, pick_device
from tandem_workers.requests.messages import ImageRequest
from tandem_workers.stages.oom import Halving
from tandem_workers.stages.refiner import to_uint8


@dataclass(frozen=True)
class Row:
    """One image of a request.

    Attributes:
        prefix: ids of its scales so far, uint16 [L'].
        source: ids of the picture that is edited, uint16 [L], once they are known.
    """

    request: ImageRequest
    index: int
    prefix: NDArray[np.uint16]
    source: NDArray[np.uint16] | None = None


@dataclass(frozen=True)
class PreviewPixels:
    """A preview: pixels uint8 [H, W, 3] after `scale` scales."""

    scale: int
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Tokens:
    """The drafter's ids of a row, uint16 [L'], the seconds of its batch, and the ids of the picture that is edited."""

    ids: NDArray[np.uint16]
    seconds: dict[str, float]
    source: NDArray[np.uint16] | None = None


@dataclass(frozen=True)
class Pixels:
    """A finished image, uint8 [H, W, 3], and the seconds its batch took."""

    pixels: NDArray[np.uint8]
    seconds: dict[str, float]


@dataclass(frozen=True)
class RowBatch:
    """Rows as tensors for the models."""

    rows: Sequence[Row]
    labels_B: Tensor
    uniforms_BL: Tensor
    prefix_BL: Tensor
    source: Source | None

    @classmethod
    def of(cls, rows: Sequence[Row], pyramid: Pyramid, device: torch.device) -> RowBatch:
        noise = [uniforms(row.request.seed, np.array([row.index]), pyramid.num_tokens) for row in rows]
        prefix = np.stack([row.prefix for row in rows]).astype(np.int64)
        return cls(
            rows,
            torch.tensor([row.request.label for row in rows], device=device),
            torch.cat(noise).to(device),
            torch.from_numpy(prefix).to(device),
            source_of(rows, pyramid, device),
        )


def source_of(rows: Sequence[Row], pyramid: Pyramid, device: torch.device) -> Source | None:
    """What the edits of a batch keep of their pictures; other rows keep nothing. None for a batch without edits."""
    if not any(row.request.edit for row in rows):
        return None
    ids_BL = torch.zeros(len(rows), pyramid.num_tokens, dtype=torch.int64)
    drawn_Bhw = torch.ones(len(rows), pyramid.grid, pyramid.grid, dtype=torch.bool)
    for place, row in enumerate(rows):
        if row.request.edit is not None and row.source is not None:
            ids_BL[place] = torch.from_numpy(row.source.astype(np.int64))
            drawn_Bhw[place] = latent_cells(torch.from_numpy(row.request.edit.square_mask)[None], pyramid.grid)[0]
    return Source(ids_BL.to(device), drawn_Bhw.to(device))


class BatchDecoder(ABC):
    """One transformer and the VQVAE on one device."""

    def __init__(
        self, models: ModelSet, role: str, dtype: str, threads: int, preparation: Preparation, on_gpu: bool | None
    ):
        torch.set_num_threads(threads)
        self.device = pick_device(on_gpu)
        self.role, ref = role, models.drafter if role == "drafter" else models.ref("refiner")
        self.var: Var = load_transformer(ref, DTYPES[dtype], self.device, preparation)
        patch_nums = models.drafter_config.patch_nums
        self.vqvae: Vqvae = load_tokenizer(models.vqvae, patch_nums, DTYPES[dtype], self.device, preparation)
        self.pyramid = self.var.config.pyramid
        self.pictures = PictureEncoder(models, self.vqvae, self.device)
        self.halving = Halving(role, sys.maxsize)  # until memory runs out

    def __call__(self, rows: Sequence[Row], size: int) -> Iterator[tuple[int, Any]]:
        """Yield (row, value) for a batch padded to `size` with its last row; halve the batch when memory runs out."""
        padded = [*rows, *[rows[-1]] * (size - len(rows))]
        shown: set[tuple[int, int]] = set()  # a half starts over, but no preview is sent twice
        for place, value in self.halving.run(partial(self.work_on, padded, len(rows)), size):
            if isinstance(value, PreviewPixels):
                if (place, value.scale) in shown:
                    continue
                shown.add((place, value.scale))
            yield place, value

    def work_on(self, padded: Sequence[Row], num_rows: int, rows: slice) -> Iterator[tuple[int, Any]]:
        """Decode the rows of a slice, and yield the results of those among the first `num_rows`."""
        count = min(rows.stop, num_rows) - rows.start
        if count > 0:
            given = [self.with_source(row, len(padded)) for row in padded[rows]]
            batch = RowBatch.of(given, self.pyramid, self.device)
            yield from ((rows.start + place, value) for place, value in self.work(batch, count))

    def with_source(self, row: Row, size: int) -> Row:
        """The row with the ids of the picture that it edits, those of the kept scales as its prefix."""
        edit = row.request.edit
        if edit is None:
            return row
        ids = row.source
        if ids is None:
            # in a batch of the size that a job has, or alone: never with what happens to be asked for meanwhile
            ids = self.pictures.encode(edit, size if row.request.deterministic else 1)
        kept = ids[: self.pyramid.offsets[edit.keep_scales]]
        return replace(row, prefix=max(row.prefix, kept, key=len), source=ids)

    @abstractmethod
    def work(self, batch: RowBatch, num_rows: int) -> Iterator[tuple[int, Any]]:
        """Yield previews, then one result for each of the first `num_rows` rows of a batch."""

    def scales(self, batch: RowBatch, num_rows: int, stop: int) -> Iterator[tuple[int, PreviewPixels] | Tensor]:
        """Decode up to scale `stop`. Yields previews of the rows that asked for them, then the ids [B, L']."""
        start = len(self.vqvae.quantize.split(batch.prefix_BL))
        asked = [row.request.sampling for row in batch.rows]
        sampling = of_refiner(asked) if self.role == "refiner" else asked
        ids_BL = batch.prefix_BL
        decoding = self.var, self.vqvae.quantize, batch.labels_B, batch.uniforms_BL, batch.prefix_BL, stop, sampling
        shown = {scale for row in batch.rows[:num_rows] for scale in row.request.preview_scales}
        if stop > start and not shown & set(range(start + 1, stop + 1)):
            ids_BL, stop = Decode.of(*decoding, source=batch.source).tokens(), start
        each = decode_scales(*decoding, batch.source) if stop > start else ()
        for scale, ids_BL in enumerate(each, start + 1):
            if wanted := [i for i in range(num_rows) if scale in batch.rows[i].request.preview_scales]:
                pixels = to_uint8(self.preview(ids_BL[wanted], batch.source and batch.source[wanted]))
                yield from ((i, PreviewPixels(scale, image)) for i, image in zip(wanted, pixels, strict=True))
        yield ids_BL

    @torch.inference_mode()
    def preview(self, ids_BL: Tensor, source: Source | None) -> Tensor:
        """Pixels of a partial decode, without CUDA graphs: graphs for its many shapes would need too much memory, and
        take longer to capture than a client waits."""
        kept = (source.ids_BL, source.drawn_Bhw) if source else ()
        return self.vqvae.decode_ids(ids_BL, *kept)[0]


class DraftDecoder(BatchDecoder):
    """Scales 1..N. All rows of a batch have the same N."""

    def __init__(
        self, models: ModelSet, dtype: str, threads: int, preparation: Preparation = PLAIN, on_gpu: bool | None = False
    ):
        super().__init__(models, "drafter", dtype, threads, preparation, on_gpu)

    def work(self, batch: RowBatch, num_rows: int) -> Iterator[tuple[int, PreviewPixels | Tokens]]:
        began = time.perf_counter()
        for made in self.scales(batch, num_rows, batch.rows[0].request.draft_steps):
            if isinstance(made, Tensor):
                tokens = to_tokens(made)
                seconds = {"draft": time.perf_counter() - began}
                yield from ((i, Tokens(tokens[i], seconds, batch.rows[i].source)) for i in range(num_rows))
            else:
                yield made


class RefineDecoder(BatchDecoder):
    """Scales N+1..K after the rows' prefixes, and pixels."""

    def __init__(
        self, models: ModelSet, dtype: str, threads: int, preparation: Preparation = PLAIN, on_gpu: bool | None = False
    ):
        super().__init__(models, "refiner", dtype, threads, preparation, on_gpu)

    def work(self, batch: RowBatch, num_rows: int) -> Iterator[tuple[int, PreviewPixels | Pixels]]:
        began = time.perf_counter()
        for made in self.scales(batch, num_rows, self.pyramid.num_scales):
            if isinstance(made, Tensor):
                refined = time.perf_counter()
                pixels_B3HW = decode(self.vqvae, made, batch.source)[:num_rows]
                if not torch.isfinite(pixels_B3HW).all():
                    raise JobError("the decoder made pixels that are not finite")
                pixels = to_uint8(pixels_B3HW)
                seconds = {"refine": refined - began, "decode": time.perf_counter() - refined}
                yield from ((i, Pixels(pixels[i], seconds)) for i in range(num_rows))
            else:
                yield made
