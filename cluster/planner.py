"""From measured stage times to a placement: pure arithmetic, no Ray, no device.

A GPU of kind k drafts a_k images a second, or refines (and decodes) b_k. Colocated it does both for each image and
makes 1 / (1/a_k + 1/b_k). Split, the kinds are ordered by a_k / b_k and the GPUs up to some place in that order
draft, the others refine: giving any drafter's role to a GPU further down cannot help (comparative advantage).
With fractions of GPUs the same order gives the bound that no placement beats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Literal

from cluster.profile import Profile
from tandem.errors import InputError, PlacementError

MAX_SUBSETS = 20_000  # choices of fewer GPUs that are looked at when a cheaper plan is wanted
Counts = Mapping[str, int]


@dataclass(frozen=True)
class Rates:
    """Images a second of one GPU of a kind in each role, at one N and batch. 0: it cannot take the role."""

    kind: str
    draft: float
    refine: float

    @property
    def colocated(self) -> float:
        return 1 / (1 / self.draft + 1 / self.refine) if self.draft and self.refine else 0.0

    @property
    def preference(self) -> float:
        """How much better it drafts than it refines."""
        return self.draft / self.refine if self.refine else math.inf


@dataclass(frozen=True)
class Option:
    """One way to use the GPUs, and what it is predicted to give."""

    mode: Literal["split", "colocated"]
    draft_steps: int
    batch: int
    drafters: dict[str, int]
    refiners: dict[str, int]  # the same as drafters where colocated
    images_per_s: float
    busy: dict[str, float]  # share of the time that GPUs of a stage work
    cpu_cores: float  # that encoding and storing keep busy; 0 where the profile does not say
    fid: float | None = None
    hours: float = 0.0
    cost: float | None = None
    estimated: tuple[str, ...] = field(default=())

    @property
    def gpus(self) -> dict[str, int]:
        """GPUs in use of each kind."""
        split = self.refiners if self.mode == "split" else {}
        return {kind: self.drafters.get(kind, 0) + split.get(kind, 0) for kind in {**self.drafters, **split}}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"gpus": self.gpus}


@dataclass(frozen=True)
class Plan:
    """The chosen option, the next best ones with the best colocated one always among them, and the bound."""

    best: Option
    runners_up: tuple[Option, ...]
    bound_images_per_s: float
    meets_deadline: bool | None


@dataclass(frozen=True)
class Request:
    """What is to be planned for."""

    gpus: Counts
    images: float
    deadline_h: float | None = None
    price_per_h: Mapping[str, float] = field(default_factory=dict)
    max_fid: float | None = None
    draft_steps: int | Literal["auto"] = "auto"
    batch: int | None = None
    start_up_s: float = 0.0


def make_plan(profiles: Sequence[Profile], request: Request, num_runners_up: int = 4) -> Plan:
    """The fastest option, or with a deadline and prices the cheapest that meets it.

    Raises:
        InputError: a kind of GPU without a profile, or nothing that fits the wishes.
        PlacementError: no GPU can take one of the roles.
    """
    by_kind = check_kinds(profiles, request)
    options: list[Option] = []
    bound = 0.0
    for steps, batch in settings(list(by_kind.values()), request):
        rates = [rates_of(profile, steps, batch) for profile in by_kind.values()]
        bound = max(bound, bound_of(rates, request.gpus))
        for counts in subsets(request):
            for option in (colocated(rates, counts), split(rates, counts)):
                if option is not None:
                    options.append(priced(option, by_kind, steps, batch, request))
    if not options:
        raise PlacementError("no kind of GPU can take both roles, and no two kinds share them")
    wants_cheap = request.deadline_h is not None and bool(request.price_per_h)
    ranked = sorted(options, key=lambda option: rank(option, request.deadline_h, wants_cheap))
    best = ranked[0]
    others = ranked[1 : num_runners_up + 1]
    together = next((option for option in ranked if option.mode == "colocated"), None)
    if together and together not in (best, *others):
        others = [*others[:-1], together]
    meets = None if request.deadline_h is None else best.hours <= request.deadline_h
    return Plan(best, tuple(others), bound, meets)


def check_kinds(profiles: Sequence[Profile], request: Request) -> dict[str, Profile]:
    """The profile of each kind of GPU asked for."""
    by_kind = {profile.kind: profile for profile in profiles}
    if len(by_kind) < len(profiles):
        raise InputError(f"--profile: expected one of each kind, got {', '.join(p.kind for p in profiles)}")
    if unknown := sorted(set(request.gpus) - set(by_kind)):
        raise InputError(f"--gpus: expected kinds with a profile ({', '.join(sorted(by_kind))}), got {unknown[0]}")
    if unknown := sorted(set(request.price_per_h) - set(request.gpus)):
        raise InputError(f"--price: expected kinds of --gpus ({', '.join(sorted(request.gpus))}), got {unknown[0]}")
    if request.price_per_h and (missing := sorted(set(request.gpus) - set(request.price_per_h))):
        raise InputError(f"--price: expected a price of every kind of --gpus, got none of {missing[0]}")
    return {kind: by_kind[kind] for kind in request.gpus}


def settings(profiles: Sequence[Profile], request: Request) -> Iterator[tuple[int, int]]:
    """(N, batch) that every kind was measured at and that the wishes allow."""
    steps = set.intersection(*(set(p.draft_steps) for p in profiles))
    batches = set.intersection(*(set(p.batches) for p in profiles))
    if request.batch is not None:
        batches &= {request.batch}
    if request.draft_steps != "auto":
        steps &= {request.draft_steps}
    elif request.max_fid is None:
        default = round(0.7 * profiles[0].num_scales)
        steps = {min(steps, key=lambda n: (abs(n - default), n))} if steps else steps
    if request.max_fid is not None:
        steps = {n for n in steps if all(p.fid.get(n, math.inf) <= request.max_fid for p in profiles)}
    if not steps or not batches:
        known = ", ".join(f"{p.name}: N {p.draft_steps}, batch {p.batches}, FID {p.fid}" for p in profiles)
        asked = f"N = {request.draft_steps}, batch {request.batch or 'any'}, FID {request.max_fid or 'any'}"
        raise InputError(f"no N and batch in the profiles that fit the wishes ({asked}); measured are: {known}")
    yield from product(sorted(steps), sorted(batches))


def rates_of(profile: Profile, steps: int, batch: int) -> Rates:
    """Images a second of one GPU. A stage that was not measured at this batch cannot be placed there."""
    draft, refine, decode = (profile.time(s, steps, batch) for s in ("draft", "refine", "decode"))
    refine_s = refine.seconds + decode.seconds if refine and decode else 0.0
    return Rates(
        profile.kind,
        batch / draft.seconds if draft and draft.seconds else 0.0,
        batch / refine_s if refine_s else 0.0,
    )


def colocated(rates: Sequence[Rates], counts: Counts) -> Option | None:
    """Both models on every GPU that can hold them."""
    used = {r.kind: counts[r.kind] for r in rates if r.colocated and counts[r.kind]}
    total = sum(r.colocated * used.get(r.kind, 0) for r in rates)
    if not total:
        return None
    return Option("colocated", 0, 0, used, used, total, {"draft + refine": 1.0}, 0.0)


def split(rates: Sequence[Rates], counts: Counts) -> Option | None:
    """The best cut of the GPUs in order of preference, whole GPUs on either side."""
    order = in_order(rates, counts)
    best: Option | None = None
    for place, boundary in enumerate(order):
        before, after = order[:place], order[place + 1 :]
        drafted = sum(r.draft * counts[r.kind] for r in before)
        refined = sum(r.refine * counts[r.kind] for r in after)
        n = counts[boundary.kind]
        even = n * balance(drafted, refined, boundary, n)
        for here in {math.floor(even), math.ceil(even)}:
            rate = min(drafted + boundary.draft * here, refined + boundary.refine * (n - here))
            if rate > 0 and (best is None or rate > best.images_per_s):
                best = split_option(before, boundary, after, counts, here, rate)
    return best


def split_option(
    before: Sequence[Rates], boundary: Rates, after: Sequence[Rates], counts: Counts, here: int, rate: float
) -> Option:
    drafters = {r.kind: counts[r.kind] for r in before} | {boundary.kind: here}
    refiners = {boundary.kind: counts[boundary.kind] - here} | {r.kind: counts[r.kind] for r in after}
    rates = {r.kind: r for r in (*before, boundary, *after)}
    busy = {
        "draft": rate / sum(rates[k].draft * n for k, n in drafters.items()),
        "refine": rate / sum(rates[k].refine * n for k, n in refiners.items()),
    }
    drafters, refiners = ({k: n for k, n in role.items() if n} for role in (drafters, refiners))
    return Option("split", 0, 0, drafters, refiners, rate, busy, 0.0)


def bound_of(rates: Sequence[Rates], counts: Counts) -> float:
    """Images a second if GPUs could be cut into fractions: no placement beats it."""
    order, best = in_order(rates, counts), 0.0
    for place, boundary in enumerate(order):
        n = counts[boundary.kind]
        drafted = sum(r.draft * counts[r.kind] for r in order[:place])
        refined = sum(r.refine * counts[r.kind] for r in order[place + 1 :])
        share = balance(drafted, refined, boundary, n)
        best = max(best, min(drafted + boundary.draft * n * share, refined + boundary.refine * n * (1 - share)))
    return best


def balance(drafted: float, refined: float, boundary: Rates, count: int) -> float:
    """Share of the boundary kind's GPUs that has to draft for both stages to keep pace: 0 to 1."""
    both = (boundary.draft + boundary.refine) * count
    return min(1.0, max(0.0, (refined + boundary.refine * count - drafted) / both))


