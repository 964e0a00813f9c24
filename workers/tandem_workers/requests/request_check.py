"""Checks a request and turns it into what the models are asked for. Knows neither Ray nor torch."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tandem.class_names import NUM_LISTED, ClassNames
from tandem.config import SamplingConfig, numbers
from tandem.errors import InputError, LabelError
from tandem_workers.dataset.row_settings import SAMPLING_SETTINGS
from tandem_workers.requests.api_errors import ApiError, combined, wrong_value
from tandem_workers.requests.api_schema import MAX_CFG, MAX_SEED, About, ImageBody, body_of, sampling_fields
from tandem_workers.requests.lenient import model_notes, nearest, notes_of, parsed_size, size_note, too_large, translate
from tandem_workers.requests.messages import Edit, ImageRequest
from tandem_workers.requests.nearest_class import NearestClass
from tandem_workers.requests.notes import Note

DEFAULT_PREVIEWS = 3  # the OpenAI API's maximum


@dataclass(frozen=True)
class Asked:
    """A checked request, and what its answer has to say.

    Attributes:
        link_base: address that links to its images begin with; None: images are answered as base64.
        notes: what a lenient server changed in it.
    """

    request: ImageRequest
    link_base: str | None = None
    notes: tuple[Note, ...] = ()


class RequestCheck:
    """Checks requests against the facts about the models; `lenient`: see `requests.lenient`."""

    def __init__(self, about: About, lenient: bool = False):
        self.about = about
        self.nearest_class = NearestClass(about.class_names) if lenient else None

    def check(
        self, body: ImageBody, deployment: str | None = None, edit: Edit | None = None
    ) -> tuple[ImageRequest, list[Note]]:
        """Convert the request; `deployment` is the model that its path names, `edit` what it begins with. Raises
        ApiError with all errors that the schema cannot express."""
        if deployment not in (None, self.about.model_id) and not self.nearest_class:
            raise wrong_value("model", repr(self.about.model_id), deployment, "model_not_found", status=404)
        if found := self.problems(body.model_dump()):
            raise combined(found)
        notes, label, size = list(notes_of(body)), body.label, self.size(body.size)
        if label is None:
            label, note = self.class_of(body.prompt)
            notes += [note] if note else []
        notes += [size_note(size, self.about)] if size else []
        if deployment is not None and not any(note.param == "model" for note in notes):
            notes += model_notes(deployment, self.about)
        quality = 92 if body.output_compression is None else body.output_compression
        request = ImageRequest(
            label=label,
            seed=random.randint(0, MAX_SEED) if body.seed is None else body.seed,
            n=body.n or 1,
            draft_steps=self.about.draft_steps if body.draft_steps is None else body.draft_steps,
            sampling=self.sampling(body),
            codec=body.output_format or "png",
            quality=max(1, quality),  # to encoders 0 is 1
            deterministic=bool(body.deterministic),
            preview_scales=preview_scales(body, self.about.num_scales, edit) if body.stream else frozenset(),
            size=size,
            edit=edit,
        )
        return request, notes

    def class_of(self, prompt: str) -> tuple[int, Note | None]:
        """The label that a prompt means, and what a lenient server has to say of it. ApiError if it means none."""
        if self.nearest_class is None:
            return find_class(prompt, self.about.class_names), None
        return nearest(prompt, self.about.class_names, self.nearest_class)

    def size(self, text: str | None) -> tuple[int, int] | None:
        """Width and height that images are brought to; None: they stay as the model makes them."""
        return None if text in (None, self.about.size) else parsed_size(text)

    def problems_of(self, values: Mapping[str, Any]) -> list[ApiError]:
        """`problems` of a body that the schema refused."""
        return self.problems(translate(values, self.about).values if self.nearest_class else values)

    def problems(self, values: Mapping[str, Any]) -> list[ApiError]:
        """What is wrong with the fields of a request beyond the schema, which may have errors of its own for them."""
        found = []
        model, scales = values.get("model"), values.get("preview_scales")
        if isinstance(model, str) and model != self.about.model_id:
            found.append(wrong_value("model", repr(self.about.model_id), model, "model_not_found"))
        if scales and not values.get("stream"):
            found.append(wrong_value("preview_scales", "stream: true with it", scales))
        if scales is not None and values.get("partial_images") is not None:
            found.append(wrong_value("preview_scales", "either it or partial_images", scales))
        if isinstance(prompt := values.get("prompt"), str) and values.get("label") is None:
            try:
                self.class_of(prompt)
            except ApiError as error:
                found.append(error)
        found += self.dead_strengths(values)
        if self.nearest_class and (too_many := too_large(values.get("size"), values.get("n"))):
            found.append(too_many)
        return found

    def dead_strengths(self, values: Mapping[str, Any]) -> list[ApiError]:
        """Strengths of guidance that would have no effect beside strengths of all scales."""
        schedule = values.get("cfg_schedule")
        given = [name for name in ("cfg", "refiner_cfg") if values.get(name) is not None]
        if isinstance(schedule, str) and numbers(schedule):
            return [wrong_value(name, "none beside the strengths of all scales", values[name]) for name in given]
        if schedule is None and numbers(self.about.sampling.cfg_schedule) and given == ["refiner_cfg"]:
            expected = "cfg or cfg_schedule with it, as this server has strengths of all scales"
            return [wrong_value("refiner_cfg", expected, values["refiner_cfg"])]
        return []

    def sampling(self, body: ImageBody) -> SamplingConfig:
        """The server's own sampling, with what a request says of it."""
        asked = {name: getattr(body, name) for name in SAMPLING_SETTINGS}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if body.temperatures is not None:
            given["temperatures"] = tuple(body.temperatures)
        return self.about.sampling.changed(**given)


