"""`tandem models`: lists all models that can be named on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from tandem.checkpoints.weights import build_empty, open_checkpoint
from tandem.config import VAR_PRESETS, VarConfig, VqvaeConfig
from tandem.zoo import FILES, weights_path
from tandem_jobs.options.spec import Spec
from tandem_workers.models.sources import PUBLISHED, Published

CAPTION = (
    "Published files are fetched from their authors' repositories on the Hugging Face hub when a command names them."
)


class ModelsSpec(Spec):
    """List the embedded model, the files published by VAR's and CoDe's authors, and presets, with their sizes."""

    json_lines: bool = Field(False, description="one JSON object a line instead of a table")


def run_models(spec: ModelsSpec) -> list[dict[str, Any]]:
    """Print every model that `--drafter`, `--refiner` and `--vqvae` know by name. Needs no network."""
    rows = [row for name in FILES for row in embedded_rows(name)]
    rows += [published_row(name, file) for name, file in PUBLISHED.items()]
    rows += [preset_row("drafter or refiner", name, config) for name, config in VAR_PRESETS.items()]
    if spec.json_lines:
        for row in rows:
            print(json.dumps(row))
        return rows
    columns = ("name", "role", "parameters", "image", "tokens", "size", "licence", "weights")
    table = Table(*columns, title="models", caption=CAPTION)
    for row in rows:
        size = f"{row['megabytes']:,.1f} MB{' (counted)' if row['counted'] else ''}" if row["megabytes"] else ""
        parameters = f"{row['parameters'] / 1e6:,.1f} M"
        texts = (row["name"], row["role"], parameters, row["image"], str(row["tokens"]), size)
        table.add_row(*texts, row["licence"], row["weights"])
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return rows


def published_row(name: str, file: Published) -> dict[str, Any]:
    """A published file, with its size on the hub; if unknown, 4 bytes per parameter."""
    row = preset_row(file.role, name, file.config)
    size = file.size_bytes or 4 * row["parameters"]
    about = {"megabytes": size / 1e6, "counted": file.size_bytes is None, "licence": file.licence}
    tuned = str(file.fine_tuned)
    return row | about | {"weights": f"{file.address}, {tuned}" if file.fine_tuned.needs_no_guidance else file.address}


def embedded_rows(name: str) -> Iterator[dict[str, Any]]:
    """A row for each file, with all roles that it has."""
    roles: dict[Path, list[str]] = {}
    for role, path in FILES[name].items():
        roles.setdefault(path, []).append(role)
    return (embedded_row(" or ".join(able), name, path) for path, able in roles.items())


def embedded_row(role: str, name: str, path: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(path)
    row, about = preset_row(role, name, checkpoint.config), str(checkpoint.fine_tuned)
    weights = f"with Tandem, {about}" if about else "with Tandem"
    return row | {"megabytes": path.stat().st_size / 1e6, "licence": "Apache-2.0", "weights": weights}


def preset_row(role: str, name: str, config: VarConfig | VqvaeConfig) -> dict[str, Any]:
    pixels = config.image_size if isinstance(config, VqvaeConfig) else config.pyramid.grid * 16
    if isinstance(config, VarConfig) and name in FILES:
        vqvae = open_checkpoint(weights_path("vqvae")).config
        assert isinstance(vqvae, VqvaeConfig)
        pixels = vqvae.image_size
    return {
        "name": name,
        "role": role,
        "parameters": sum(p.numel() for p in build_empty(config).parameters()),
        "image": f"{pixels} px",
        "tokens": config.pyramid.num_tokens,
        "megabytes": 0.0,
        "counted": False,
        "licence": "",
        "weights": "--random-weights",
    }
