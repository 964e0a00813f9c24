"""Requests for edits and variations of a picture, as `api_schema` has those for images: forms with files in them.

Source: the OpenAI API reference, "Images", edits and variations, and the types of its Python client.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field, create_model

from tandem.editing.canvas import Blend, Fit
from tandem_workers.requests.api_schema import MAX_PROMPT, About, ImageBody, body_of

EDITS = "/v1/images/edits"  # paths of the OpenAI API
VARIATIONS = "/v1/images/variations"
EDIT_STREAM = f"{EDITS}/stream"
MAX_EDIT_BYTES = 25 << 20  # of a form with its files
MAX_PICTURE_PIXELS = 16 << 20  # of a picture, and of all images of a request
MAX_BOXES = 1000  # characters
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # of files, by their names in Pillow
EDIT_PURPOSE = "A picture with parts that are drawn anew, as images of a class."
VARIATION_PURPOSE = "A picture whose coarse scales are kept, and whose fine ones are drawn anew."
FILES = {
    "image": "the picture, an image file; every size is taken",
    "mask": "what is drawn anew: the transparent parts of an image file of the picture's size, or its white ones if it "
    "has no transparency. Without one, the picture's own transparent parts, or all of it with keep_scales",
}

SIZE = (
    str | None,
    Field("auto", pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$", description="there is one: the picture's"),
)
Pixels = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]


class EditBody(ImageBody):
    """The fields of a form that are not files."""

    fit: Fit | None = Field(
        None,
        description="how the model's square lies in the picture: crop, the largest square around what is drawn anew; "
        "pad, all of the picture; resize, the picture stretched to a square; default: crop where it suffices, else pad",
    )
    blend: Blend | None = Field(
        "feather",
        description="paste: pixels outside the mask stay exactly; feather: they fade into it; none: the whole square "
        "is as the model made it",
    )
    feather: Pixels | None = Field(None, description="pixels over which they fade; default: 1/32 of the square")
    keep_scales: int | None = None
    input_fidelity: Literal["low", "high"] | None = None  # accepted without effect


class MaskedBody(EditBody):
    """The fields of an edit, which has a mask."""

    box: str | None = Field(
        None,
        max_length=MAX_BOXES,
        description="drawn anew in place of a mask: x0,y0,x1,y1 in pixels, or in shares if none is above 1; several "
        "separated by ;",
    )
    expand: str | None = Field(
        None, max_length=MAX_PROMPT, description="margins to paint around the picture: left,top,right,bottom, likewise"
    )


def edit_body_of(about: About, max_n: int) -> type[MaskedBody]:
    """The request model of an edit with the limits of this server."""
    prompt = named(about, ..., "name, synonym, WordNet id or number of a class; none: filled without a class")
    fields: dict[str, Any] = {"prompt": (str, prompt), "size": SIZE, "keep_scales": (int | None, kept(about, 0))}
    base: Any = (body_of(about, max_n), MaskedBody)
    return cast("type[MaskedBody]", create_model("ImageEditRequest", __base__=base, __doc__=EDIT_PURPOSE, **fields))


def variation_body_of(about: About, max_n: int) -> type[EditBody]:
    """The request model of a variation, which needs no class."""
    prompt = named(about, None, "class of the fine scales, named as in an edit; default: none")
    fields: dict[str, Any] = {"prompt": (str | None, prompt), "size": SIZE}
    fields["keep_scales"] = (int | None, kept(about, half(about), 1))
    base: Any = (body_of(about, max_n), EditBody)
    return cast(
        "type[EditBody]", create_model("ImageVariationRequest", __base__=base, __doc__=VARIATION_PURPOSE, **fields)
    )


def half(about: About) -> int:
    """The scales of a picture that a variation keeps."""
    return about.num_scales // 2


def kept(about: About, default: int, least: int = 0) -> Any:
    """The declaration of `keep_scales`."""
    description = f"coarse scales that stay the picture's where it is drawn anew, {least} to {about.num_scales - 1}"
    return Field(default, ge=least, le=about.num_scales - 1, description=description)


def named(about: About, default: Any, description: str) -> Any:
    """The declaration of `prompt`."""
    longest = max(MAX_PROMPT, *map(len, about.class_names))
    return Field(default, min_length=1, max_length=longest, description=description, examples=["face", "none"])
