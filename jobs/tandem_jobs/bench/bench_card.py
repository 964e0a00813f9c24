"""`tandem bench card`: checks and measures decoding on one GPU in minutes: correctness, speed and memory."""

from __future__ import annotations

import json
import platform
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from rich.console import Console
from rich.table import Table

from tandem.counting.roofline import Card
from tandem.errors import InputError, JobError, TandemError
from tandem.user_files import write_whole
from tandem_jobs.bench import gpu_checks, gpu_rates
from tandem_jobs.bench.card_generate import generate
from tandem_jobs.bench.gpu_models import SIZES, GpuModels
from tandem_jobs.bench.peak_memory import free_memory
from tandem_jobs.bench.peer_timing import beside_card, print_peers
from tandem_jobs.bench.peers import PeerName, check_peers
from tandem_jobs.bench.published_code import PublishedCode, compare
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.progress import say
from tandem_workers.models.model_set import pick_device

EXAMPLES = """examples:
  tandem bench card --out card                         on a machine with a GPU: minutes, some 30 GB of its memory
  tandem bench card --published CoDe --out card        compared with a checkout of the published code, in turn
  tandem bench card --size tiny --only identity,speed  a demonstration without a GPU

Models have random weights; times and memory are those of real ones. Every section is printed when it ends, so that an
interrupted run has reported its findings; errors are repeated at the end, and the exit code is then 1."""
Section = Literal[
    "environment",
    "rates",
    "attention",
    "parity",
    "identity",
    "speed",
    "published",
    "peers",
    "memory",
    "halving",
    "generate",
]
SECTIONS: tuple[Section, ...] = get_args(Section)


GENERATE_S = 180.0  # least time for the last section: a minute until its first shard, and 3,072 images


class BenchCardSpec(Spec):
    """Check and measure one GPU: correct ids, images a second against its own roofline, memory, the whole pipeline."""

    size: Literal["published", "tiny"] = Field(
        "published", description="published: d30, d16 and their VQVAE; tiny: a quick test of the command itself"
    )
    only: tuple[Section, ...] | None = Field(None, description="run only these sections")
    published: Path | None = Field(
        None, description="a checkout of the published CoDe code, to measure in turn with ours"
    )
    peers: tuple[PeerName, ...] | None = Field(
        None,
        description="other generators with published shapes, to time beside N = 8 (pip install 'tandem-code[peers]')",
    )
    repeats: PositiveInt = Field(3, description="timed runs; medians are reported")
    images: PositiveInt = Field(3072, description="images that the last section, generate, makes")
    budget_s: PositiveFloat = Field(360.0, description="time limit in seconds, after which no further section begins")
    out: Path | None = Field(None, description="folder for card.json")


