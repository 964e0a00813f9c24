"""`tandem bench serve`: throughput of the endpoint, compared with its models and its HTTP path on their own.

g  images a second of `tandem generate` with the same models, replicas and batch
f  images a second of the same two deployments with stages that do nothing: only HTTP, handles and batching

If both share the same cores, without overlap or overhead, the endpoint makes 1 / (1/g + 1/f).
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from rich.console import Console
from rich.table import Table

from tandem.errors import JobError
from tandem_cluster.server import deployed, find_port
from tandem_cluster.session import Session, open_session
from tandem_jobs.bench.http_load import Answer, closed_loop, images_per_s, median_ms, overload, statuses
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.generate import run as generate
from tandem_jobs.run.progress import say
from tandem_jobs.serve import APP, make_app
from tandem_jobs.serve_options import AppSpec
from tandem_workers.endpoint.app import Parts
from tandem_workers.endpoint.decoding import Pixels, Row, Tokens

EXAMPLES = """examples:
  tandem bench serve
  tandem bench serve --rounds 1 --seconds 10
  tandem bench serve --placement split --drafters 1 --refiners 1 --batch 16

"efficiency" is the throughput with --clients over 1 / (1/g + 1/f): g is the throughput of `tandem generate` with the
same batch, f that of the same deployments with stages that do nothing. The last line on stdout is one JSON object."""

NOOP, HOST = "noop", "127.0.0.1"
NOOP_FILE_BYTES = 8000  # about a PNG of 64 px
SHARED = (  # options that generate has too
    *("drafter", "refiner", "vqvae", "random_weights", "draft_steps", "cfg", "cfg_schedule", "refiner_cfg"),
    *("top_k", "top_p", "temperatures"),
    *("batch", "dtype", "threads", "placement", "drafters", "refiners"),
)
DECLARED = (200, 429, 503)
SKIP_S = 3.0  # warm-up of every load, until queues and batches are in a steady state
RECOVERED_WITHIN_S = 5.0


class BenchServeSpec(AppSpec):
    """Throughput, added latency and overload of the endpoint, compared with its models and its HTTP path alone."""

    clients: PositiveInt = Field(32, description="concurrent requests")
    counts: tuple[PositiveInt, ...] = Field((1, 8), description="images per request; one load for each value")
    seconds: PositiveFloat = Field(20.0, gt=SKIP_S, description="seconds of every load")
    rounds: PositiveInt = Field(3, description="rounds; the median counts")
    images: PositiveInt = Field(512, description="images that generate makes in each round")
    overload: PositiveFloat = Field(10.0, description="load of the overload test, as a multiple of the throughput")
    overload_s: PositiveFloat = Field(10.0, description="seconds of overload")
    logical_gpus: NonNegativeInt = Field(4, description="simulated GPUs on a machine without any")
    address: str | None = Field(None, description="Ray cluster to join (also RAY_ADDRESS); default: start Ray here")

    @model_validator(mode="after")
    def check_counts(self) -> BenchServeSpec:
        if max(self.counts) > self.max_n:
            raise ValueError(f"expected --counts of at most --max-n {self.max_n}, got {max(self.counts)}")
        return self


class NoopDraft:
    """A drafter that returns ids without work."""

    def __init__(self, tokens: int):
        self.ids = np.zeros(tokens, np.uint16)

    def __call__(self, rows: Sequence[Row], size: int) -> Iterator[tuple[int, Tokens]]:
        return ((i, Tokens(self.ids, {"draft": 0.0})) for i in range(len(rows)))


class NoopRefine:
    """A refiner that returns pixels without work."""

    def __call__(self, rows: Sequence[Row], size: int) -> Iterator[tuple[int, Pixels]]:
        black = np.zeros((1, 1, 3), np.uint8)
        return ((i, Pixels(black, {"refine": 0.0, "decode": 0.0})) for i in range(len(rows)))


def noop_file(*of: Any) -> bytes:
    """A constant in place of an encoded image: encoding belongs to g."""
    return bytes(NOOP_FILE_BYTES)


def run(spec: BenchServeSpec) -> dict[str, Any]:
    """Measure and report; the last line on stdout is one JSON object."""
    replicas = (spec.drafters or 1) + (spec.refiners or 1)
    with open_session(spec.address, spec.logical_gpus, 4 + 2 * replicas * spec.threads) as session:
        rounds: list[dict[str, Any]] = []
        port = find_port(HOST, 0)  # Serve keeps using it
        for number in range(1, spec.rounds + 1):
            g = generated(spec)  # while nothing is served: it has all GPUs and cores
            with serving(spec, session, port) as (real, noop):
                rounds.append(one_round(spec, real, noop, g, number))
                if number == spec.rounds:
                    throughput = statistics.median(r["real"][spec.counts[0]] for r in rounds)
                    other = {"latency": latency(real), "overload": under_overload(spec, real, throughput)}
    settings = {"batch": spec.batch, "clients": spec.clients, "rounds": spec.rounds}
    result = {f"n{n}": summary(n, rounds) for n in spec.counts} | other | settings
    print_report(result)
    print(json.dumps(result), flush=True)
    return result


@contextmanager
def serving(spec: BenchServeSpec, session: Session, port: int) -> Iterator[tuple[str, str]]:
    """Both applications on one port; their addresses."""
    app, placement, about = make_app(spec, session)
    say(session.describe())
    say(placement.describe())
    tokens = sum(n * n for n in about.patch_nums[: about.draft_steps])
    nothing = make_app(spec, session, Parts(partial(NoopDraft, tokens), NoopRefine, noop_file))[0]
    with deployed(app, APP, HOST, port, log=say), deployed(nothing, NOOP, HOST, port, route=f"/{NOOP}", log=say):
        yield f"http://{HOST}:{port}", f"http://{HOST}:{port}/{NOOP}"


def body(n: int, number: int) -> dict[str, Any]:
    return {"prompt": str(number % 12), "seed": number, "n": n}


def one_round(spec: BenchServeSpec, real: str, noop: str, g: float, number: int) -> dict[str, Any]:
    """For each n the throughput of the endpoint and of the no-op, one after the other."""
    rates: dict[str, dict[int, float]] = {"real": {}, "noop": {}}
    for n in spec.counts:
        for name, url in (("noop", noop), ("real", real)):
            answers = closed_loop(url, partial(body, n), spec.clients, spec.seconds)
            if found := {code: count for code, count in statuses(answers).items() if code != "200"}:
                raise JobError(f"{name}, n = {n}: expected status 200 alone, got {found}; {first_cause(answers)}")
            rates[name][n] = images_per_s(answers, n, SKIP_S)
    for n in spec.counts:
        f, made = rates["noop"][n], rates["real"][n]
        say(f"round {number}: n = {n}: {made:.1f} images/s; generate {g:.1f}, no-op {f:.1f}; {ratio(made, g, f):.2f}")
    return {"g": g, **rates}


def generated(spec: BenchServeSpec) -> float:
    """Steady images a second of `tandem generate`."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        job = {name: getattr(spec, name) for name in SHARED}
        made = generate(GenerateSpec(**job, classes="all", images=spec.images, out=out, shard_size=4 * spec.batch))
    return float(made["steady_images_per_s"])


