"""What a VAR was fine-tuned for, and how it samples unless asked otherwise, as the header of its file says it:

{"kind": "var", "config": ..., "fine_tuned": {"draft_steps": 5, "distilled_cfg": 3.0},
 "sampling": {"cfg": 3.0, "top_k": 0, "top_p": 0.9, "temperatures": [1.0]}, "recipe": {...}}

The last three are optional. With {"guidance_free": true} in fine_tuned, a model decodes at cfg 0 by default, too.
`recipe` says how it was trained; it may hold any JSON and decides nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from tandem.config import SamplingConfig, from_dict
from tandem.errors import InputError

FINE_TUNED, SAMPLING, RECIPE = "fine_tuned", "sampling", "recipe"  # keys of a header


@dataclass(frozen=True)
class FineTuned:
    """
    Attributes:
        draft_steps: N of the pair that it was trained for; None: any.
        distilled_cfg: the guidance that its conditional logits have learned. It decodes at cfg 0. None: it has to be
            guided.
        guidance_free: it was trained to need no guidance, in another way.
    """

    draft_steps: int | None = None
    distilled_cfg: float | None = None
    guidance_free: bool = False

    @property
    def needs_no_guidance(self) -> bool:
        """Whether it decodes at cfg 0."""
        return self.guidance_free or self.distilled_cfg is not None

    def to_header(self) -> dict[str, Any]:
        """The header's entries, for `save_checkpoint`; none if there is nothing to say."""
        known = {name: value for name, value in asdict(self).items() if value not in (None, False)}
        return {FINE_TUNED: known} if known else {}

    def __str__(self) -> str:
        """As in "fine-tuned for N = 5, distilled at cfg 3"; empty if it is neither."""
        steps = [] if self.draft_steps is None else [f"fine-tuned for N = {self.draft_steps}"]
        guidance = [] if self.distilled_cfg is None else [f"distilled at cfg {self.distilled_cfg:g}"]
        free = ["guidance-free"] if self.guidance_free else []
        return ", ".join([*steps, *guidance, *free])


AS_TRAINED = FineTuned()  # of a model whose file says nothing


def fine_tuned_in(header: dict[str, Any], num_scales: int | None) -> FineTuned:
    """What a header says. `num_scales`: K of a VAR; None: a VQVAE, which cannot be fine-tuned. Raises InputError."""
    if not isinstance(header.get(RECIPE, {}), dict):
        raise InputError(f"{RECIPE} in its header: expected a JSON object, got {header[RECIPE]!r:.60}")
    found = header.get(FINE_TUNED, {})
    fields = FineTuned.__dataclass_fields__
    if not isinstance(found, dict) or set(found) - set(fields) or (found and num_scales is None):
        of = ", ".join(fields) if num_scales else "nothing, as this is a VQVAE"
        raise InputError(f"{FINE_TUNED} in its header: expected {of}, got {found!r:.80}")
    steps, cfg, free = found.get("draft_steps"), found.get("distilled_cfg"), found.get("guidance_free", False)
    if steps is not None and (type(steps) is not int or not 1 <= steps < (num_scales or 0)):
        raise InputError(f"draft_steps in its header: expected 1 to {(num_scales or 0) - 1}, got {steps!r:.60}")
    if cfg is not None and (type(cfg) not in (int, float) or not 0 < cfg < math.inf):
        raise InputError(f"distilled_cfg in its header: expected a number above 0, got {cfg!r:.60}")
    if not isinstance(free, bool):
        raise InputError(f"guidance_free in its header: expected true or false, got {free!r:.60}")
    return FineTuned(steps, None if cfg is None else float(cfg), free)


def sampling_in(header: dict[str, Any]) -> SamplingConfig | None:
    """The sampling that a header names; None if it names none. Raises InputError."""
    found = header.get(SAMPLING)
    if found is None:
        return None
    try:
        return from_dict(SamplingConfig, found)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{SAMPLING} in its header: {error}") from None
