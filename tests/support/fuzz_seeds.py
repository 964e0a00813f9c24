"""Valid inputs of every reader that is fuzzed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from support.fuzzing import Seed
from support.sample_drafts import drafts_of
from support.sample_shards import sample_dataset
from support.tiny_models import save_tiny_models, tiny_var
from support.wrapped_files import published_tensors
from tandem_cluster.profile_file import read_profile

PLAN_FILE = Path(__file__).parents[2] / "cluster" / "example_plan.json"


def valid_inputs(folder: Path) -> list[Seed]:
    """One or more of every reader. Leaves a dataset and drafts in the folder."""
    models = save_tiny_models(folder / "models")
    dataset = Path(sample_dataset(folder / "dataset", "webdataset").uri)
    drafts = Path(drafts_of(folder / "drafts", 4).store.uri)
    rows = [
        {"label": i % 4, "count": 1 + i % 2, "cfg": 1.5, "top_k": 3, "temperatures": [1.0, 0.5], "seed": i, "note": "a"}
        | {"place": {"x": i, "tags": ["a", None]}, "when": "2026-01-02"}
        for i in range(6)
    ]
    lines = "\n".join(map(json.dumps, rows)).encode()
    header = b"class_name,count,cfg,temperatures,draft_steps,seed,note\n"
    csv = header + b'ant,1,1.5,"1.1,1",2,7,x\nbee,,,,,,"a,\nb"\n2,3,,,1,,\n'
    spec = b"out: o\nclasses: [ant, bee]\nimages: 5\nseed: 7\ntemperatures: 1.1, 1.0\nplacement: cpu\nkeep-tokens: yes"
    env = b"pip: [a, b]\nenv_vars: {A: '1', B: '2'}\nconfig:\n  setup_timeout_seconds: 60\nworking_dir: s3://b/x\n"
    profile = read_profile("paper-l20")
    few = profile.model_copy(update={"stages": profile.stages[:1] + profile.stages[-6:]})
    wrapped = {"trainer": {"var_wo_ddp": published_tensors(tiny_var(1, 0))}, "epoch": 3}
    archive = io.BytesIO()
    torch.save(wrapped, archive)
    seeds = [
        Seed("labels", ".csv", csv, "text"),
        Seed("labels", ".jsonl", lines, "lines"),
        Seed("labels", ".parquet", table_of(rows), "table"),
        Seed("spec", ".yaml", spec, "yaml"),
        Seed("runtime env", ".yaml", env, "yaml"),
        Seed("class names", ".txt", b"ant\nbee, honey bee\ncat\ndog\n", "text"),
        Seed("class names", ".csv", b"label,name,synonyms\n0,ant,\n1,bee,honey bee\n2,cat,\n3,dog,\n", "text"),
        Seed("class names", ".json", b'{"0": "ant", "1": ["bee", "honey bee"], "2": "cat", "3": "dog"}', "json"),
        Seed("profile", ".json", few.model_dump_json(exclude_none=True).encode(), "json"),
        Seed("plan", ".json", PLAN_FILE.read_bytes(), "json"),
        Seed("weights", ".safetensors", Path(models["refiner"]).read_bytes(), "safetensors"),
        Seed("weights", ".safetensors", Path(models["vqvae"]).read_bytes(), "safetensors"),
        Seed("weights", ".pth", archive.getvalue(), "archive"),
        Seed("record", ".entry", (dataset / "manifest/00000.json").read_bytes(), "sealed"),
        Seed("record", ".job", (dataset / "job.json").read_bytes(), "sealed"),
        Seed("record", ".success", (dataset / "_SUCCESS").read_bytes(), "sealed"),
        Seed("drafts", ".job", (drafts / "job.json").read_bytes(), "sealed"),
        Seed("drafts", ".parquet", (drafts / "shards/00000.parquet").read_bytes(), "table"),
    ]
    kinds = ("png", "jpg", "gif", "tiff", "webp")
    return seeds + [Seed("pictures", f".{kind}", picture(kind), "binary") for kind in kinds]


def table_of(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((12, 9), 50).convert("RGB").save(out, {"jpg": "jpeg"}.get(kind, kind))
    return out.getvalue()
