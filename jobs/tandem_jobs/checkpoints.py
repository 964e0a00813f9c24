"""`tandem inspect FILE` identifies a checkpoint; `tandem convert FILE OUT.safetensors` writes it in our own form."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from safetensors import SafetensorError

from tandem.checkpoints.checkpoint_reader import one_line
from tandem.checkpoints.fine_tuning import RECIPE
from tandem.checkpoints.weights import Checkpoint, aside, convert_checkpoint, open_all, open_checkpoint
from tandem.config import VAR_PRESETS, to_dict
from tandem.errors import InputError, OutputError
from tandem.zoo import FILES
from tandem_jobs.options.flags import POSITIONAL
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.progress import say
from tandem_workers.models.fetch import is_remote
from tandem_workers.models.model_set import DTYPES, Role
from tandem_workers.models.sources import LocalFile, local_file

KINDS = {"vqvae": "VQVAE (image tokenizer)", "var": "VAR (drafter or refiner)"}
SHOWN_BYTES = 256 << 20  # larger files have a progress bar
EXAMPLES = """examples:
  tandem inspect ar-ckpt-best.pth
  tandem convert ar-ckpt-best.pth drafter.safetensors --role drafter
  tandem convert ar-ckpt-best.pth vqvae.safetensors --role vqvae
  tandem convert var_d30.pth var_d30.safetensors --dtype bfloat16
  tandem inspect hf://FoundationVision/var/var_d16.pth

Wrapped files are loaded too: state dicts inside a trainer's dictionaries, under prefixes (module., _orig_mod.), in half
precision. If a file has plain and averaged (EMA) weights, the averaged ones are taken; convert --part takes others, by
the name that inspect prints."""


class InspectSpec(Spec):
    """Identify a checkpoint: kind, part of the file, config, dtypes, hash. Every tensor is checked."""

    file: Annotated[str, POSITIONAL] = Field(
        description="weights file: a path, an address (hf://, https://, s3://), or a published name (tandem models)"
    )


class ConvertSpec(Spec):
    """Write one model of a weights file as safetensors with its config in the header."""

    file: Annotated[str, POSITIONAL] = Field(
        description="weights file: a path, an address (hf://, https://, s3://), or a published name (tandem models)"
    )
    out: Annotated[Path, POSITIONAL] = Field(description="file to write, with the extension .safetensors")
    role: Role | None = Field(None, description="which model, if the file holds a VAR and a VQVAE")
    part: str | None = Field(None, description="which of several parts, by the name that 'tandem inspect' prints")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="dtype of the weights; default: as in the file"
    )
    overwrite: bool = Field(False, description="replace an existing OUT")


def run_inspect(spec: InspectSpec) -> list[dict[str, Any]]:
    """Print a table on stderr and a JSON object on stdout for each model. CheckpointError if one does not load."""
    file = weights_file(spec.file)
    origin = {"source": file.source, "sha256": file.sha256}
    described = [describe(checkpoint.check()) | origin for checkpoint in open_all(file.path)]
    for about in described:
        table = Table("property", "value", title=str(spec.file), show_header=False)
        for name, value in about.items():
            table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        Console(stderr=True).print(table)
        print(json.dumps(about))
    return described


def weights_file(source: str) -> LocalFile:
    """The file that a source names. InputError for names of no file, or of several."""
    if source in FILES:
        files = sorted(set(FILES[source].values()))
        if len(files) > 1:
            hint = f"they are {', '.join(map(str, files))}"
            raise InputError(f"expected one weights file, got {source}, which has {len(files)}", hint)
        return local_file(str(files[0]))
    if source in VAR_PRESETS:
        raise InputError(
            f"expected a weights file, got the preset {source}, which has none", "tandem models lists files"
        )
    return local_file(source)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "kind": KINDS[checkpoint.kind],
        "part": checkpoint.part.name,
        "choice": checkpoint.choice,
        "left_out": checkpoint.part.left_out,
        **to_dict(checkpoint.config),
        "parameters": checkpoint.num_parameters,
        "tensors": len(checkpoint.tensors),
        "dtypes": checkpoint.dtypes,
        "megabytes": round(checkpoint.num_bytes / 1e6, 1),
        "classes": list(checkpoint.classes or ()),
        "fine_tuned": vars(checkpoint.fine_tuned),
        "recipe": checkpoint.header.get(RECIPE, {}),
    }


def run_convert(spec: ConvertSpec) -> Path:
    """Write the file and report its model. Raises CheckpointError, or OutputError if OUT exists."""
    if spec.out.suffix != ".safetensors" or is_remote(str(spec.out)):
        raise InputError(f"OUT: expected a local file *.safetensors, got {spec.out}")
    if not spec.out.parent.is_dir():
        raise OutputError(f"{spec.out}: no such folder: {spec.out.parent}")
    check_free(spec)
    file = weights_file(spec.file)
    kind = None if spec.role is None else "vqvae" if spec.role == "vqvae" else "var"
    checkpoint = open_checkpoint(file.path, kind, spec.part).check()
    origin = file.source if is_remote(file.source) else file.path.name
    made_from = f"{origin}, sha256 {file.sha256}" + (f", part {p}" if (p := checkpoint.part.name) else "")
    dtype = DTYPES[spec.dtype] if spec.dtype else None
    check_free(spec)
    try:
        with shown(aside(spec.out), checkpoint.num_bytes):
            convert_checkpoint(checkpoint, spec.out, dtype, made_from)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{spec.out}: cannot be written: {one_line(error)}") from error
    say(f"{spec.out}: {KINDS[checkpoint.kind]}, from {checkpoint.choice or checkpoint.part.label} of {spec.file}")
    return spec.out


def check_free(spec: ConvertSpec) -> None:
    if spec.out.exists() and not spec.overwrite:
        raise OutputError(f"{spec.out} is already there", "--overwrite replaces it")


@contextmanager
def shown(growing: Path, total_bytes: int) -> Iterator[None]:
    """Context manager: a progress bar for a large file that is being written, on a terminal."""
    console = Console(stderr=True)
    if total_bytes < SHOWN_BYTES or not console.is_terminal:
        yield
        return
    done = threading.Event()
    columns = (TextColumn("writing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total_bytes)

        def follow() -> None:
            while not done.wait(0.2):
                progress.update(task, completed=growing.stat().st_size if growing.exists() else 0)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