def in_order(rates: Sequence[Rates], counts: Counts) -> list[Rates]:
    """Kinds that can do something, the keenest drafters first."""
    able = [r for r in rates if counts[r.kind] and (r.draft or r.refine)]
    return sorted(able, key=lambda r: (-r.preference, r.kind))


def priced(option: Option, by_kind: Mapping[str, Profile], steps: int, batch: int, request: Request) -> Option:
    """The option with N, batch, hours, cost, cores, and which of its numbers rest on estimates."""
    used = [profile for kind, profile in by_kind.items() if option.gpus.get(kind)]
    hours = (request.start_up_s + request.images / option.images_per_s) / 3600
    cost = None
    if request.price_per_h:
        cost = hours * sum(request.price_per_h[kind] * n for kind, n in option.gpus.items())
    times = [t for p in used for s in ("draft", "refine", "decode") if (t := p.time(s, steps, batch))]
    return replace(
        option,
        draft_steps=steps,
        batch=batch,
        hours=hours,
        cost=cost,
        cpu_cores=option.images_per_s * max(cpu_seconds(p, batch) for p in used),
        fid=max((p.fid[steps] for p in used if steps in p.fid), default=None),
        estimated=tuple(dict.fromkeys(f"{t.stage}: {t.estimated}" for t in times if t.estimated)),
    )