class CardCheck:
    """The sections, their findings, and the models that they share."""

    def __init__(self, spec: BenchCardSpec):
        check_peers(spec.peers or ())
        self.spec, self.began = spec, time.perf_counter()
        self.device = pick_device()
        if self.device.type != "cuda" and spec.size != "tiny":
            raise InputError(
                "expected a GPU, found none", "--size tiny is a demonstration; tandem bench decode measures CPUs"
            )
        self.found: dict[str, Any] = {}
        self.loaded: GpuModels | None = None

    @property
    def models(self) -> GpuModels:
        if self.loaded is None:
            self.loaded = GpuModels(SIZES[self.spec.size], self.device)
        return self.loaded

    def left(self) -> float:
        """Remaining seconds of the budget."""
        return self.spec.budget_s - (time.perf_counter() - self.began)

    def sections(self) -> Iterator[tuple[Section, Callable[[], Any]]]:
        """The selected sections, in order."""
        sections: dict[Section, Callable[[], Any]] = {
            "environment": partial(environment, self.device),
            "rates": lambda: gpu_rates.peak_rates(self.models),
            "attention": lambda: gpu_rates.attention(self.models),
            "parity": lambda: gpu_checks.parity(self.models),
            "identity": lambda: gpu_checks.identity(self.models),
            "speed": lambda: list(self.speed()),
            "published": self.compare_published,
            "peers": lambda: list(beside_card(self.models, self.spec.peers or (), self.spec.repeats, self.left)),
            "memory": lambda: gpu_checks.memory(self.models),
            "halving": lambda: gpu_checks.out_of_memory(self.models),
            "generate": self.generate,
        }
        for name in self.spec.only or SECTIONS:
            if name not in ("published", "peers") or getattr(self.spec, name) is not None:
                yield name, sections[name]

    def card(self) -> Card:
        """This card with its measured rates."""
        rates = self.found.get("rates") or gpu_rates.peak_rates(self.models)
        memory = torch.cuda.get_device_properties(self.device).total_memory if self.models.on_gpu else 0
        return gpu_rates.measured_card(name_of(self.device), rates, memory / 1e9)

    def speed(self) -> Iterator[dict[str, Any]]:
        for row in gpu_rates.speed(self.models, self.card(), self.spec.repeats, self.left):
            say(describe(row))
            yield row

    def compare_published(self) -> list[dict[str, Any]]:
        assert self.spec.published is not None
        size = self.models.size
        published = PublishedCode(self.spec.published, size.drafter, size.refiner, size.vqvae, self.device)
        cells = [(n, batch) for batch in size.batches for n in (size.draft_steps, *size.others, None)]
        found = []
        for draft_steps, batch in cells:
            if self.left() < 20:
                break
            found.append(compare(published, self.models, batch, draft_steps, self.spec.repeats))
            say(" ".join(f"{name} {value}" for name, value in rounded(found[-1]).items()))
        return found

    def generate(self) -> dict[str, Any]:
        """Run `generate` in its own processes, after this one has freed its memory."""
        self.loaded = None
        free_memory(self.device)
        return generate(SIZES[self.spec.size], self.device, self.spec.images, max(GENERATE_S, self.left()))

    def run(self) -> dict[str, Any]:
        """Run all sections. One that fails is reported and does not stop the others."""
        for name, work in self.sections():
            if self.left() <= 0:
                self.found[name] = {"left_out": f"{self.spec.budget_s:g} s are over (--budget-s)"}
                continue
            began = time.perf_counter()
            say(f"== {name}")
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                try:
                    found = work()
                except TandemError:
                    raise
                except Exception as error:
                    wrong = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
                    found = {"wrong": [wrong], "trace": last_calls(error)}
            found = {"rows": found} if isinstance(found, list) else found
            if messages := sorted({str(warning.message)[:200] for warning in warned}):
                found["warnings"] = messages
            self.found[name] = rounded(found) | {"s": round(time.perf_counter() - began, 1)}
            for key, value in self.found[name].items():
                if key != "rows":
                    say(f"   {key}: {value}")
            self.save()
        return self.found

    def save(self) -> None:
        if self.spec.out is not None:
            self.spec.out.mkdir(parents=True, exist_ok=True)
            write_whole(self.spec.out / "card.json", json.dumps(self.found, indent=1) + "\n")


def run(spec: BenchCardSpec) -> dict[str, Any]:
    """Check and measure; tables on stderr, one JSON object on stdout. JobError if a check fails."""
    check = CardCheck(spec)
    found = check.run()
    print_tables(name_of(check.device), found)
    print(json.dumps(found), flush=True)
    if wrong := [f"{name}: {line}" for name, part in found.items() for line in part.get("wrong", ())]:
        for line in wrong:
            say(line)
        raise JobError(f"{len(wrong)} checks failed, the first: {wrong[0]}")
    return found


def environment(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "device": name_of(device)}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        query = ("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader")
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        found |= {
            "compute_capability": f"{about.major}.{about.minor}",
            "memory_gb": about.total_memory / 1e9,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver, clock, power": driver,
        }
    return found


def last_calls(error: Exception) -> list[str]:
    """The calls that ended in the error, without the machine's folders."""
    calls = traceback.extract_tb(error.__traceback__)[-3:]
    return [f"{Path(call.filename).name}:{call.lineno} {call.name}: {call.line}" for call in calls]


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"no GPU ({platform.machine()})"


def describe(row: dict[str, Any]) -> str:
    stages = ", ".join(f"{key[:-3]} {row[key]:.1f}" for key in ("draft_ms", "refine_ms", "decode_ms") if key in row)
    steps = "plain VAR" if row["draft_steps"] is None else f"N = {row['draft_steps']}"
    times = f" ({stages} ms)" if stages else ""
    return f"{row['way']}, {steps}, batch {row['batch']}: {row['images_per_s']:.1f} images/s{times}"


def rounded(value: Any) -> Any:
    """Round all floats to four digits, recursively."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def print_tables(card: str, found: dict[str, Any]) -> None:
    columns = {
        "speed": (
            "way",
            "draft_steps",
            "batch",
            "draft_ms",
            "refine_ms",
            "decode_ms",
            "all_ms",
            "images_per_s",
            "roofline_images_per_s",
        ),
        "published": ("draft_steps", "batch", "published_images_per_s", "images_per_s", "ratio"),
    }
    if rows := found.get("peers", {}).get("rows"):
        print_peers(rows)
    for name, keys in columns.items():
        if rows := found.get(name, {}).get("rows"):
            table = Table(*(key.replace("_", " ") for key in keys), title=f"{name}: {card}")
            for row in rows:
                cells = {**row, "draft_steps": row["draft_steps"] or "plain VAR"}
                table.add_row(*(str(cells.get(key, "")) for key in keys))
            Console(stderr=True).print(table)
