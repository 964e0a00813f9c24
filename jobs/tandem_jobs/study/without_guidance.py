"""A pair that has learned guidance, decoding at cfg 0, beside the guided models that it came from: quality and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tandem.counting.costs import META
from tandem.metrics import Estimate
from tandem.scales import new_cache
from tandem_jobs.bench.decode_timing import Bench
from tandem_jobs.bench.decode_timing import Setting as Timed
from tandem_jobs.bench.repeated import median_of
from tandem_jobs.run.progress import say
from tandem_jobs.study.bench_runs import open_bench
from tandem_jobs.study.quality import Measured, Quality
from tandem_jobs.study.result import Cell, StudyTable
from tandem_jobs.study.study_options import StudyOptions
from tandem_jobs.study.subject import Subject
from tandem_jobs.study.tuned_pairs import Contestants, Pair

FRECHET_MARGIN = 0.05  # by which the distance may be larger: upper end of the interval
AGREEMENT_MARGIN = 0.01  # by which agreement with the label may be lower
TIMES = {"tokens": ("draft_s", "refine_s"), "pixels": ("draft_s", "refine_s", "decode_s")}


def compare(
    quality: Quality, pair: Pair, guided: Mapping[int, Measured], distilled: Contestants, repeats: int
) -> dict[int, dict[str, Any]]:
    """By N: both pairs' quality, the paired differences, whether these keep to the margins, and times.

    `guided`: quality of the models as they were given, at every N of the study.
    """
    subject = quality.subject
    found: dict[int, dict[str, Any]] = {}
    for steps, plain in guided.items():
        setting = distilled.setting(steps, replace(subject.sampling.changed(cfg=0.0), refiner_cfg=None))
        assert setting is not None, "the pair is for every N"
        own = quality.measured(setting)
        found[steps] = {
            "guided": quality.json_of(plain, plain, "guided"),
            "distilled": quality.json_of(own, plain, "guided"),
            **{f"{name}_minus_guided": own.minus(plain, name) for name in ("frechet", "agreement")},
        }
        found[steps] |= verdict(found[steps])
    benches = open_benches(subject.spec, subject, pair, repeats)
    times = timings(benches, list(guided), subject.spec.batch, repeats)
    return {steps: values | times[steps] for steps, values in found.items()}


def verdict(found: Mapping[str, Any]) -> dict[str, bool | None]:
    """Whether the ends of the intervals keep to the margins; None where the classifier does not know the classes."""
    frechet, agreement = found["frechet_minus_guided"], found["agreement_minus_guided"]
    return {
        "frechet_within_margin": frechet.high <= FRECHET_MARGIN,
        "agreement_within_margin": None if agreement is None else -agreement.low <= AGREEMENT_MARGIN,
    }


def open_benches(spec: StudyOptions, subject: Subject, pair: Pair, repeats: int) -> dict[str, Bench]:
    """The guided models and the distilled pair, ready to be timed in one process."""
    files = {role: source for role, source in vars(pair).items() if source is not None}
    found = {"guided": open_bench(spec, repeats), "distilled": open_bench(spec.model_copy(update=files), repeats)}
    for name, bench in found.items():
        bench.sampling = subject.sampling if name == "guided" else subject.sampling.changed(cfg=0.0)
    return found


def timings(benches: Mapping[str, Bench], steps: list[int], batch: int, repeats: int) -> dict[int, dict[str, Any]]:
    """By N: seconds an image of both, and the median of their ratio over rounds in which they take turns.

    The first round warms up and does not count. Counted work is that of the published code.
    """
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {(name, n): [] for name in benches for n in steps}
    for round_ in range(repeats + 1):
        for n in steps:
            for name in sorted(benches, reverse=bool(round_ % 2)):
                runs[name, n].append(benches[name].times(Timed(n, batch)))
        say(f"round {round_} of {repeats} of guided and distilled")
    found: dict[int, dict[str, Any]] = {}
    for n in steps:
        guided, distilled = runs["guided", n][1:], runs["distilled", n][1:]
        found[n] = counted(benches, Timed(n, batch))
        for kind, parts in TIMES.items():
            seconds = [[sum(run[part] for part in parts) for run in own] for own in (guided, distilled)]
            found[n][f"{kind}_s_per_image"] = {
                name: median_of([s / batch for s in own])
                for name, own in zip(("guided", "distilled"), seconds, strict=True)
            }
            found[n][f"{kind}_time_ratio"] = median_of([ours / theirs for theirs, ours in zip(*seconds, strict=True)])
    return found


def counted(benches: Mapping[str, Bench], setting: Timed) -> dict[str, float]:
    """Rows, bytes of keys and values and work of the distilled pair, as shares of the guided ones'."""
    guided, distilled = benches["guided"], benches["distilled"]
    return {
        "rows_ratio": rows(distilled, setting) / rows(guided, setting),
        "kv_bytes_ratio": kept_bytes(distilled, setting) / kept_bytes(guided, setting),
        "flops_ratio": sum(distilled.flops(setting)) / sum(guided.flops(setting)),
    }


