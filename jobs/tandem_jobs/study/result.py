"""What a study gives: JSON with all numbers, a page in Markdown with the paper's rows beside ours, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from tandem.metrics import Estimate
from tandem.user_files import write_whole
from tandem_jobs.run.progress import say

Cell = str | int | float | Estimate | None


@dataclass(frozen=True)
class StudyTable:
    """Rows under headings. An `Estimate` is shown with its 95 % interval, None as an empty cell."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    def to_markdown(self) -> str:
        lines = [f"| {' | '.join(self.columns)} |", "|---" * len(self.columns) + "|"]
        lines += [f"| {' | '.join(map(shown, row))} |" for row in self.rows]
        return f"**{self.title}**\n\n" + "\n".join(lines) + "\n"

    def to_rich(self) -> Table:
        table = Table(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*map(shown, row))
        return table


@dataclass(frozen=True)
class StudyResult:
    """
    Attributes:
        name: of the study.
        heading: of its page.
        values: everything that was measured, and what is needed to repeat it; JSON values and estimates.
        tables: ours, with the paper's rows beside.
        pictures: file name without ".png" -> picture.
        findings: sentences on what came out, also where it disagrees with the paper.
        notes: sentences on what is missing, and what a reader must know.
    """

    name: str
    heading: str
    values: Mapping[str, Any]
    tables: Sequence[StudyTable] = ()
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    findings: Sequence[str] = ()
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return {"study": self.name, **self.values, "findings": list(self.findings), "notes": list(self.notes)}

    def to_markdown(self) -> str:
        parts = [f"# {self.heading}\n", *(f"{text}\n" for text in self.findings)]
        parts += [table.to_markdown() for table in self.tables]
        parts += [f"![{name.replace('-', ' ')}]({name}.png)\n" for name in self.pictures]
        parts += [f"{text}\n" for text in self.notes]
        return "\n".join(parts)


def report(result: StudyResult, out: Path) -> dict[str, Any]:
    """Write OUT/NAME.json, NAME.md and the pictures, and print tables to stderr and the JSON to stdout."""
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in result.pictures.items():
        picture.save(out / f"{name}.png")
    values = result.to_json()
    text = json.dumps(values, indent=1, default=vars)
    write_whole(out / f"{result.name}.md", result.to_markdown())
    write_whole(out / f"{result.name}.json", text + "\n")
    console = Console(stderr=True)
    for table in result.tables:
        console.print(table.to_rich())
    for line in (*result.findings, *result.notes):
        say(line)
    say(
        f"wrote {out / result.name}.md, .json{' and ' if result.pictures else ''}"
        f"{', '.join(f'{name}.png' for name in result.pictures)}"
    )
    values = json.loads(text)
    print(json.dumps(values), flush=True)
    return values


def from_here(label: str) -> str:
    """A model's source for a report: a file below the working folder by its way from there, as it was typed."""
    path, here = Path(label), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else label


def shown(cell: Cell) -> str:
    """A cell as text: numbers with four digits."""
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
