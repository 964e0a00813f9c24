"""A dataset of edited pictures, as `tandem edit` and `tandem refine` make it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from tandem.config import SamplingConfig
from tandem_jobs.run.image_output import ImageDataset
from tandem_workers.dataset.card import CardInfo
from tandem_workers.dataset.claim import JobRecord
from tandem_workers.dataset.edit_card import EditCard
from tandem_workers.dataset.token_columns import DRAWN_CELLS, SOURCE_TOKENS, cell_bytes
from tandem_workers.pictures.edit_pictures import EditPictures
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.stages.edit_encoder import EditEncoder


@dataclass(frozen=True, kw_only=True)
class EditDataset(ImageDataset):
    """A dataset of edited pictures. `pictures`: those that are edited; `put_back`: how."""

    pictures: EditPictures
    put_back: PutBack

    def encoder(self) -> EditEncoder:
        options = self.options
        given = options.codec, options.quality, self.provenance, self.names, self.row_settings
        return EditEncoder(self.pictures, self.put_back, options.keep_tokens, *given)

    def card(self, sampling: SamplingConfig, job: JobRecord) -> CardInfo:
        plain = super().card(sampling, job)
        source, blend = self.pictures.source, self.put_back.blend
        place = (
            os.path.basename(source.place) if os.path.isabs(source.place) else source.place
        )  # a path of this machine
        return EditCard(**vars(plain), source=f"`{place}` ({source.kind})", fit=self.pictures.fit, blend=blend)


def edited(plain: ImageDataset, made: Sequence[pa.Field], pictures: EditPictures, put_back: PutBack) -> EditDataset:
    """A dataset of edited pictures from one of images. `made`: columns that stages add to those of the rows."""
    carried = [*plain.carried, *made]
    if plain.options.keep_tokens:
        pyramid = plain.models.drafter_config.pyramid
        carried.append(pa.field(SOURCE_TOKENS, pa.list_(pa.uint16(), pyramid.num_tokens)))
        carried.append(pa.field(DRAWN_CELLS, pa.list_(pa.uint8(), cell_bytes(pyramid.grid))))
    values = vars(plain) | {"carried": pa.schema(carried)}
    return EditDataset(**values, pictures=pictures, put_back=put_back)
