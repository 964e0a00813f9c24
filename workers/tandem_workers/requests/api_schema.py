"""Requests and responses of the HTTP API: those of the OpenAI images API, plus fields for the settings of CoDe.

Fields are declared here; `endpoint.gateway` reads the requests and fills the responses.
Source: the OpenAI API reference, "Images", and the types of its Python client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model, model_validator

from tandem.checkpoints.fine_tuning import FineTuned
from tandem.class_names import ClassNames
from tandem.config import CONSTANT, LINEAR, MIN_TEMPERATURE, SCHEDULES, SamplingConfig
from tandem.editing.canvas import Blend, Fit
from tandem.images import LOSSY, Codec
from tandem_workers.requests.notes import Note

MAX_SEED = 2**53 - 1  # the largest integer that every JSON client holds exactly
MAX_PROMPT, MAX_CFG = 200, 20
PROMPT = "name, synonym, WordNet id or number of a class"
LABEL = "number of the class, whatever the prompt says"
PURPOSE = "An image request. Fields of the OpenAI API that do not apply here are accepted and have no effect."
IMAGES = "/v1/images/generations"  # the path of the OpenAI API
IMAGE_STREAM = f"{IMAGES}/stream"
STREAMED = f"true: the answer is text/event-stream, as `POST {IMAGE_STREAM}` describes it"

Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=10, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=MAX_CFG, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True)
class About:
    """The facts about the models that the API needs."""

    model_id: str
    image_size: int
    patch_nums: tuple[int, ...]
    vocab_size: int
    class_names: ClassNames
    draft_steps: int  # the default N
    sampling: SamplingConfig
    created: int
    sha256: dict[str, str]
    fine_tuned: Mapping[str, FineTuned] = field(default_factory=dict)

    @property
    def num_scales(self) -> int:
        return len(self.patch_nums)

    @property
    def size(self) -> str:
        """The size in the API's format: 64x64."""
        return f"{self.image_size}x{self.image_size}"

    @property
    def num_tokens(self) -> int:
        return sum(n * n for n in self.patch_nums)


class ImageBody(BaseModel):
    """An image request. Fields without limits here get the limits of the models from `body_of`."""

    # strict, as in the OpenAI API: "3" is not a number and 1 is not a boolean
    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    model: str | None = Field(None, max_length=MAX_PROMPT, description="id of the model; default: the one there is")
    n: int | None = 1
    size: str | None = "auto"
    response_format: Literal["b64_json", "url"] | None = Field(
        "b64_json", description="url: stored in the server's object store, answered with a link that expires"
    )
    output_format: Codec | None = "png"
    output_compression: int | None = Field(92, ge=0, le=100, description=f"quality of {LOSSY}")
    # declared as false: what a document declares for one path and status has to be of one type for generated clients
    stream: Annotated[bool, WithJsonSchema({"type": "boolean", "const": False})] | None = Field(
        False, description=STREAMED
    )
    partial_images: int | None = None
    label: int | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="the same seed gives the same image; default: random")
    draft_steps: int | None = None
    cfg: Strength | None = Field(None, description="strength of guidance, as cfg_schedule has it")
    cfg_schedule: str | None = None
    refiner_cfg: Strength | None = Field(None, description="cfg of the scales that the refiner makes")
    top_k: int | None = None
    top_p: Share | None = Field(None, description="keep codes up to this probability")
    temperatures: list[Temperature] | None = None
    deterministic: bool | None = Field(
        False, description="decode this request alone, at one fixed shape: the same bytes at any load"
    )
    preview_scales: list[int] | None = None
    # accepted without effect
    user: str | None = None
    safety_identifier: str | None = None
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = "auto"
    style: Literal["vivid", "natural"] | None = None
    background: Literal["opaque", "auto"] | None = "auto"
    moderation: Literal["low", "auto"] | None = "auto"

    @model_validator(mode="before")
    @classmethod
    def whole_numbers(cls, values: Any) -> Any:
        """1.0 is an integer, for JSON Schema and for clients whose language has one type of number."""
        if not isinstance(values, dict):
            return values
        return {name: whole(value) if name in WHOLE else value for name, value in values.items()}


OF_IMAGES = ("n", "label", "output_compression", "partial_images", "seed", "draft_steps", "top_k", "preview_scales")
WHOLE = frozenset((*OF_IMAGES, "keep_scales"))


