"""`tandem plan`: which GPUs draft and which refine, how fast and at what cost, from measured stage times."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from rich.console import Console
from rich.table import Table

from tandem.errors import InputError
from tandem.user_files import shown
from tandem_cluster.planner import Option, Plan, Request, is_tie, make_plan
from tandem_cluster.profile_file import read_profile
from tandem_jobs.options.flags import COMMAS
from tandem_jobs.options.options import DecodingOptions
from tandem_jobs.options.spec import Spec, as_flags
from tandem_jobs.options.tuned_file import read_tuned
from tandem_jobs.run.progress import say

EXAMPLES = """examples:
  tandem plan --profile paper-l20 --gpus l20:3 --images 1.3e6 --draft-steps 8
  tandem plan --profile h100.json --profile l20.json --gpus h100:2,l20:6 --images 1.3e6
  tandem plan --profile h100.json --profile l20.json --gpus h100:2,l20:6 --images 1.3e6 \\
      --deadline 24h --price h100=2.5,l20=0.8 --draft-steps auto --max-fid 2.1

'tandem profile' makes a profile on each kind of machine; paper-l20 (the paper's figures) is built in.
With a deadline and prices, the cheapest plan that meets the deadline is chosen, else the fastest. The search over whole
GPUs is exact: split, colocated, or mixed (some GPUs colocated, the others split). The case of kinds does not matter."""
MAX_HOURS = 3650 * 24
HOURS = {"s": 1 / 3600, "m": 1 / 60, "h": 1.0, "d": 24.0}
ValueT = TypeVar("ValueT", int, float)


class PlanSpec(Spec):
    """Choose a placement: how many drafters and refiners on which GPUs, from measured stage times."""

    profile: tuple[str, ...] = Field(description="profiles, one for each kind of GPU: files, or built-in names")
    gpus: Annotated[str, COMMAS] = Field(description="available GPUs: KIND:COUNT,KIND:COUNT")
    images: PositiveFloat = Field(description="images to make, such as 1.3e6")
    draft_steps: PositiveInt | Literal["auto"] = Field(
        "auto", description="N; auto: the fastest N within --max-fid, else about 0.7 K"
    )
    max_fid: PositiveFloat | None = Field(None, description="highest acceptable FID, for profiles that have it")
    settings: str | None = Field(None, description="tuned.json of tandem tune, whose N is planned")
    max_quality_loss: NonNegativeFloat | None = Field(
        None,
        description="any N for which --settings has found settings whose quality is worse than its reference's by at "
        "most this, at the upper end of the 95 % interval; the fastest is planned",
    )
    batch: PositiveInt | None = Field(None, description="images per forward; default: the best measured batch")
    deadline: str | None = Field(None, description="deadline: 90m, 24h, 2d")
    price: Annotated[str | None, COMMAS] = Field(None, description="price per GPU hour: KIND=PRICE,KIND=PRICE")

    @model_validator(mode="after")
    def check_quality(self) -> PlanSpec:
        if self.max_quality_loss is not None and self.settings is None:
            raise ValueError("expected --settings tuned.json with --max-quality-loss, got none")
        if self.settings is not None and self.draft_steps != "auto":
            raise ValueError(f"expected --settings, whose N is planned, without --draft-steps {self.draft_steps}")
        if self.max_quality_loss is not None and self.max_fid is not None:
            raise ValueError("expected --max-fid (the profiles') or --max-quality-loss (the settings'), got both")
        return self


def run(spec: PlanSpec) -> dict[str, Any]:
    """Print the plan as a table and as one JSON line."""
    profiles = [read_profile(source) for source in spec.profile]
    tuned = read_tuned(spec.settings) if spec.settings else None
    if tuned and spec.settings:
        tuned.check_scales(spec.settings, profiles[0].num_scales)
    found = tuned.for_gpus(spec.max_quality_loss) if tuned else {}
    request = Request(
        gpus=parse_pairs("--gpus", spec.gpus, ":", int),
        images=spec.images,
        deadline_h=parse_hours(spec.deadline) if spec.deadline else None,
        price_per_h=parse_pairs("--price", spec.price, "=", float) if spec.price else {},
        max_fid=spec.max_fid,
        allowed_steps=tuple(sorted(found)) if tuned else None,
        draft_steps=spec.draft_steps,
        batch=spec.batch,
        start_up_s=max((sum(profile.load_s.values()) for profile in profiles), default=0.0),
    )
    plan = make_plan(profiles, request)
    print_plan(plan, request)
    result = as_json(plan, request)
    if tuned:
        planned = {option.draft_steps for option in (plan.best, *plan.runners_up)}
        result["settings"] = {n: found[n].to_options() for n in sorted(planned)}
        flags = " ".join(as_flags(DecodingOptions.model_validate(found[plan.best.draft_steps].to_options())))
        say(f"settings of N = {plan.best.draft_steps}: {flags}")
        say("images/s are those of the profiles: tandem profile with the same guidance tells how fast these are")
    print(json.dumps(result), flush=True)
    return result


def as_json(plan: Plan, request: Request) -> dict[str, Any]:
    return {
        "request": asdict(request),
        "best": plan.best.to_dict(),
        "runners_up": [option.to_dict() for option in plan.runners_up],
        "bound_images_per_s": plan.bound_images_per_s,
        "meets_deadline": plan.meets_deadline,
    }


def parse_pairs(flag: str, text: str, sign: str, number: Callable[[str], ValueT]) -> dict[str, ValueT]:
    """'A:2,b:6' -> {'a': 2, 'b': 6}: kinds in lower case. Raises InputError for anything but names and numbers above 0,
    and for repeated kinds."""
    pairs: dict[str, ValueT] = {}
    for part in text.split(","):
        name, found, value = (piece.strip().lower() for piece in part.partition(sign))
        try:
            amount = number(value)
        except ValueError:
            amount = number("0")
        if not found or not name or not amount > 0 or amount == float("inf"):
            kind = "a whole number" if number is int else "a number"
            raise InputError(f"{flag}: expected KIND{sign}X with X {kind} above 0, got {part!r}")
        if name in pairs:
            raise InputError(f"{flag}: expected each kind once, in upper or lower case; got {name} twice")
        pairs[name] = amount
    return pairs


def parse_hours(text: str) -> float:
    """Hours from text with a unit. InputError for other text, and for more than ten years."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if not match or float(match[1]) == 0:
        raise InputError(f"--deadline: expected a time such as 90m, 24h or 2d, got {shown(repr(text), 60)}")
    if (hours := float(match[1]) * HOURS[match[2]]) > MAX_HOURS:
        raise InputError(f"--deadline: expected at most {MAX_HOURS // 24}d, got {shown(text, 60)}")
    return hours


def print_plan(plan: Plan, request: Request) -> None:
    gpus = ", ".join(f"{n} x {kind}" for kind, n in request.gpus.items())
    table = Table(title=f"{request.images:,.0f} images on {gpus}")
    for name in ("", "placement", "N", "batch", "drafters", "refiners"):
        table.add_column(name)
    if mixed := any(option.both for option in (plan.best, *plan.runners_up)):
        table.add_column("with both")
    for name in ("images/s", "hours", *(["cost"] if request.price_per_h else [])):
        table.add_column(name, justify="right")
    best, options = plan.best, (plan.best, *plan.runners_up)
    decimals = decimals_for([option.images_per_s for option in options])
    ties = [option for option in plan.runners_up if is_tie(best, option, request)]
    for option in options:
        word = "best" if option is best else "tie" if option in ties else ""
        table.add_row(word, *cells(option, decimals, mixed))
    Console(stderr=True).print(table)
    if ties:
        say("tie: equal within 0.0002 %; then the faster, fewer GPUs and the simpler placement win, in this order")
    say("busy: " + ", ".join(f"{stage} {share:.0%}" for stage, share in best.busy.items()))
    if not best.exact:
        say("the search was cut short: a better plan may exist, up to the bound")
    share = best.images_per_s / plan.bound_images_per_s
    say(f"bound with fractions of GPUs: {plan.bound_images_per_s:.1f} images/s; the plan reaches {share:.0%}")
    if best.cpu_cores:
        say(f"encoding and storing keep {best.cpu_cores:.1f} CPU cores busy")
    if plan.meets_deadline is not None:
        word = "met" if plan.meets_deadline else "NOT met: no placement of these GPUs is fast enough"
        say(f"deadline of {request.deadline_h:g} h: {word}")
    for line in best.limits:
        say(line)
    for line in best.estimated:
        say(f"estimated, not measured: {line}")


def decimals_for(rates: Sequence[float]) -> int:
    """The fewest decimals, 1 to 6, at which different rates look different."""
    known = {float(f"{rate:.6g}") for rate in rates}
    return next((n for n in range(1, 6) if len({f"{rate:.{n}f}" for rate in known}) == len(known)), 6)


def cells(option: Option, decimals: int, mixed: bool) -> list[str]:
    both = option.mode == "colocated"
    numbers = [f"{option.images_per_s:.{decimals}f}", f"{option.hours:.{decimals + 1}f}"]
    return [
        option.mode,
        str(option.draft_steps),
        str(option.batch),
        named(option.drafters) + (" with both" if both else ""),
        "" if both else named(option.refiners),
        *([named(option.both)] if mixed else []),
        *(numbers if option.cost is None else [*numbers, f"{option.cost:,.{decimals + 1}f}"]),
    ]


def named(counts: dict[str, int]) -> str:
    return " + ".join(f"{n} {kind}" for kind, n in counts.items())
