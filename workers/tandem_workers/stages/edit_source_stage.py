"""The first model's work on an edit: pictures and masks to token ids and cells, which is all that travels on."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import torch

from tandem.edit_source import latent_cells
from tandem.transfers import upload
from tandem.vqvae import to_float
from tandem_workers.dataset.row_settings import column
from tandem_workers.dataset.shards import ShardRows
from tandem_workers.dataset.token_columns import BOX, EDITED, PICTURE_INDEX
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import ModelSet, load_tokenizer, pick_device
from tandem_workers.pictures.edit_pictures import EditPictures
from tandem_workers.stages.oom import Halving

EMPTY = (
    "some masks are empty: their pictures come back as they were given (or, with --blend none, as the VQVAE decodes "
    "them); in the dataset their edited_share is 0"
)


class SourceEncoder:
    """Holds the VQVAE on the drafter's device. `__call__` adds the source's ids and the cells to draw to label rows.

    Args:
        nearest: see `latent_cells`.
    """

    name = "source"

    def __init__(self, pictures: EditPictures, models: ModelSet, settings: DecodeSettings, nearest: bool = False):
        self.pictures, self.models, self.settings, self.nearest = pictures, models, settings, nearest

    def load(self) -> SourceEncoder:
        settings, patch_nums = self.settings, self.models.drafter_config.patch_nums
        torch.set_num_threads(settings.threads)
        self.device = pick_device(settings.on_gpu)
        self.vqvae = load_tokenizer(self.models.vqvae, patch_nums, torch.float32, self.device)
        self.halving = Halving(self.name, settings.batch)
        return self

    def __call__(self, shard: ShardRows) -> ShardRows:
        """Same rows, same order. InputError for a picture or mask that cannot be used."""
        began = time.perf_counter()
        numbers = column(shard, PICTURE_INDEX)
        boxes = column(shard, BOX) if BOX in shard.extra else None
        squares, places, cells, about = list[np.ndarray](), list[int](), list[np.ndarray](), list[tuple[object, ...]]()
        grid = self.models.drafter_config.pyramid.grid
        for row, found in enumerate(self.pictures.read(numbers, boxes)):
            if not row or numbers[row] != numbers[row - 1] or (boxes and boxes[row] != boxes[row - 1]):
                squares.append(found.canvas.square(found.picture.shown))
                mask_1SS = torch.from_numpy(found.canvas.square_mask(found.mask))[None]
                cells.append(latent_cells(mask_1SS, grid, self.nearest)[0].numpy().reshape(-1))
                about.append((found.name, found.sha256, found.mask_sha256, found.edited_share))
            places.append(len(squares) - 1)
        columns = zip(*(about[place] for place in places), strict=True)
        made = {name: pa.array(values, kind) for (name, kind), values in zip(EDITED.items(), columns, strict=True)}
        empty = any(about[place][-1] == 0 for place in places)
        return ShardRows.of(
            shard,
            source=self.encode(np.stack(squares))[places],
            drawn=np.packbits(np.stack(cells), axis=1)[places],
            extra={**shard.extra, **made},
            seconds={**shard.seconds, self.name: time.perf_counter() - began},
            warnings=[*shard.warnings, *([EMPTY] if empty else [])],
        )

    @torch.inference_mode()
    def encode(self, squares_mSS3: np.ndarray) -> np.ndarray:
        """Token ids of pictures uint8 [m, S, S, 3]: uint16 [m, L]. Batches have one shape; the last is padded."""
        batch, ids = self.settings.batch, list[np.ndarray]()
        for start in range(0, len(squares_mSS3), batch):
            part = squares_mSS3[start : start + batch]
            padded = np.pad(part, ((0, batch - len(part)), (0, 0), (0, 0), (0, 0)), mode="edge")
            pixels_B3SS = to_float(upload(torch.from_numpy(padded), self.device).permute(0, 3, 1, 2))
            for attempt in self.halving.attempts(batch):
                with attempt as rows:
                    made = self.vqvae.encode(pixels_B3SS[rows])[: max(0, len(part) - rows.start)]
                    ids.append(made.cpu().numpy().astype(np.uint16))
        return np.concatenate(ids)
