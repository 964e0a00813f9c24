"""From measured stage times to a placement: pure arithmetic, no Ray, no device.

A GPU of kind k drafts a_k images a second, or refines (and decodes) b_k. A colocated GPU does both for each image and
makes 1 / (1/a_k + 1/b_k). In a split, the GPUs of a kind may all take one role or be divided; `search` finds
the best division of whole GPUs, and the bound that no placement beats. In a mixed plan, some GPUs are colocated and
others split.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Literal

from tandem.errors import InputError, PlacementError
from tandem_cluster.profile_file import Profile
from tandem_cluster.search import NOTHING, Goal, Search
from tandem_cluster.ways import USES, Cards, Use

Counts = Mapping[str, int]
# Price of time, as a share of the cheapest GPU's price: of plans with equal cost, the fastest is chosen
TIME_PRICE = 1e-6
MAX_GPUS = 1024  # of a kind: the search holds every division of them in memory
TIE = 2e-6  # relative difference up to which plans count as equally good
# A mixed plan must gain at least this over simpler ones: shards of colocated replicas pass through a refiner's process
MIXED_GAIN = 0.02
Mode = Literal["split", "colocated", "mixed"]
SIMPLEST_FIRST: dict[Mode, Sequence[Use]] = {"colocated": ("both",), "split": ("draft", "refine"), "mixed": USES}


@dataclass(frozen=True)
class Option:
    """One way to use the GPUs, and its predicted performance."""

    mode: Mode
    draft_steps: int
    batch: int
    drafters: dict[str, int]
    refiners: dict[str, int]  # the same as drafters if colocated
    images_per_s: float
    busy: dict[str, float]  # share of time that the GPUs of a stage are busy
    cpu_cores: float  # kept busy by encoding and storing; 0 if the profile does not say
    fid: float | None = None
    hours: float = 0.0
    cost: float | None = None
    both: dict[str, int] = field(default_factory=dict)  # colocated GPUs of a mixed plan
    estimated: tuple[str, ...] = field(default=())  # stage times that were not measured, with their profile
    limits: tuple[str, ...] = ()  # roles that kinds of GPU cannot take, and why
    exact: bool = True  # no other use of whole GPUs in this mode is better by more than EXACT_TO

    @property
    def gpus(self) -> dict[str, int]:
        """GPUs in use of each kind."""
        roles = [self.drafters, *([] if self.mode == "colocated" else [self.refiners, self.both])]
        return {kind: sum(role.get(kind, 0) for role in roles) for kind in dict.fromkeys(k for r in roles for k in r)}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"gpus": self.gpus}


@dataclass(frozen=True)
class Plan:
    """The chosen option, the next best ones with the best of each mode always among them, and the bound."""

    best: Option
    runners_up: tuple[Option, ...]
    bound_images_per_s: float
    meets_deadline: bool | None


@dataclass(frozen=True)
class Request:
    """The inputs of a plan."""

    gpus: Counts
    images: float
    deadline_h: float | None = None
    price_per_h: Mapping[str, float] = field(default_factory=dict)
    max_fid: float | None = None
    allowed_steps: tuple[int, ...] | None = None  # values of N of measured quality
    draft_steps: int | Literal["auto"] = "auto"
    batch: int | None = None
    start_up_s: float = 0.0

    @property
    def wants_cheapest(self) -> bool:
        return self.deadline_h is not None and bool(self.price_per_h)

    @property
    def deadline_s(self) -> float:
        return math.inf if self.deadline_h is None else 3600 * self.deadline_h


def make_plan(profiles: Sequence[Profile], request: Request, num_runners_up: int = 4) -> Plan:
    """The fastest option, or with a deadline and prices the cheapest that meets it.

    Raises:
        InputError: a kind of GPU has no profile, or nothing meets the request.
        PlacementError: no GPU can take one of the roles.
    """
    by_kind = check_kinds(profiles, request)
    options: list[Option] = []
    bound = 0.0
    for steps, batch in settings(list(by_kind.values()), request):
        cards = [cards_of(profile, steps, batch, request) for profile in by_kind.values()]
        bound = max(bound, Search(cards, USES, Goal()).most)
        options += (priced(option, by_kind, steps, batch, request) for option in best_of_modes(cards, request))
    if not options:
        raise PlacementError("no kind of GPU can take both roles, and no two kinds share them")
    ranked = rank(options, request)
    best, firsts = ranked[0], [next((o for o in ranked if o.mode == mode), None) for mode in SIMPLEST_FIRST]
    others = sorted(ranked[1:], key=lambda option: option not in firsts)[:num_runners_up]
    others.sort(key=ranked.index)
    meets = None if request.deadline_h is None else not is_late(best, request)
    return Plan(best, tuple(others), bound, meets)


def check_kinds(profiles: Sequence[Profile], request: Request) -> dict[str, Profile]:
    """The profile of each kind of GPU asked for."""
    by_kind = {profile.kind: profile for profile in profiles}
    if len(by_kind) < len(profiles):
        got = ", ".join(f"{p.name} of {p.kind}" for p in profiles)
        raise InputError(f"--profile: expected one profile of each kind, got {got}")
    if unknown := sorted(set(request.gpus) - set(by_kind)):
        raise InputError(f"--gpus: expected kinds with a profile ({', '.join(sorted(by_kind))}), got {unknown[0]}")
    if many := {kind: count for kind, count in request.gpus.items() if count > MAX_GPUS}:
        kind, count = next(iter(many.items()))
        raise InputError(f"--gpus: expected at most {MAX_GPUS} of a kind, got {kind}:{count}")
    if unknown := sorted(set(request.price_per_h) - set(request.gpus)):
        raise InputError(f"--price: expected kinds of --gpus ({', '.join(sorted(request.gpus))}), got {unknown[0]}")
    if request.price_per_h and (missing := sorted(set(request.gpus) - set(request.price_per_h))):
        raise InputError(f"--price: expected a price of every kind of --gpus, got none of {missing[0]}")
    return {kind: by_kind[kind] for kind in request.gpus}


def settings(profiles: Sequence[Profile], request: Request) -> list[tuple[int, int]]:
    """Pairs (N, batch) that the request allows and at which every kind of GPU was measured."""
    pairs = {(n, b) for p in profiles for n in p.draft_steps for b in p.batches if all(q.knows(n, b) for q in profiles)}
    steps, batches = {n for n, _ in pairs}, {b for _, b in pairs}
    if request.batch is not None:
        batches &= {request.batch}
    if request.draft_steps != "auto":
        steps &= {request.draft_steps}
    elif request.max_fid is None and request.allowed_steps is None:
        default = round(0.7 * profiles[0].num_scales)
        steps = {min(steps, key=lambda n: (abs(n - default), n))} if steps else steps
    if request.max_fid is not None:
        steps = {n for n in steps if all(p.fid.get(n, math.inf) <= request.max_fid for p in profiles)}
    if request.allowed_steps is not None:
        steps &= set(request.allowed_steps)
    wanted = sorted(pairs & set(product(steps, batches)))
    if not wanted:
        known = ", ".join(f"{p.name}: N {p.draft_steps}, batch {p.batches}, FID {p.fid}" for p in profiles)
        asked = f"N = {request.draft_steps}, batch {request.batch or 'any'}, FID {request.max_fid or 'any'}"
        if request.allowed_steps is not None:
            asked += f", N of that quality: {', '.join(map(str, request.allowed_steps)) or 'none'}"
        raise InputError(f"no N and batch in the profiles meet the request ({asked}); measured: {known}")
    return wanted


def cards_of(profile: Profile, steps: int, batch: int, request: Request) -> Cards:
    """Rates of the GPUs of a kind at one N and batch; 0 for a role that was not measured or does not fit in memory."""
    seconds = [t.seconds if (t := profile.time(s, steps, batch)) else 0.0 for s in ("draft", "refine", "decode")]
    draft_s, refine_s = seconds[0] / batch, sum(seconds[1:]) / batch
    each = zip(USES, (draft_s, refine_s, draft_s + refine_s), strict=True)
    draft, refine, both = (1 / s if s and profile.why_not(use, steps, batch) is None else 0.0 for use, s in each)
    price = request.price_per_h.get(profile.kind, 0.0)
    return Cards(profile.kind, request.gpus[profile.kind], draft, refine, both, price)


def best_of_modes(cards: Sequence[Cards], request: Request) -> Iterator[Option]:
    """The best option of each mode: the cheapest that meets the deadline if cost matters, else the fastest."""
    cheapest = None
    if request.wants_cheapest:
        seconds = request.deadline_s - request.start_up_s
        least = request.images / seconds if seconds > 0 else math.inf
        cheapest = Goal(least, request.images, request.start_up_s, TIME_PRICE * min(request.price_per_h.values()))
    goals = [cheapest, Goal()] if cheapest and math.isfinite(cheapest.least) else [Goal()]
    known = [NOTHING] * len(goals)
    for mode, uses in SIMPLEST_FIRST.items():
        for i, goal in enumerate(goals):
            search = Search(cards, uses, goal, with_gain(known[i]) if mode == "mixed" else NOTHING).run()
            if (found := option_of(mode, cards, search)) is not None:
                known[i] = max(known[i], search.worth)
                yield found
            if found is not None or (mode == "mixed" and known[i] > NOTHING):
                break


def with_gain(worth: float) -> float:
    """The worth that a mixed plan must reach to be preferred to a simpler plan of this worth."""
    return worth + MIXED_GAIN * abs(worth) if worth > NOTHING else worth


def option_of(mode: Mode, cards: Sequence[Cards], search: Search) -> Option | None:
    """The option that a search found, less GPUs that would only wait for others."""
    if search.best is None:
        return None
    drafters, refiners, both = (
        {c.kind: int(n) for c, n in zip(cards, column, strict=True) if n} for column in search.best.T
    )
    if mode == "colocated":
        rate = sum(c.both * both.get(c.kind, 0) for c in cards)
        return Option(mode, 0, 0, both, both, rate, {"draft + refine": 1.0}, 0.0, exact=search.proven)
    if mode == "mixed" and not (both and drafters and refiners):
        return None
    drafting, refining = {c.kind: c.draft for c in cards}, {c.kind: c.refine for c in cards}
    rate = min(total(drafters, drafting), total(refiners, refining))
    drafters, refiners = enough(drafters, drafting, rate), enough(refiners, refining, rate)
    busy = {"draft": rate / total(drafters, drafting), "refine": rate / total(refiners, refining)}
    rate += total(both, {c.kind: c.both for c in cards})
    return Option(mode, 0, 0, drafters, refiners, rate, busy, 0.0, both=both, exact=search.proven)


def total(counts: Counts, rates: Mapping[str, float]) -> float:
    """Images a second of a number of GPUs of each kind in one role."""
    return math.fsum(rates[kind] * n for kind, n in counts.items())


def enough(counts: Counts, rates: Mapping[str, float], rate: float) -> dict[str, int]:
    """The fewest GPUs that still reach the rate: the slowest are dropped first."""
    kept = dict(counts)
    for kind in sorted(counts, key=lambda kind: (rates[kind], kind)):
        spare = total(kept, rates) - rate
        kept[kind] -= min(kept[kind], math.floor(spare / rates[kind] + 1e-9))
    return {kind: n for kind, n in kept.items() if n}


def priced(option: Option, by_kind: Mapping[str, Profile], steps: int, batch: int, request: Request) -> Option:
    """The option with N, batch, hours, cost, cores, and the stage times that are estimates."""
    used = [profile for kind, profile in by_kind.items() if option.gpus.get(kind)]
    hours = (request.start_up_s + request.images / option.images_per_s) / 3600
    cost = None
    if request.price_per_h:
        cost = hours * sum(request.price_per_h[kind] * n for kind, n in option.gpus.items())
    times = [(p, t) for p in used for s in ("draft", "refine", "decode") if (t := p.time(s, steps, batch))]
    return replace(
        option,
        draft_steps=steps,
        batch=batch,
        hours=hours,
        cost=cost,
        cpu_cores=option.images_per_s * max(cpu_seconds(p, batch) for p in used),
        fid=max((p.fid[steps] for p in used if steps in p.fid), default=None),
        limits=tuple(limit for p in by_kind.values() for limit in p.limits(steps, batch)),
        estimated=tuple(f"{t.stage} on {p.kind} (profile {p.name}): {t.estimated}" for p, t in times if t.estimated),
    )


def cpu_seconds(profile: Profile, batch: int) -> float:
    """Core-seconds for encoding and storing one image; 0 if not measured."""
    times = [profile.time("encode", None, batch), profile.time("store", None, batch)]
    return sum(t.seconds / t.batch for t in times if t)


def rank(options: Sequence[Option], request: Request) -> list[Option]:
    """Sort the options, best first: in time before late, then the cheaper or the faster. Ties are broken by speed, then
    fewer GPUs, the simpler placement, the smaller N and batch."""
    left = sorted(options, key=lambda option: value(option, request))
    ranked: list[Option] = []
    while left:
        equal = [option for option in left if is_tie(left[0], option, request)]
        left = [option for option in left if option not in equal]
        ranked += sorted(equal, key=simplicity)
    return ranked


def value(option: Option, request: Request) -> tuple[bool, float]:
    """Sort key of an option: smaller is better."""
    late = is_late(option, request)
    cost = option.cost if request.wants_cheapest and not late else None
    return late, -option.images_per_s if cost is None else cost


def is_late(option: Option, request: Request) -> bool:
    return option.hours * 3600 > request.deadline_s * (1 + 1e-9)


def is_tie(one: Option, other: Option, request: Request) -> bool:
    """Whether two options differ by no more than rounding."""
    (late, first), (other_late, second) = value(one, request), value(other, request)
    return late == other_late and math.isclose(first, second, rel_tol=TIE)


def simplicity(option: Option) -> tuple[float, int, int, int, int]:
    modes, hours = list(SIMPLEST_FIRST), float(f"{option.hours:.6g}")
    return hours, sum(option.gpus.values()), modes.index(option.mode), option.draft_steps, option.batch
