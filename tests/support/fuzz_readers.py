"""The readers that are fuzzed, each with valid inputs, and a program that reads a range of damaged ones.

python tests/support/fuzz_readers.py 0 500      prints a JSON line an input: its number, reader, seconds, bytes, outcome
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from support.fuzz_seeds import valid_inputs
from support.fuzzing import inputs
from support.tiny_models import CLASS_NAMES
from tandem.checkpoints.weights import open_all
from tandem.class_names import ClassNames
from tandem.config import Pyramid, SamplingConfig
from tandem.errors import TandemError
from tandem.image_folder import list_image_folder
from tandem_cluster.plan_file import groups_of, read_plan
from tandem_cluster.planner import Request, make_plan
from tandem_cluster.profile_file import read_profile
from tandem_jobs.bench.peak_memory import reset_resident, status_bytes
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.labels.label_file import read_label_file
from tandem_jobs.labels.row_identity import row_identity
from tandem_jobs.labels.settings_columns import fill_settings
from tandem_jobs.options.spec import as_flags, parse
from tandem_jobs.options.yaml_file import load_yaml
from tandem_workers.dataset.drafts import open_drafts
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.formats import DatasetFormat, shard_files
from tandem_workers.dataset.job_record import read_job
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import EncodedShard
from tandem_workers.dataset.success_file import read_success
from tandem_workers.models.class_files import read_class_names
from tandem_workers.storage.places import open_store

NAMES = ClassNames(CLASS_NAMES)
PYRAMID = Pyramid((1, 2, 3, 4))
MAX_MESSAGE = 1000  # characters of a line
ADVICE = ("weights_only", "set_int_max_str_digits", "unicode string", "Traceback", "Errno")


def read_labels(path: Path) -> None:
    """A label file, and what becomes of its columns: settings, identity, and the first shard in every format."""
    rows = read_label_file(str(path), NAMES)
    if rows.unfilled_settings is not None:
        rows = fill_settings(rows, SamplingConfig(), 2, 0, PYRAMID, "--labels")
    row_identity(rows, open_store(str(path.parent / "none")), False)
    n = min(len(rows), 4)
    for name in ("webdataset", "parquet", "folder"):
        fmt = DatasetFormat(name, "png", CLASS_NAMES, 0, 2)
        try:
            if rows.extra is not None:
                fmt.check_extra(rows.extra)
        except TandemError:
            continue  # said before the job starts
        carried = {"index": np.arange(n, dtype=np.int64), "label": rows.label[:n], "extra": rows.carried(range(n))}
        shard_files(EncodedShard(shard=0, images=[b"x"] * n, **carried), fmt)


def read_spec(path: Path) -> None:
    """Options of a file, which as flags are the same options."""
    spec = parse(GenerateSpec, ["--spec", str(path)], "tandem generate")
    assert parse(GenerateSpec, as_flags(spec), "tandem generate") == spec.model_copy(update={"spec": None})


def read_times(path: Path) -> None:
    """A profile, and the plan that is made from it."""
    profile = read_profile(str(path))
    plan = make_plan([profile], Request({profile.kind: 3}, 1e6, deadline_h=1.0, price_per_h={profile.kind: 1.0}))
    json.dumps(plan.best.to_dict())


def read_names(path: Path) -> None:
    names = read_class_names(str(path), len(CLASS_NAMES))
    names.matching("a")
    json.dumps(names.names).encode()


def read_entry(path: Path) -> None:
    """A dataset of which one record is damaged."""
    store = open_store(str(path.parent / "dataset"))
    target = Path(store.uri) / RECORDS[path.suffix]
    kept = target.read_bytes()
    try:
        target.write_bytes(path.read_bytes())
        read_job(store)
        Manifest(store).totals()
        read_success(store)
    finally:
        target.write_bytes(kept)


def read_drafts(path: Path) -> None:
    """Drafts of which one file is another, its manifest entry made for it."""
    folder = path.parent / "drafts"
    entry, shard, job = (folder / name for name in ("manifest/00000.json", "shards/00000.parquet", "job.json"))
    kept = {file: file.read_bytes() for file in (entry, shard, job)}
    try:
        data = path.read_bytes()
        (job if path.suffix == ".job" else shard).write_bytes(data)
        if path.suffix == ".parquet":
            whole = ManifestEntry.from_json(kept[entry])
            file = replace(whole.files[0], size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            entry.write_bytes(replace(whole, files=(file,)).to_json())
        drafts = open_drafts(open_store(str(folder)))
        drafts.extra_schema(), drafts.row_settings, drafts.seed, drafts.sampling
        drafts.read(0, drafts.draft_steps)
    finally:
        for file, content in kept.items():
            file.write_bytes(content)


def read_pictures(path: Path) -> None:
    """An image folder with one damaged picture."""
    target = path.parent / "pictures" / "ant" / f"0{path.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
    try:
        for _, pixels in list_image_folder(path.parent / "pictures").read_all():
            assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    finally:
        target.unlink()


def read_weights(path: Path) -> None:
    for checkpoint in open_all(path):
        checkpoint.check()
        json.dumps([checkpoint.classes, checkpoint.choice])


RECORDS = {".entry": "manifest/00000.json", ".job": "job.json", ".success": "_SUCCESS"}
READERS: dict[str, Callable[[Path], object]] = {
    "labels": read_labels,
    "spec": read_spec,
    "runtime env": lambda path: load_yaml("--runtime-env", path),
    "class names": read_names,
    "profile": read_times,
    "plan": lambda path: groups_of(read_plan(path).best, "none"),
    "weights": read_weights,
    "record": read_entry,
    "drafts": read_drafts,
    "pictures": read_pictures,
}


def outcome(reader: str, path: Path) -> str:
    """ "read" or "refused", else what is wrong with how a reader took an input."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            READERS[reader](path)
    except TandemError as error:
        lines = str(error).splitlines()
        if not lines or (len(lines) > 1 and reader != "spec"):
            return f"{len(lines)} lines: {error}"
        if long := [line for line in lines if len(line) > MAX_MESSAGE]:
            return f"a line of {len(long[0])} characters: {long[0][:200]}"
        if advice := [word for word in ADVICE if word in str(error)]:
            return f"{advice[0]} in: {error}"
        return "refused"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]} at {Path(where.filename).name}:{where.lineno}"
    return "read"


def main(start: int, stop: int) -> None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        seeds = valid_inputs(Path(folder))
        for seed in seeds:
            found = outcome(seed.reader, write(Path(folder), seed.ending, seed.data))
            assert found == "read", f"an undamaged input of {seed.reader}{seed.ending}: {found}"
        for number, seed, data in inputs(seeds, start, stop):
            print(json.dumps({"number": number, "reader": seed.reader + seed.ending}), flush=True)
            reset_resident(cpu)
            resident, began = status_bytes("VmRSS"), time.monotonic()
            found = outcome(seed.reader, write(Path(folder), seed.ending, data))
            seconds, taken = time.monotonic() - began, status_bytes("VmHWM") - resident
            print(json.dumps({"seconds": round(seconds, 2), "bytes": taken, "outcome": found}), flush=True)


def write(folder: Path, ending: str, data: bytes) -> Path:
    path = folder / f"input{ending}"
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
