"""`tandem evaluate`: how good a dataset is, whichever way it was made, with the metrics of the field."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt
from rich.console import Console
from rich.table import Table

from tandem_jobs.evaluation.accuracy_score import RIDGE
from tandem_jobs.evaluation.bootstrap import GROUPS, ROUNDS
from tandem_jobs.evaluation.drawings import drawings
from tandem_jobs.evaluation.extraction import extract_missing
from tandem_jobs.evaluation.feature_arrays import SAMPLE
from tandem_jobs.evaluation.findings import evaluate
from tandem_jobs.evaluation.inception_score import SPLITS
from tandem_jobs.evaluation.inputs import ComparisonOptions, Inputs, open_inputs
from tandem_jobs.evaluation.kernel_distance import SUBSET_SIZE, SUBSETS
from tandem_jobs.evaluation.neighbours import NEAREST
from tandem_jobs.evaluation.report import Report
from tandem_jobs.run.progress import say
from tandem_jobs.run.shard_range import command_line
from tandem_jobs.run.versions import versions
from tandem_workers.dataset.card_section import check_card, write_section
from tandem_workers.storage.places import open_store

EXAMPLES = """examples:
  tandem evaluate emoji
  tandem evaluate emoji --reference pictures/train --out evaluation
  tandem evaluate s3://bucket/dataset --reference imagenet/val --test imagenet/test --features inception \\
      --inception inception-2015-12-05.pt
  tandem evaluate code --reference pictures/train --against drafter-alone --card
  tandem submit -- evaluate s3://bucket/dataset --reference s3://bucket/VIRTUAL_imagenet256_labeled.npz

DATASET, --reference, --against and --test: what generate wrote, class folders of images, tar or parquet files, or one
.npz file, on this machine or s3://. A reference may also be an .npz of statistics (mu, sigma).

Features are kept beside the pictures: a second evaluation reads them, and starts no Ray. Numbers are called FID, sFID,
KID and Inception Score only with --features inception, whose file does not come with the package."""


class EvaluateSpec(ComparisonOptions):
    """Measure how good a dataset is: against a reference, by a classifier, with 95 % intervals."""

    sample: PositiveInt = Field(
        SAMPLE, description="images of each set for precision, recall, density, coverage and kernel distance"
    )
    out: str | None = Field(None, description="folder or s3://bucket/prefix for report.json, report.md and plots")
    card: bool = Field(False, description="write the table into the card (README.md) of the dataset, if Tandem made it")


def run(spec: EvaluateSpec) -> dict[str, Any]:
    """A table on stderr, one JSON line on stdout, files in --out."""
    inputs = open_inputs(spec)
    out = open_store(spec.out) if spec.out else None
    if out:
        out.check()
    if spec.card:
        check_card(open_store(spec.dataset))
    extract_missing(list(inputs.works.values()), spec)
    with tempfile.TemporaryDirectory(prefix="tandem-evaluate-") as folder:
        findings = evaluate(inputs, Path(folder), spec.sample, settings(spec, inputs), say)
        report = findings.report
        pictures, undrawn = drawings(findings) if out else ({}, [])
    values = report.to_json()
    if out:
        out.replace("report.json", (json.dumps(values, indent=1) + "\n").encode())
        out.replace("report.md", as_page(report, sorted(pictures)).encode())
        for name, data in pictures.items():
            out.replace(name, data)
        out.clean()
    if spec.card:
        write_section(open_store(spec.dataset), report.to_markdown())
    print_report(report)
    for line in undrawn:
        say(line)
    if out:
        say(f"report: {out.uri}")
    print(json.dumps(values), flush=True)
    return values


def as_page(report: Report, pictures: Sequence[str]) -> str:
    """The report as a Markdown file, beside its pictures."""
    shown = "".join(f"\n![{name.removesuffix('.png').replace('_', ' ')}]({name})\n" for name in pictures)
    return f"# {report.dataset}\n\n{report.to_markdown()}{shown}"


def settings(spec: EvaluateSpec, inputs: Inputs) -> dict[str, Any]:
    """Everything that it takes to repeat the evaluation."""
    return {
        "command": command_line(),
        **versions(),
        "pictures": inputs.identities,
        "features": {part: work.files.place for part, work in inputs.works.items()},
        "sample": spec.sample,
        "neighbours": NEAREST,
        "kernel": {"subsets": SUBSETS, "largest_subset": SUBSET_SIZE},
        "splits": SPLITS,
        "bootstrap": {"groups": GROUPS, "rounds": ROUNDS},
        "classifier": {"steps": spec.classifier_steps} if spec.classifier_steps else {"ridge": RIDGE},
        "seed": 0,
    }


def print_report(report: Report) -> None:
    console = Console(stderr=True)
    table = Table(*report.columns, title=report.dataset)
    for row in report.rows():
        table.add_row(*row)
    console.print(table)
    for line in (report.about, *report.notes):
        say(line)
