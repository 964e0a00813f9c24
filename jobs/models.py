"""`tandem models` lists what there is."""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from jobs.spec import Spec
from tandem.config import VAR_PRESETS, VQVAE_PRESET, VarConfig, VqvaeConfig
from tandem.weights import build_empty, open_checkpoint
from tandem.zoo import ROLES, weights_path
from workers.models import EMBEDDED, VQVAE_PRESET_NAME


class ModelsSpec(Spec):
    """List the embedded model and the presets, with their sizes."""

    json_lines: bool = Field(False, description="one JSON object a line instead of a table")


def run_models(spec: ModelsSpec) -> list[dict[str, Any]]:
    """Print every model that `--drafter`, `--refiner` and `--vqvae` know by name."""
    rows = [embedded_row(role) for role in ROLES]
    rows.append(preset_row("vqvae", VQVAE_PRESET_NAME, VQVAE_PRESET))
    rows += [preset_row("drafter or refiner", name, config) for name, config in VAR_PRESETS.items()]
    if spec.json_lines:
        for row in rows:
            print(json.dumps(row))
        return rows
    table = Table("name", "role", "parameters", "image", "tokens", "weights", title="models")
    for row in rows:
        size = f"{row['megabytes']:.1f} MB here" if row["megabytes"] else "published file, or --random-weights"
        table.add_row(
            row["name"],
            row["role"],
            f"{row['parameters'] / 1e6:,.1f} M",
            row["image"],
            str(row["tokens"]),
            size,
        )
    Console().print(table)
    return rows


def embedded_row(role: str) -> dict[str, Any]:
    path = weights_path(role)
    row = preset_row(role, EMBEDDED, open_checkpoint(path).config)
    return row | {"megabytes": path.stat().st_size / 1e6}


def preset_row(role: str, name: str, config: VarConfig | VqvaeConfig) -> dict[str, Any]:
    pixels = config.image_size if isinstance(config, VqvaeConfig) else config.pyramid.grid * 16
    if isinstance(config, VarConfig) and name == EMBEDDED:
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
    }


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv[1:1] = ["models"]
    sys.exit(main())
