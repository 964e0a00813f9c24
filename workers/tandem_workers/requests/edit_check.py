"""Checks a form with a picture and turns it into what the models are asked for. Knows neither Ray nor torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from tandem.editing.canvas import Canvas, Fit
from tandem.editing.expand import expanded, parse_margins
from tandem.editing.masks import MIDDLE, Mask, Picture, bounds, boxes_mask, parse_boxes, read_mask, read_picture
from tandem.errors import InputError
from tandem_workers.pictures.edit_pictures import EditPicture
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.requests.api_errors import ApiError, as_api_error, combined, explained, wrong_value
from tandem_workers.requests.api_schema import About
from tandem_workers.requests.edit_schema import (
    FILES,
    FORMATS,
    MAX_PICTURE_PIXELS,
    EditBody,
    MaskedBody,
    edit_body_of,
    half,
    variation_body_of,
)
from tandem_workers.requests.form import Form
from tandem_workers.requests.lenient import lenient_of, parsed_size
from tandem_workers.requests.messages import Edit, ImageRequest
from tandem_workers.requests.notes import Note
from tandem_workers.requests.request_check import RequestCheck

MadeT = TypeVar("MadeT")
NO_MASK = "expected one (or box, expand, a picture with transparent parts, or keep_scales above 0), got none"


class EditCheck:
    """Checks edits, or variations.

    Args:
        about: the facts about the models.
        max_n: most images of a request.
        lenient: see `requests.lenient`.
        links: whether answers may be links.
        variations: whether the whole picture is made anew.
    """

    def __init__(self, about: About, max_n: int, lenient: bool, links: bool, variations: bool = False):
        self.about, self.lenient, self.links, self.variations = about, lenient, links, variations
        strict = variation_body_of(about, max_n) if variations else edit_body_of(about, max_n)
        self.model: type[EditBody] = lenient_of(strict, about) if lenient else strict
        self.files = {"image": FILES["image"]} if variations else FILES
        named = replace(about, class_names=about.class_names.with_none())
        self.requests = RequestCheck(named, lenient)

    def check(
        self, form: Form, streams: bool = False, deployment: str | None = None
    ) -> tuple[ImageRequest, EditBody, list[Note]]:
        """Convert the form; decodes the picture. Raises one ApiError with all that is wrong.

        Args:
            form: as it was sent.
            streams: whether the path always streams.
            deployment: the model that the path names.
        """
        values = {"stream": True, **form.values} if streams else form.values
        found, body = list(form.errors), None
        try:
            body = self.model.model_validate(values)
        except ValidationError as error:
            fields = self.model.model_fields
            found += [explained({**one, "loc": ("body", *one["loc"])}, fields) for one in error.errors()]
        if streams and values["stream"] is not True:
            found.append(wrong_value("stream", "true, as this path always streams", values["stream"]))
        known = {one.param for one in found}
        problems = self.requests.problems_of(values) if body is None else self.requests.problems(body.model_dump())
        found += [one for one in problems if one.param not in known]
        notes = list[Note]()
        for name in sorted(form.repeated):
            if self.lenient:
                notes.append(Note(param=name, message="the first file is taken, the others are left out"))
            else:
                found.append(ApiError(400, f"{name}: expected one file, got more", name, "invalid_value"))
        picture = tried(found, lambda: self.picture_of(form))
        edit = tried(found, partial(self.edit_of, form, picture, body, notes)) if picture else None
        if found:
            raise combined(found)
        assert body and edit
        size = self.size_of(body, edit, notes)
        body = self.with_images(body, notes)
        without_class = self.requests.about.class_names[-1]
        body = body.model_copy(update={"size": "auto", "prompt": body.prompt or without_class})
        request, more = self.requests.check(body, deployment, edit)
        return replace(request, size=size), body, [*more, *notes]

    def picture_of(self, form: Form) -> Picture:
        if "image" not in form.files:
            raise ApiError(400, "image: expected an image file, got none", "image", "missing_required_parameter")
        return read_picture(form.files["image"], "image", MAX_PICTURE_PIXELS, FORMATS)

    def mask_of(self, form: Form, picture: Picture, body: EditBody | None) -> Mask | None:
        """What is drawn anew of the picture, before it is expanded; None: nothing says what."""
        shape = picture.pixels.shape[:2]
        box, expand = (body.box, body.expand) if isinstance(body, MaskedBody) else (None, None)
        if "mask" in form.files and box is not None:
            raise wrong_value("box", "either it or mask", box)
        if "mask" in form.files:
            return read_mask(form.files["mask"], "mask", shape, MAX_PICTURE_PIXELS, FORMATS)
        if box is not None:
            return boxes_mask(parse_boxes(box), shape)
        if expand is not None:
            return np.zeros(shape, bool)
        if not self.variations and picture.alpha is not None and (picture.alpha < MIDDLE).any():
            return picture.alpha < MIDDLE
        return None

    def edit_of(self, form: Form, picture: Picture, body: EditBody | None, notes: list[Note]) -> Edit | None:
        """What the models begin with; None if the fields are wrong. Raises what is wrong with the mask either way."""
        mask = self.mask_of(form, picture, body)
        if body is None:
            return None
        keep = body.keep_scales or (half(self.about) if self.variations else 0)
        if mask is None and not keep:
            if not self.lenient:
                raise ApiError(400, f"mask: {NO_MASK}", "mask", "missing_required_parameter")
            keep = half(self.about)
            notes.append(Note(param="mask", message=f"there is none: all is made anew, with keep_scales {keep}"))
        if mask is None:
            mask = np.ones(picture.pixels.shape[:2], bool)
        if isinstance(body, MaskedBody) and body.expand is not None:
            picture, mask = expanded(picture, mask, parse_margins(body.expand), "expand", MAX_PICTURE_PIXELS)
        height, width = mask.shape
        if (body.n or 1) * height * width > MAX_PICTURE_PIXELS:
            expected = f"at most {MAX_PICTURE_PIXELS} pixels in all images of a request"
            raise ApiError(400, f"n: expected {expected}, got {body.n} x {width} x {height}", "n", "invalid_value")
        fit, blend = body.fit or enough(mask), body.blend or "feather"
        canvas = Canvas.of(fit, mask, self.about.image_size, MAX_PICTURE_PIXELS)
        found = EditPicture("image", picture, mask, canvas, hashlib.sha256(form.files["image"]).hexdigest())
        if body.size not in (None, "auto", f"{width}x{height}") and not self.lenient:
            raise wrong_value("size", f"auto or the picture's own, {width}x{height}", body.size)
        if body.response_format == "url" and not (self.links or self.lenient):
            raise wrong_value("response_format", "b64_json: links to edits need tandem serve --store", "url")
        return Edit.of(found, fit, PutBack(blend, body.feather), keep)

    def size_of(self, body: EditBody, edit: Edit, notes: list[Note]) -> tuple[int, int] | None:
        """Width and height that files are brought to; None: the picture's."""
        size = parsed_size(body.size or "auto")
        if size in (None, edit.size):
            return None
        notes.append(Note(param="size", message=f"made at {edit.size[0]}x{edit.size[1]}, and resized"))
        return size

    def with_images(self, body: EditBody, notes: list[Note]) -> EditBody:
        """The body without a wish for links that cannot be answered."""
        if body.response_format != "url" or self.links:
            return body
        notes.append(Note(param="response_format", message="b64_json: links to edits need an object store"))
        return body.model_copy(update={"response_format": "b64_json"})


def enough(mask: Mask) -> Fit:
    """The closest view of a picture that has all of what is drawn anew."""
    left, top, right, bottom = bounds(mask) or (0, 0, 0, 0)
    if max(right - left, bottom - top) <= min(mask.shape):
        return "crop"
    return "pad" if max(mask.shape) ** 2 <= MAX_PICTURE_PIXELS else "resize"


def tried(found: list[ApiError], make: Callable[[], MadeT]) -> MadeT | None:
    """What `make` makes; None if it fails, which `found` then has."""
    try:
        return make()
    except (InputError, ApiError) as error:
        found.append(as_api_error(error))
        return None
