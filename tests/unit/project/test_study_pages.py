"""What documents say of the embedded models is what `tandem study` has written into docs/runs/studies."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tandem_jobs.study.studies import STUDIES

ROOT = Path(__file__).parents[3]
STORED = ROOT / "docs" / "runs" / "studies"
MAX_BYTES = 300_000


def text_of(path: str) -> str:
    return " ".join((ROOT / path).read_text().split())


def values_of(name: str) -> dict[str, Any]:
    return json.loads((STORED / f"{name}.json").read_text())


def share(estimate: dict[str, float]) -> str:
    """As documents write shares: 98.6 % [98.0, 99.0]."""
    value, low, high = (f"{100 * estimate[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value} % [{low}, {high}]"


def distance(estimate: dict[str, float]) -> str:
    return "{value:.2f} [{low:.2f}, {high:.2f}]".format(**estimate)


@pytest.mark.parametrize("path", sorted(STORED.glob("*.json")), ids=lambda path: path.stem)
def test_the_document_of_studies_says_what_came_out(path):
    values, document = json.loads(path.read_text()), text_of("docs/STUDIES.md")
    assert path.stem in STUDIES and path.with_suffix(".md").is_file()
    assert values["findings"] and [text for text in values["findings"] if " ".join(text.split()) not in document] == []
    assert f"runs/studies/{path.stem}.md" in document


def test_reports_name_no_folder_of_the_machine_that_made_them():
    reports = [path for path in STORED.rglob("*") if path.suffix in (".json", ".md")]
    assert [path.name for path in reports if re.search(r'["( ]/(work|home|root|tmp|Users)/', path.read_text())] == []


def test_files_of_studies_are_small():
    assert [path.name for path in STORED.iterdir() if path.stat().st_size > MAX_BYTES] == []


def test_every_study_is_in_the_document():
    document = text_of("docs/STUDIES.md")
    assert [name for name in STUDIES if f"`{name}`" not in document] == []


def test_the_card_of_the_embedded_models_has_the_table_of_the_study():
    page = (STORED / "training-free.md").read_text()
    table = page.split("**Quality of every setting**")[1].strip().split("\n\n")[0]
    card = (ROOT / "code" / "tandem" / "zoo" / "README.md").read_text()
    assert table in card
    memorised = values_of("training-free")["memorisation"]
    assert all(f"{memorised[key]:.1f}" in card for key in ("samples", "heldout"))


def test_readme_has_the_figures_of_fine_tuning():
    settings = values_of("fine-tuned")["settings"]
    assert list(settings) == ["4", "5", "6"]
    tuned = [found["fine-tuned"]["frechet_distance"]["value"] for found in settings.values()]
    plain = [found["fine-tuned"]["frechet_minus"]["training-free"] for found in settings.values()]
    control = [found["fine-tuned"]["frechet_minus"]["control"] for found in settings.values()]
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| fine-tuned CoDe"))
    assert f"| {', '.join(f'{value:.2f}' for value in tuned)}; " in row
    assert f"; {', '.join(map(distance, plain))}; {', '.join(map(distance, control))} |" in row


def test_readme_and_benchmarks_have_the_figures_of_the_study():
    settings = values_of("training-free")["settings"]
    names = ("code-5", "drafter", "refiner")
    shares = {name: share(settings[name]["agreement"]) for name in names}
    assert f"| {shares['code-5']}, {shares['drafter']} |" in text_of("README.md")
    benchmarks = text_of("docs/BENCHMARKS.md")
    assert f"| {shares['code-5']} |" in benchmarks and f"| {shares['drafter']} and {shares['refiner']} |" in benchmarks
    distances = [distance(settings[name]["frechet_distance"]) for name in ("drafter", "code-5", "refiner")]
    assert f"| {', '.join(distances)} |" in benchmarks