def ratio(made: float, g: float, f: float) -> float:
    """Throughput over what models and HTTP path would reach on the same cores."""
    return made * (1 / g + 1 / f)


def summary(n: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [ratio(r["real"][n], r["g"], r["noop"][n]) for r in rounds]
    return {
        "images_per_s": round(statistics.median(r["real"][n] for r in rounds), 2),
        "generate_images_per_s": round(statistics.median(r["g"] for r in rounds), 2),
        "noop_images_per_s": round(statistics.median(r["noop"][n] for r in rounds), 2),
        "efficiency": round(statistics.median(ratios), 3),
        "efficiencies": [round(value, 3) for value in ratios],
    }


def latency(url: str) -> dict[str, Any]:
    """One client: the time of a request, and the part that is not work of a stage."""
    answers = closed_loop(url, partial(body, 1), clients=1, seconds=10)[5:]
    worked = [sum(v for name, v in a.seconds.items() if name not in ("wait", "total")) for a in answers]
    added = [answer.lasted_s - work for answer, work in zip(answers, worked, strict=True)]
    total = median_ms([answer.lasted_s for answer in answers])
    return {"requests": len(answers), "total_ms": total, "stages_ms": median_ms(worked), "added_ms": median_ms(added)}


def under_overload(spec: BenchServeSpec, url: str, images_per_s: float) -> dict[str, Any]:
    """Send many times the server's capacity; measure the answers, and how soon a new request is answered again."""
    rate = spec.overload * images_per_s
    say(f"overload: {rate:.0f} requests/s for {spec.overload_s:.0f} s")
    answers, probes = overload(url, partial(body, 1), rate, spec.overload_s)
    ended = max(answer.began_s for answer in answers)
    refused = [answer for answer in (*answers, *probes) if answer.status in (429, 503)]
    recovery_s = probes[-1].ended_s - ended
    return {
        "requests_per_s": round(rate, 1),
        "statuses": statuses(answers),
        "undeclared": sum(answer.status not in DECLARED for answer in (*answers, *probes)),
        "without_retry_after": sum(not answer.retry_after for answer in refused),
        "cause": first_cause(answers),
        "last_answer_s": round(max(answer.ended_s for answer in answers) - ended, 2),
        "recovery_s": round(recovery_s, 2),
        "recovered": probes[-1].status == 200 and recovery_s <= RECOVERED_WITHIN_S,
    }


def first_cause(answers: list[Answer]) -> str:
    return next((answer.cause for answer in answers if answer.cause), "")


def print_report(result: dict[str, Any]) -> None:
    console = Console(stderr=True)
    table = Table("n", "images/s", "generate", "no-op", "efficiency", title=f"{result['clients']} clients")
    for name, row in result.items():
        if name[0] == "n" and isinstance(row, dict):
            rates = [row[k] for k in ("images_per_s", "generate_images_per_s", "noop_images_per_s")]
            table.add_row(name[1:], *(f"{rate:.1f}" for rate in rates), f"{row['efficiency']:.2f}")
    console.print(table)
    say("one client: {total_ms} ms a request, {added_ms} ms of it outside the stages".format(**result["latency"]))
    say("overload: {statuses}; images again after {recovery_s} s".format(**result["overload"]))