def rows(bench: Bench, setting: Timed) -> int:
    """Rows of an image, summed over the scales."""
    return sum(sum(bench.rows_per_image(*stage)) for stage in bench.stages(setting))


def kept_bytes(bench: Bench, setting: Timed) -> int:
    """Bytes of the keys and values that are kept at once. The scratch of the last scale is left out: rows go through it
    in groups, which may be as large with half the rows."""
    caches = [
        new_cache(bench.configs[s], bench.rows(setting, s, a, b), a, b, bench.dtype, META)
        for s, a, b in bench.stages(setting)
    ]
    return max(cache.memory.numel() for cache in caches) * bench.dtype.itemsize


def table(quality: Quality, found: Mapping[int, Mapping[str, Any]]) -> StudyTable:
    """A row for each N."""
    frechet, key = quality.heading("frechet"), quality.key("frechet")
    heads = ("N", f"{frechet}, guided", "distilled", "difference", "agreement, difference")
    rest = ("ms an image to tokens, guided", "distilled", "ratio", "ratio to pixels", "rows", "KV cache", "FLOPs")
    rows: list[list[Cell]] = []
    for steps, values in found.items():
        difference = values["frechet_minus_guided"], values["agreement_minus_guided"]
        times = values["tokens_s_per_image"]
        shares = [values[f"{name}_ratio"] for name in ("rows", "kv_bytes", "flops")]
        rows.append(
            [
                *(steps, values["guided"][key], values["distilled"][key], *difference),
                *(round(1e3 * times[name].value, 3) for name in ("guided", "distilled")),
                *(values["tokens_time_ratio"], values["pixels_time_ratio"], *shares),
            ]
        )
    return StudyTable("Guided, and distilled at cfg 0", (*heads, *rest), rows)


def findings(quality: Quality, found: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """A verdict for each N, and what it saves."""
    lines, words = [], {True: "holds", False: "does not hold", None: "is not known"}
    for steps, values in found.items():
        agreement: Estimate | None = values["agreement_minus_guided"]
        difference = f"{quality.heading('frechet')} {values['frechet_minus_guided']} to the guided pair"
        holds = words[values["frechet_within_margin"]]
        text = f"Distilled, N = {steps}: {difference}, at most {FRECHET_MARGIN} more {holds}"
        if agreement is not None:
            text += (
                f"; agreement {in_points(agreement)} points, at most {100 * AGREEMENT_MARGIN:g} less "
                f"{words[values['agreement_within_margin']]}"
            )
        lines.append(
            f"{text}. Time to tokens {values['tokens_time_ratio']} of the guided pair's, to pixels "
            f"{values['pixels_time_ratio']}."
        )
    return lines


def in_points(share: Estimate) -> str:
    """A share in percentage points."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * value for value in (share.value, share.low, share.high)))
