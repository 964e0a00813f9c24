"""Requests as clients of other image servers send them, turned into requests of this API: `tandem serve --lenient`.

What is changed becomes a `Note` of the answer. What has no meaning here is left out; what looks like a misspelt field
of this API stays, and is refused. Knows neither Ray nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, cast, get_args

from pydantic import AfterValidator, Field, PrivateAttr, create_model, model_validator

from tandem.class_names import NUM_LISTED, ClassNames
from tandem.errors import LabelError
from tandem.images import EXTENSIONS
from tandem_workers.requests.api_errors import MAX_SHOWN, ApiError, cut, shown
from tandem_workers.requests.api_schema import MAX_SEED, About, ImageBody, body_of, whole
from tandem_workers.requests.edit_schema import MAX_PICTURE_PIXELS
from tandem_workers.requests.foreign import RENAMED, WITHOUT_EFFECT, misspelt
from tandem_workers.requests.nearest_class import ENOUGH, Match, NearestClass
from tandem_workers.requests.notes import Note

BodyT = TypeVar("BodyT", bound=ImageBody)
MAX_SIDE = 2048  # pixels of an image
MAX_PROMPT = 32_000  # characters, as in the OpenAI API
MAX_NOTES = 24  # more are counted only
NUM_OTHERS = 3  # classes that are named beside the one that was found
LINKS_BY_DEFAULT = "dall-e"  # the OpenAI API answers models of this name with links unless told otherwise
NO_EFFECT = ("quality", "style", "background", "moderation")
CODECS: dict[str, str] = {extension: codec for codec, extension in EXTENSIONS.items()}
FORMATS = {"base64": "b64_json", "b64": "b64_json"}
PURPOSE = (
    "An image request. Fields and values of other image servers are taken too: those with a meaning here are "
    "translated, others left out, and `tandem.lenient` of the answer says which."
)


class LenientBody(ImageBody):
    """A request after it was translated."""

    _notes: list[Note] = PrivateAttr(default_factory=list)


def lenient_body_of(about: About, max_n: int, streams: bool = False) -> type[ImageBody]:
    """The request model of a lenient server. `streams`: of the path that always streams."""
    return lenient_of(body_of(about, max_n), about, streams)


def lenient_of(strict: type[BodyT], about: About, streams: bool = False) -> type[BodyT]:
    """The request model of a lenient server, made of a strict one."""

    def translated(cls: type[LenientBody], values: Any, handler: Callable[[Any], LenientBody]) -> LenientBody:
        if not isinstance(values, dict):
            return handler(values)
        found = translate({"stream": True, **values} if streams else values, about, strict.model_fields)
        body = handler(found.values)
        body._notes = found.notes
        return body

    size = f"pixels, WIDTHxHEIGHT of at most {MAX_SIDE}; images are made at {about.size} and resized"
    fields: dict[str, Any] = {
        "prompt": (
            strict.model_fields["prompt"].annotation,
            Field(
                strict.model_fields["prompt"].get_default(),
                min_length=1,
                max_length=MAX_PROMPT,
                description="words that name or describe a class",
            ),
        ),
        "size": (Annotated[str, AfterValidator(checked_size)] | None, Field("auto", description=size)),
    }
    made: Any = create_model(
        strict.__name__,
        __base__=(strict, LenientBody),  # the limits of the first go before
        __doc__=PURPOSE,
        __validators__={"translated": cast("Any", model_validator(mode="wrap")(cast("Any", classmethod(translated))))},
        **fields,
    )
    return cast("type[BodyT]", made)


def notes_of(body: ImageBody) -> list[Note]:
    """What was changed in a request."""
    return body._notes if isinstance(body, LenientBody) else []


@dataclass
class Translation:
    """A request in the fields of this API, and what was changed for it."""

    values: dict[str, Any]
    notes: list[Note] = field(default_factory=list)
    more: int = 0

    def note(self, param: str, message: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes.append(Note(param=cut(param), message=message))
        else:
            self.more += 1

    def drop(self, name: str, why: str) -> None:
        del self.values[name]
        self.note(name, f"ignored: {why}")

    def change(self, name: str, value: Any, why: str) -> None:
        self.values[name] = value
        self.note(name, why)


def translate(values: Mapping[str, Any], about: About, ours: Collection[str] = ImageBody.model_fields) -> Translation:
    """The request in the fields of this API, `ours`. Values that have no meaning here either way are left to be
    refused."""
    done = Translation({name: value for name, value in values.items() if value is not None})
    lift_extra_body(done)
    translate_names(done, ours)
    translate_size(done)
    translate_values(done, about)
    if done.more:
        done.notes.append(Note(param="", message=f"and {done.more} more fields were ignored"))
    return done


def lift_extra_body(done: Translation) -> None:
    """`extra_body` of the OpenAI client, sent as a field by those who write JSON themselves."""
    if isinstance(extra := done.values.get("extra_body"), dict):
        done.values = {name: value for name, value in extra.items() if value is not None} | done.values
        del done.values["extra_body"]
        done.note("extra_body", "its fields were taken as if they were at the top")


def translate_names(done: Translation, known: Collection[str]) -> None:
    for name, value in list(done.values.items()):
        if name in known or name in ("width", "height"):
            continue
        if name == "image_base64" and not isinstance(value, bool):
            done.drop(name, "it is not known here")
        elif ours := RENAMED.get(name):
            if ours in done.values:
                done.drop(name, f"`{ours}` is given")
                continue
            del done.values[name]
            done.change(ours, asked_format(value) if name == "image_base64" else value, f"taken from `{name}`")
        elif name in WITHOUT_EFFECT:
            done.drop(name, WITHOUT_EFFECT[name])
        elif len(done.notes) == MAX_NOTES or not misspelt(name, known):  # comparing names takes time
            done.drop(name, "it is not known here")


def asked_format(as_base64: bool) -> str:
    return "b64_json" if as_base64 else "url"


def translate_size(done: Translation) -> None:
    """`width` and `height` become `size`; one of them alone means a square."""
    given = {name: whole(done.values[name]) for name in ("width", "height") if name in done.values}
    if not given or not all(type(value) is int for value in given.values()):
        return
    if "size" in done.values:
        for name in given:
            done.drop(name, "`size` is given")
        return
    for name in given:
        del done.values[name]
    either = next(iter(given.values()))
    done.values["size"] = f"{given.get('width', either)}x{given.get('height', either)}"


def translate_values(done: Translation, about: About) -> None:
    values = done.values
    model = values.pop("model", None)
    done.notes += model_notes(model, about)
    if "response_format" not in values and not values.get("stream") and str(model).startswith(LINKS_BY_DEFAULT):
        done.change("response_format", "url", f"url, the default of {LINKS_BY_DEFAULT} models")
    seed = values.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool):
        if seed < 0:
            done.drop("seed", f"{shown(seed)} means a random one")
        elif seed > MAX_SEED:
            done.change("seed", seed % (MAX_SEED + 1), f"{shown(seed)} modulo 2^53")
    for name in NO_EFFECT:
        if name in values and values[name] not in literals(name):
            done.drop(name, f"{shown(values[name])} is not known here, and it has no effect")
    for name, others in (("output_format", CODECS), ("response_format", FORMATS)):
        value = values.get(name)
        if isinstance(value, str) and (ours := others.get(value.lower(), value.lower())) != value:
            done.change(name, ours, f"taken for {cut(ours)}")
    partial, most = values.get("partial_images"), about.num_scales - 1
    if isinstance(partial, int) and partial > most:
        done.change("partial_images", most, f"at most {most} here, not {shown(partial)}")


def literals(name: str) -> tuple[Any, ...]:
    """The values that a field of ImageBody may have."""
    return tuple(value for part in get_args(ImageBody.model_fields[name].annotation) for value in get_args(part))


def parsed_size(text: str) -> tuple[int, int] | None:
    """Width and height in pixels; None for "auto". Raises ValueError for other text, and sides out of bounds."""
    if text == "auto":
        return None
    found = re.fullmatch(r"([0-9]{1,5}) ?[xX*×] ?([0-9]{1,5})", text)
    if found is None or not all(1 <= int(side) <= MAX_SIDE for side in found.groups()):
        raise ValueError(f"expected auto or WIDTHxHEIGHT, each from 1 to {MAX_SIDE}")
    return int(found[1]), int(found[2])


def checked_size(text: str) -> str:
    parsed_size(text)
    return text


def too_large(size: Any, n: Any) -> ApiError | None:
    """The error of a request whose images have too many pixels together; other wrong values are refused elsewhere."""
    if not isinstance(size, str) or not isinstance(n or 1, int):
        return None
    try:
        sides = parsed_size(size)
    except ValueError:
        return None
    if sides is None or (n or 1) * sides[0] * sides[1] <= MAX_PICTURE_PIXELS:
        return None
    expected = f"at most {MAX_PICTURE_PIXELS} pixels in all images of a request"
    return ApiError(400, f"size: expected {expected}, got {n or 1} x {sides[0]} x {sides[1]}", "size", "invalid_value")


def model_notes(model: Any, about: About) -> list[Note]:
    """What to say of a model that was asked for by another name."""
    if model in (None, about.model_id):
        return []
    return [Note(param="model", message=f"this server has {about.model_id}, not {shown(model)}")]


def size_note(size: tuple[int, int], about: About) -> Note:
    width, height = size
    how = "resized" if width == height else "resized to cover it, and cropped at the centre"
    return Note(param="size", message=f"made at {about.size}, {how}")


def nearest(prompt: str, classes: ClassNames, index: NearestClass) -> tuple[int, Note | None]:
    """The label that a prompt names or comes near to, and what to say of it. ApiError with suggestions if none does.

    What follows a `|` is LocalAI's negative prompt.
    """
    try:
        return classes.find(prompt), None
    except LabelError:
        found = index.search(prompt.partition("|")[0])
    if not found or found[0].score < ENOUGH:
        likely = [match.name for match in found[:NUM_OTHERS]] or classes.usual_names[:NUM_LISTED]
        expected = f"expected words that name a class, got {shown(prompt)} (the nearest are {', '.join(likely)}"
        raise ApiError(400, f"prompt: {expected}; GET /v1/classes lists them all)", "prompt", "class_not_found")
    best, others = found[0], [match for match in found[1:] if match.score >= ENOUGH][:NUM_OTHERS]
    message = f"{shown(prompt[:MAX_SHOWN])} was taken for class {classes.describe(best.label)}, by {described(best)}"
    if others:
        message += f"; next: {', '.join(map(described, others))}"
    return best.label, Note(param="prompt", message=message, score=round(best.score, 2))


def described(match: Match) -> str:
    return f"{match.name!r} ({match.score:.2f})"