def check_defaults(about: About) -> None:
    """InputError, with the name of the setting, unless a request may ask for what the server does by default."""
    own = {"draft_steps": about.draft_steps, **sampling_fields(about.sampling)}
    if numbers(about.sampling.cfg_schedule):
        own |= dict.fromkeys(("cfg", "refiner_cfg"))
    try:
        body_of(about, 1).model_validate({"prompt": about.class_names[0], **own})
    except ValidationError as error:
        name, problem = error.errors()[0]["loc"][0], error.errors()[0]["msg"]
        limit = f"strengths of at most {MAX_CFG}" if name == "cfg_schedule" else problem.replace("Input should be ", "")
        raise InputError(f"{name}: expected what a request may ask for, {limit}, got {own[str(name)]}") from None


def preview_scales(body: ImageBody, num_scales: int, edit: Edit | None = None) -> frozenset[int]:
    """The scales after which a preview is sent: those asked for, or as many as asked for, evenly spread over those that
    are drawn."""
    if body.preview_scales is not None:
        return frozenset(body.preview_scales)
    asked = DEFAULT_PREVIEWS if body.partial_images is None else body.partial_images
    kept = edit.keep_scales if edit else 0
    drawn = num_scales - kept
    count = min(asked, drawn - 1)
    if count == 1:
        return frozenset({kept + drawn // 2})
    return frozenset(kept + 1 + round(i * (drawn - 2) / (count - 1)) for i in range(count))


def find_class(prompt: str, classes: ClassNames) -> int:
    """The label of a name, synonym, WordNet id or number. ApiError with the nearest names, and all if they are few."""
    try:
        return classes.find(prompt)
    except LabelError as error:
        few = len(classes) <= NUM_LISTED and "classes are" not in (error.hint or "")
        names = f" classes are {', '.join(classes.usual_names)};" if few else ""
        hint = f" ({error.hint};{names} GET /v1/classes lists them all)"
        raise ApiError(400, f"prompt: {error}{hint}", param="prompt", code="class_not_found") from None
