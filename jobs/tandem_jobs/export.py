"""`tandem export`: the pictures of any source as an `.npz` file for the field's evaluators, or as a dataset."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from tandem.errors import InputError
from tandem.user_files import check_local
from tandem_jobs.export_dataset import export_dataset
from tandem_jobs.options.flags import POSITIONAL
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.interrupt import interrupted_by_sigterm
from tandem_jobs.run.progress import RunProgress, say
from tandem_workers.dataset.formats import FormatName
from tandem_workers.pictures.npz_file import NpzFile
from tandem_workers.pictures.npz_writer import check_free, write_npz
from tandem_workers.pictures.picture_block import PictureSource
from tandem_workers.pictures.read_ahead import count_pictures
from tandem_workers.pictures.source import open_pictures
from tandem_workers.storage.places import open_store

EXAMPLES = """examples:
  tandem export out --to npz out.npz                     for the evaluator of guided-diffusion (ADM): arr_0, arr_1
  tandem export s3://bucket/dataset --to npz samples.npz
  tandem export imagenet/train --to webdataset s3://bucket/imagenet
  tandem export s3://bucket/dataset --to folder files    plain image files, to look at
  tandem export samples.npz --to parquet samples

DATASET is a dataset of Tandem in any format, class folders of images (ImageNet's layout), .tar files (webdataset),
.parquet files with a column of images, or an .npz file; a folder, a file or an s3:// address.

npz: arr_0 is uint8 [n, H, W, 3], arr_1 the labels, int64 [n], if every picture has one. All pictures have one size.
OUT is a file of this machine; it appears when it is complete.

folder, webdataset, parquet: OUT is a dataset of Tandem with shards, manifest and card, for tandem ls and verify.
PNG, JPEG and WebP files keep their bytes, and labels their class names; other pictures become PNG. The same command
resumes an export that was interrupted.

One process does it all, without Ray: it waits for disks and networks most of the time."""


SHARD_SIZE = 1000


class ExportSpec(Spec):
    """Write the pictures of a dataset in another form."""

    dataset: Annotated[str, POSITIONAL] = Field(description="folder, file or s3:// address of the pictures")
    out: Annotated[str, POSITIONAL] = Field(
        description="file ending in .npz to write; else folder or s3://bucket/prefix"
    )
    to: Literal["npz", FormatName] = Field(description="the form of OUT")
    shard_size: PositiveInt | None = Field(None, description=f"pictures per shard; default: {SHARD_SIZE}")
    overwrite: bool = Field(False, description="replace an existing OUT")


def run(spec: ExportSpec) -> dict[str, Any]:
    """Export, with progress and notes on stderr, and one JSON line on stdout."""
    result = export_npz(spec) if spec.to == "npz" else export_shards(spec, spec.to)
    print(json.dumps(result), flush=True)
    return result


def export_npz(spec: ExportSpec) -> dict[str, Any]:
    """Write OUT.npz. InputError or OutputError, before anything is read if possible; nothing half written is left."""
    if spec.shard_size:
        raise InputError(f"--shard-size: expected none, as an .npz file has no shards, got {spec.shard_size}")
    path = npz_path(spec.out)
    check_apart(spec.dataset, spec.out)
    check_free(path, spec.overwrite)
    source, counts = open_source(spec.dataset)
    with interrupted_by_sigterm(), RunProgress(sum(counts)) as progress:
        shape, labelled = write_npz(path, source, counts, spec.overwrite, progress.add)
    if not labelled:
        say("not every picture has a label, so there is no arr_1")
    say(f"{path}: arr_0 uint8 {list(shape)}{f', arr_1 int64 [{shape[0]}]' if labelled else ''}")
    return {"out": str(path), "to": spec.to, "images": shape[0], "height": shape[1], "width": shape[2]}


def export_shards(spec: ExportSpec, to: FormatName) -> dict[str, Any]:
    """Write OUT as a dataset of Tandem, or what is missing of it."""
    store = open_store(spec.out)
    check_apart(spec.dataset, spec.out)
    source, counts = open_source(spec.dataset)
    return export_dataset(source, counts, store, to, spec.shard_size or SHARD_SIZE, spec.overwrite)


def npz_path(out: str) -> Path:
    """OUT as the path of a file. InputError for an address, or another extension."""
    try:
        check_local(out)
    except ValueError as error:
        raise InputError(f"OUT: {error}", "an .npz file is written on this machine; copy it from here") from None
    path = Path(os.path.abspath(os.path.expanduser(out)))
    if path.suffix != ".npz":
        raise InputError(f"OUT: expected a name *.npz, got {out}")
    return path


def check_apart(dataset: str, out: str) -> None:
    """InputError if OUT is inside DATASET or around it, where its files would be taken for pictures of DATASET."""
    inner, outer = (place_of(text) for text in (out, dataset))
    if inner == outer or inner.startswith(f"{outer}/") or outer.startswith(f"{inner}/"):
        raise InputError(f"OUT: expected a place apart from DATASET, got {out} and {dataset}")


def place_of(text: str) -> str:
    """An address without slashes at its end, or the real path of a file or folder."""
    return text.rstrip("/") if "://" in text else os.path.realpath(os.path.expanduser(text))


def open_source(dataset: str) -> tuple[PictureSource, list[int]]:
    """The pictures of DATASET, and their number in each block. Prints what is left out. InputError if it is damaged,
    as far as that is known before its pictures are read."""
    source = open_pictures(dataset)
    for note in source.notes:
        say(f"note: {note}")
    say(f"{source.place}: {source.kind}, counting pictures")
    if isinstance(source, NpzFile):
        source.check()
    return source, count_pictures(source)
