"""Requests and events of streams, as `api_schema` has them for answers in one piece.

Source: the OpenAI API reference, "Images", streaming, and the types of its Python client.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, WithJsonSchema, create_model

from tandem.images import Codec
from tandem_workers.requests.api_schema import PURPOSE, ErrorBody, ImageBody, Sent, Settings, Usage


def only_true(value: bool) -> bool:
    if not value:
        raise ValueError("expected true, as this path always streams")
    return value


def stream_body_of(image_body: type[ImageBody]) -> type[ImageBody]:
    """The request model of the path that always streams, made of the other's."""
    true = Annotated[bool, AfterValidator(only_true), WithJsonSchema({"type": "boolean", "const": True})]
    stream: Any = (true | None, Field(True, description="always true here"))
    return create_model("ImageStreamRequest", __base__=image_body, __doc__=PURPOSE, stream=stream)


class ImageEvent(Sent):
    """What both kinds of events with an image have. `type` tells them apart."""

    type: str
    created_at: int
    size: str
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: Codec
    image_index: int


class PartialImageEvent(ImageEvent):
    """A preview decoded from the first `scale` scales."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    b64_json: str
    partial_image_index: int
    scale: int
    num_scales: int
    made_by: str


class CompletedEvent(ImageEvent):
    """A finished image; there is one event for each of the n images."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    b64_json: str | None = None
    url: str | None = None
    usage: Usage
    tandem: Settings


class ErrorEvent(ErrorBody):
    """The end of a stream that failed."""

    type: Literal["error"] = "error"


class PartialEditEvent(PartialImageEvent):
    """A preview of an edit."""

    type: Literal["image_edit.partial_image"] = "image_edit.partial_image"  # type: ignore[assignment]


class CompletedEditEvent(CompletedEvent):
    """A finished edit."""

    type: Literal["image_edit.completed"] = "image_edit.completed"  # type: ignore[assignment]


ImageStreamEvent = Annotated[PartialImageEvent | CompletedEvent | ErrorEvent, Discriminator("type")]
EditStreamEvent = Annotated[PartialEditEvent | CompletedEditEvent | ErrorEvent, Discriminator("type")]