def cpu_seconds(profile: Profile, batch: int) -> float:
    """Seconds of one core for encoding and storing one image; 0 where they were not measured."""
    times = [profile.time("encode", None, batch), profile.time("store", None, batch)]
    return sum(t.seconds / t.batch for t in times if t)


def rank(option: Option, deadline_h: float | None, wants_cheap: bool) -> tuple[float, ...]:
    """Smaller is better: deadlines first, then cost or speed, then fewer GPUs, then the simpler placement."""
    late = deadline_h is not None and option.hours > deadline_h
    num_gpus = sum(option.gpus.values())
    simple = option.mode == "split"
    if wants_cheap and not late:
        return (0, option.cost or 0.0, option.hours, num_gpus, simple)
    return (late, -option.images_per_s, num_gpus, simple)


def subsets(request: Request) -> Iterator[Counts]:
    """The GPUs asked for; where a cheaper plan is wanted, also fewer of them, in coarser steps if they are many."""
    yield request.gpus
    if request.deadline_h is None or not request.price_per_h:
        return
    each = max(2, int(MAX_SUBSETS ** (1 / len(request.gpus))))
    ranges = [sorted({round(i * n / min(each, n)) for i in range(min(each, n) + 1)}) for n in request.gpus.values()]
    for counts in product(*ranges):
        if any(counts):
            yield dict(zip(request.gpus, counts, strict=True))
