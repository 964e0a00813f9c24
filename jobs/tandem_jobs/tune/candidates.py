"""The settings that `tandem tune` compares: N, guidance, sampling and precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from tandem.config import SamplingConfig, numbers
from tandem_jobs.study.subject import Setting

Precision = Literal["plain", "int8", "fp8"]


@dataclass(frozen=True)
class Candidate:
    """One way of decoding."""

    draft_steps: int
    sampling: SamplingConfig
    precision: Precision = "plain"

    @property
    def name(self) -> str:
        """In tables and in names of files: "n5-cfg3-off-after4-k900-p0.96-t1.1x2-1-int8"."""
        own = self.sampling
        refiner = "" if own.refiner_cfg is None else f"-r{own.refiner_cfg:g}"
        guidance = f"cfg{own.cfg:g}-{own.cfg_schedule.replace(':', '').replace(',', '_')}{refiner}"
        precision = "" if self.precision == "plain" else f"-{self.precision}"
        return f"n{self.draft_steps}-{guidance}-k{own.top_k}-p{own.top_p:g}-t{runs_of(own.temperatures)}{precision}"

    @property
    def words(self) -> str:
        """For people: "N = 5, cfg 3, off-after:4, top-p 0.96, temperatures 1.1x2-1, int8"."""
        own, precision = self.sampling, "" if self.precision == "plain" else f", {self.precision}"
        drawn = f"top-p {own.top_p:g}, temperatures {runs_of(own.temperatures)}"
        return f"N = {self.draft_steps}, {own.guidance}, {drawn}{precision}"

    def parts(self, num_scales: int) -> tuple[tuple[str, int], ...]:
        """Which model makes which scales, as in `Setting`."""
        return ("drafter", self.draft_steps), ("refiner", num_scales)

    def setting(self, num_scales: int, seed: int) -> Setting:
        """CoDe of drafter and refiner in this way. The seed is part of the name, under which images are kept."""
        return Setting(f"{self.name}-s{seed}", self.parts(num_scales), self.sampling)

    def key(self, num_scales: int) -> tuple[object, ...]:
        """Equal for two candidates that decode alike: by the strengths of their scales, however these are written."""
        own, n = self.sampling, self.draft_steps
        strengths = own.strengths(num_scales)[:n] + own.of_refiner.strengths(num_scales)[n:]
        temperatures = tuple(own.temperature(scale) for scale in range(num_scales))
        return n, strengths, own.top_k, own.top_p, temperatures, self.precision

    def options(self) -> dict[str, Any]:
        """The options of `generate` and `serve` that decode in this way."""
        own = self.sampling
        strengths = {"cfg": own.cfg, "refiner_cfg": own.refiner_cfg} if not numbers(own.cfg_schedule) else {}
        precision: dict[str, Any] = {} if self.precision == "plain" else {self.precision: True}
        return {
            "draft_steps": self.draft_steps,
            "cfg_schedule": own.cfg_schedule,
            **{name: value for name, value in strengths.items() if value is not None},
            "top_k": own.top_k,
            "top_p": own.top_p,
            "temperatures": list(own.temperatures),
            **precision,
        }


def runs_of(values: Sequence[float]) -> str:
    """(1.1, 1.1, 1.0) -> "1.1x2-1"."""
    found: list[tuple[float, int]] = []
    for value in values:
        again = found and found[-1][0] == value
        found = [*found[:-1], (value, found[-1][1] + 1)] if again else [*found, (value, 1)]
    return "-".join(f"{value:g}" if count == 1 else f"{value:g}x{count}" for value, count in found)


def default_schedules(own: str, num_scales: int) -> tuple[str, ...]:
    """The reference's guidance, and that which is switched off after each scale of the second half."""
    return own, *(f"off-after:{k}" for k in range(-(-num_scales // 2), num_scales))


def grid(
    own: SamplingConfig,
    num_scales: int,
    draft_steps: Sequence[int],
    cfgs: Sequence[float],
    schedules: Sequence[str],
    refiner_cfgs: Sequence[float | None],
    top_ps: Sequence[float],
    temperature_scales: Sequence[float],
    precisions: Sequence[Precision],
) -> list[Candidate]:
    """All combinations, each way of decoding once. `refiner_cfgs`: None is the drafter's strength.

    Raises InputError for a schedule that the pyramid does not have.
    """
    found: dict[tuple[object, ...], Candidate] = {}
    axes = product(draft_steps, cfgs, schedules, refiner_cfgs, top_ps, temperature_scales, precisions)
    for steps, cfg, schedule, refiner_cfg, top_p, scale, precision in axes:
        temperatures = tuple(round(t * scale, 6) for t in own.temperatures)
        guided = replace(own, cfg=cfg, cfg_schedule=schedule, refiner_cfg=refiner_cfg)
        one = Candidate(steps, replace(guided, top_p=top_p, temperatures=temperatures), precision)
        found.setdefault(one.key(num_scales), one)
    return list(found.values())
