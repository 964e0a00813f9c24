"""The card of a dataset of edited pictures: it says that only parts of them were made by a model."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from tandem.images import EDITED_SOURCE_TYPE
from tandem_workers.dataset.card import CardInfo, column_names, fill, made_values, shared_values
from tandem_workers.dataset.contact_sheet import open_small
from tandem_workers.dataset.shard_names import ShardNames
from tandem_workers.dataset.success_file import Totals

TITLE = "Pictures edited by Tandem"
OUTSIDE = {
    "paste": "Outside the mask every pixel is as it was.",
    "feather": "Outside the mask pixels are as they were, but for a seam in which both are mixed in linear light.",
    "none": "Outside the mask pixels are those of the VQVAE's decoder, which differ a little from the picture's.",
}
FITS = {
    "crop": "the largest square in the picture, as near to its middle as the mask allows",
    "pad": "the whole picture, with its border pixels repeated to a square",
    "resize": "the whole picture, stretched to a square",
}


@dataclass(frozen=True, kw_only=True)
class EditCard(CardInfo):
    """Contents of the card that do not come from the manifest.

    Attributes:
        source: the pictures, for people.
        fit, blend: see `tandem.editing.canvas`.
    """

    source: str
    fit: str
    blend: str

    def thumbnail(self, data: bytes) -> Image.Image:
        return open_small(data)

    def render(self, totals: Totals, shard_names: ShardNames, differences: str) -> str:
        others = [f"`{name}`" for name in self.carried.names if name not in self.row_settings]
        return fill(
            "edit_template.md",
            shared_values(self.fmt, totals, shard_names, TITLE, self.license) | made_values(self, differences),
            source=self.source,
            outside=OUTSIDE[self.blend],
            view=FITS[self.fit],
            columns=f"Columns: the image, {', '.join([*column_names(self), *others])}.",
            digital_source_type=EDITED_SOURCE_TYPE,
        )
