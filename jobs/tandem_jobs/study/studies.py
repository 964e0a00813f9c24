"""`tandem study --list`: what each study shows, needs and costs."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from tandem.errors import InputError
from tandem_jobs.options.spec import Spec

EXAMPLES = """examples:
  tandem study --list
  tandem study training-free --out studies
  tandem study gallery --out studies --images 24"""


@dataclass(frozen=True)
class Study:
    """
    Attributes:
        paper: which table or figure of the paper (arXiv 2411.17787) it makes.
        shows: the question that it answers.
        needs: beyond the models.
        cost: of the embedded models on two CPU cores with the default options.
        package: that the user has to install; the list says where it is missing.
    """

    paper: str
    shows: str
    needs: str
    cost: str
    package: str = ""

    @property
    def missing(self) -> list[str]:
        """What it needs and does not find here."""
        return [self.package] if self.package and importlib.util.find_spec(self.package) is None else []

    def to_json(self) -> dict[str, Any]:
        shown = {name: value for name, value in asdict(self).items() if name != "package"}
        return {**shown, "missing": self.missing}

    @property
    def row(self) -> tuple[str, ...]:
        lack = f" ({', '.join(self.missing)} is not installed here)" if self.missing else ""
        return self.paper, self.shows, self.needs + lack, self.cost


STUDIES: dict[str, Study] = {
    "training-free": Study(
        "Tables 2, 6, figure 3c",
        "what CoDe without fine-tuning costs in quality at every N, beside drafter and refiner alone",
        "real pictures; those of the embedded models are fetched by npm",
        "9 min",
    ),
    "tradeoff": Study(
        "Table 1, figure 5a",
        "quality against speed, memory and parameters",
        "the same, and a machine that does nothing else; images of training-free in --out are used again",
        "2 min after training-free, else 11 min",
    ),
    "scales": Study(
        "Table 4, figure 3a",
        "which scales need the large model: each in turn is made by a smaller one",
        "real pictures; three sizes or more over one VQVAE, as the embedded models have",
        "25 min",
    ),
    "fine-tuned": Study(
        "Table 2",
        "what fine-tuning of drafter and refiner for one N gains, beside a control; what a distilled pair loses",
        "fine-tuned files (--tuned N=DRAFTER,REFINER, --distilled DRAFTER,REFINER); real pictures",
        "6 min an N, 1 h with --images 24000",
    ),
    "memory": Study(
        "Table 3",
        "how much memory CoDe saves at each batch",
        "nothing: counted, no weights are loaded; --measure loads them",
        "10 s",
    ),
    "latency": Study(
        "figures 5b, 5c",
        "how fast plain VAR, CoDe and VQVAE decode are at each batch, and which scales take the time",
        "a machine that does nothing else",
        "4 min",
    ),
    "spectrum": Study(
        "figure 3b",
        "whether the first scales make the low frequencies and the last the high ones",
        "nothing",
        "5 min",
    ),
    "gallery": Study(
        "figures 2, 6, 9, 10",
        "the same seeds by plain VAR and by CoDe at each N, for the eye",
        "speed-ups in the captions: study latency with the same --out",
        "20 s",
    ),
    "edits": Study(
        "figure 7",
        "how often edits of held-out pictures show the class that was asked for, by the size of the box",
        "models of the embedded classes; real pictures, which are fetched by npm",
        "7 min",
    ),
    "no-reference": Study(
        "Table 5",
        "MUSIQ, CLIPIQA and NIQE of plain VAR and CoDe",
        "pyiqa and its files (PolyForm Noncommercial), installed by the user; NIQE needs pictures of 96 px",
        "by the scores",
        package="pyiqa",
    ),
}


class StudiesSpec(Spec):
    """List the studies: what each shows, needs and costs."""

    list: bool = Field(False, description="list them")


def run(spec: StudiesSpec) -> dict[str, Any]:
    """Print the list to stderr and as JSON to stdout. InputError without --list."""
    if not spec.list:
        names = ", ".join(STUDIES)
        raise InputError(
            f"expected tandem study NAME, NAME one of {names}, or --list", "tandem study --list tells more"
        )
    table = Table("study", "paper", "shows", "needs", "costs here", title="tandem study NAME --out FOLDER")
    for name, study in STUDIES.items():
        table.add_row(name, *study.row)
    Console(stderr=True).print(table)
    found = {name: study.to_json() for name, study in STUDIES.items()}
    print(json.dumps(found), flush=True)
    return found