def whole(value: Any) -> Any:
    if isinstance(value, list):
        return [item if isinstance(item, list) else whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def schedule_pattern(num_scales: int) -> str:
    """Of a schedule of guidance: a name, or a strength up to `MAX_CFG` for each scale."""
    strength = rf"({MAX_CFG}(\.0)?|1?[0-9](\.[0-9]{{1,17}})?)"
    last = "|".join(map(str, range(1, num_scales + 1)))
    return rf"^({LINEAR}|{CONSTANT}|off-after:({last})|{strength}(,{strength}){{{num_scales - 1}}})$"


def body_of(about: About, max_n: int) -> type[ImageBody]:
    """The request model with the limits of this server in its schema."""
    last = about.num_scales
    longest = max(MAX_PROMPT, *map(len, about.class_names))
    scale = Annotated[int, Field(ge=1, le=last - 1)]
    fields: dict[str, Any] = {
        "n": (int | None, Field(1, ge=1, le=max_n, description="images of this class")),
        "prompt": (str, Field(min_length=1, max_length=longest, description=PROMPT, examples=["face", "3"])),
        "label": (int | None, Field(None, ge=0, le=len(about.class_names) - 1, description=LABEL)),
        "size": (Literal["auto", about.size] | None, Field("auto", description="there is one size")),
        "draft_steps": (
            int | None,
            Field(
                None,
                ge=0,
                le=last,
                description=f"N: scales made by the drafter; 0 is the refiner alone, {last} the drafter alone",
            ),
        ),
        "partial_images": (
            int | None,
            Field(None, ge=0, le=last - 1, description="number of previews, evenly over the scales; default: 3"),
        ),
        "preview_scales": (
            list[scale] | None,
            Field(None, max_length=last - 1, description="scales after which a preview is sent; with stream"),
        ),
        "cfg_schedule": (
            str | None,
            Field(None, pattern=schedule_pattern(last), description=f"guidance at each scale: {SCHEDULES}"),
        ),
        "top_k": (int | None, Field(None, ge=0, le=about.vocab_size, description="keep the k likeliest codes; 0: all")),
        "temperatures": (
            list[Temperature] | None,
            Field(None, min_length=1, max_length=last, description="one a scale, the last repeats"),
        ),
    }
    return create_model(
        "ImageGenerationRequest",
        __base__=ImageBody,
        __doc__=PURPOSE,
        **fields,
    )


def sampling_fields(sampling: SamplingConfig) -> dict[str, Any]:
    """Sampling as requests and answers have it."""
    return asdict(sampling) | {"temperatures": list(sampling.temperatures)}


def require_sent(schema: dict[str, Any]) -> None:
    """Declare as required what is always sent: all but fields whose default is None, which may be absent."""
    fields = schema["properties"]
    schema["required"] = [name for name, declared in fields.items() if declared.get("default", ...) is not None]
    for name in fields.keys() - set(schema["required"]):
        del fields[name]["default"]


class Sent(BaseModel):
    """Base of what the server sends."""

    model_config = ConfigDict(json_schema_extra=require_sent)


class InputTokens(Sent):
    text_tokens: int
    image_tokens: int


class Usage(Sent):
    """Token ids: one of the class, and those of all scales of all images."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokens


class EditSettings(Sent):
    """What an edit did with its picture."""

    picture_sha256: str
    mask_sha256: str
    edited_share: float = Field(description="of the pixels: drawn anew")
    fit: Fit
    blend: Blend
    keep_scales: int
    message: str | None = None


class Settings(Sent):
    """How an image was made: the same values make it again."""

    model: str
    label: int
    class_name: str
    seed: int
    draft_steps: int
    cfg: float | None = Field(None, description="absent where cfg_schedule has a strength for each scale")
    cfg_schedule: str
    refiner_cfg: float | None = None
    top_k: int
    top_p: float
    temperatures: list[float]
    deterministic: bool
    edit: EditSettings | None = Field(None, description="of an edit: what was done with the picture")
    seconds: dict[str, float] = Field(description="of each stage; wait: for a full batch, for replicas and in transit")
    lenient: list[Note] | None = Field(None, description="with --lenient: what was changed in the request")


class ImageData(Sent):
    b64_json: str | None = None
    url: str | None = None


class ImagesResponse(Sent):
    created: int
    data: list[ImageData]
    output_format: Codec
    size: str
    background: Literal["opaque"] = "opaque"
    usage: Usage
    tandem: Settings


class Defaults(Sent):
    draft_steps: int
    cfg: float
    cfg_schedule: str
    refiner_cfg: float | None = None
    top_k: int
    top_p: float
    temperatures: list[float]


class Model(Sent):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["tandem"] = "tandem"
    image_size: int
    num_scales: int
    patch_nums: list[int]
    num_classes: int
    defaults: Defaults
    max_n: int
    batch: int
    output_formats: list[Codec]
    stores_urls: bool
    sha256: dict[str, str]
    fine_tuned: dict[str, FineTuned] = Field(description="by role: the N and the guidance that it was trained for")


class ModelList(Sent):
    object: Literal["list"] = "list"
    data: list[Model]


class ClassName(Sent):
    id: int
    object: Literal["class"] = "class"
    name: str
    synonyms: list[str] = Field(description="other names of the class")
    wnid: str | None = Field(None, description="WordNet id, where it is known")


class ClassList(Sent):
    object: Literal["list"] = "list"
    data: list[ClassName]
    total: int


class Health(Sent):
    status: Literal["ok"] = "ok"


class ErrorDetail(Sent):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Sent):
    """The body of every error."""

    error: ErrorDetail
