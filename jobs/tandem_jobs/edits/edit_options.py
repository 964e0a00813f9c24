"""Options of edits: which pictures, what of them is drawn anew and as what, and how it is put back."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, NonNegativeFloat, model_validator

from tandem.editing.canvas import Blend, Fit
from tandem.editing.expand import parse_margins
from tandem.editing.masks import parse_boxes
from tandem.errors import InputError
from tandem_jobs.options.flags import COMMAS, POSITIONAL
from tandem_jobs.options.options import Images
from tandem_jobs.options.spec import Spec

SHARED_HELP = """\
PICTURES: an image file, a folder of them, class folders of images, .tar files (webdataset), .parquet files with a
column of images, an .npz file or a dataset of Tandem; local or s3://. They are numbered in order, from 0 on.

What is drawn anew: --mask, one image for all pictures; --masks, one for each; --box; a column 'box' of --labels. A mask
with an alpha channel means "draw anew" where it is transparent, one without where it is white. A latent cell is drawn
anew if any pixel of it is masked. Pictures whose mask is empty come back as they are.

As what: a class redraws; 'none' fills the hole without a class; 'own' takes the class of the picture's folder. Several
classes give an image of each, with the same surroundings: a counterfactual set.

Of --labels each row is an edit: a column 'picture' (number, or path below PICTURES), 'label' or 'class_name' (also
'none'), and optionally 'box', 'count' and what 'tandem generate' takes in a label file."""


class PictureOptions(Spec):
    """Which pictures are edited, and what of them is drawn anew."""

    pictures: Annotated[str, POSITIONAL] = Field(description="what is edited; see below")
    mask: str | None = Field(None, description="mask of all pictures: an image of their size")
    masks: str | None = Field(
        None,
        description="masks of the pictures: a folder with the same paths, or another place with as many in the same "
        "order",
    )
    box: str | None = Field(
        None,
        description="box that is drawn anew in all pictures: x0,y0,x1,y1, shares of the picture if none exceeds 1, "
        "else pixels; several are separated by ';'",
    )
    expand: str | None = Field(
        None,
        description="out-painting: margins that are drawn anew, LEFT,TOP,RIGHT,BOTTOM, shares of the picture if none "
        "exceeds 1, else pixels",
    )
    fit: Fit | None = Field(
        None,
        description="how the model's square lies in a picture: crop, the largest square in it, moved to the mask; pad, "
        "all of it, with borders repeated to a square; resize, all of it, stretched; default: crop, with --expand pad",
    )
    nearest: bool = Field(
        False,
        description="a latent cell is drawn anew if its upper left pixel is masked, as the published code has it; "
        "loses narrow strokes",
    )

    @property
    def chosen_fit(self) -> Fit:
        return self.fit or ("pad" if self.expand else "crop")

    @model_validator(mode="after")
    def check_masks(self) -> Self:
        given = [name for name in ("mask", "masks", "box") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"expected one of --mask, --masks and --box, got {' and '.join(f'--{n}' for n in given)}")
        try:
            _ = self.box is None or parse_boxes(self.box)
            _ = self.expand is None or parse_margins(self.expand)
        except InputError as error:
            raise ValueError(f"--{error}") from None
        return self


class MovedOptions(Spec):
    """Where the pictures of edits are now, if no longer where the job found them."""

    pictures: str | None = Field(None, description="the same pictures, in the same order")
    mask: str | None = Field(None, description="the same mask of all pictures")
    masks: str | None = Field(None, description="the same masks")

    @property
    def moved(self) -> dict[str, str]:
        """The places that are given, by name."""
        places = {name: getattr(self, name) for name in MovedOptions.__annotations__}
        return {name: place for name, place in places.items() if place is not None}


class EditOptions(PictureOptions):
    """What becomes of each picture."""

    needs: ClassVar = {
        "--label or --labels": ("label", "labels"),
        "--mask, --masks, --box, --expand or --labels": ("mask", "masks", "box", "expand", "labels"),
    }

    label: Annotated[str | None, COMMAS] = Field(
        None,
        description="classes, as --classes of tandem generate; 'none': without a class; 'own': each picture's own",
    )
    n: Images = Field(1, description="images of each picture and class")
    labels: str | None = Field(
        None, description="file of edits (.parquet, .csv, .jsonl; local or s3://) instead of --label; see below"
    )

    @model_validator(mode="after")
    def check_edits(self) -> Self:
        if self.label is not None and self.labels is not None:
            raise ValueError("expected --label or --labels, got both")
        if self.labels is not None and self.n != 1:
            raise ValueError("expected no --n with --labels, whose column 'count' says how many images a row makes")
        return self


class BlendOptions(Spec):
    """How what was drawn is put back into a picture."""

    blend: Blend | None = Field(
        None,
        description="paste: pixels outside the mask stay; feather: those beyond a seam that fades in linear light; "
        "none: all of the square as the VQVAE decodes it; default: feather",
    )
    feather: NonNegativeFloat | None = Field(
        None, description="pixels of that seam; default: 1/32 of the square's shorter side"
    )

    @property
    def chosen_blend(self) -> Blend:
        return self.blend or "feather"

    @model_validator(mode="after")
    def check_blend(self) -> Self:
        if self.feather is not None and self.chosen_blend != "feather":
            raise ValueError(f"expected --blend feather with --feather, got {self.blend}")
        return self
