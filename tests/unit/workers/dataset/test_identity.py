"""The identity of a job: its keys are spelled in one file, and what was written is read back."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.sources import ROOT
from tandem.assembly import Preparation
from tandem.config import SamplingConfig
from tandem_workers.dataset import identity
from tandem_workers.dataset.identity import Identity, drafts_identity, job_identity, rows_identity
from tandem_workers.models.decode_settings import DecodeSettings

HASHES = {"drafter": "d" * 64, "vqvae": "v" * 64}
SAMPLING = SamplingConfig(cfg=2.0, top_k=5, top_p=0.9)
SETTINGS = DecodeSettings(3, 2, SAMPLING, 8, "bfloat16", 1, Preparation(int8=True), ("cfg", "seed"))
TELLING = {"weights_sha256", "decoding", "rows_sha256", "class_names_sha256", "how"}  # other keys are common words


def lookups(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """(name, key) of each `name[key]` and `name.get(key)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            yield ast.unparse(node.value), node.slice
        elif isinstance(node, ast.Call) and node.args and ast.unparse(node.func).endswith(".get"):
            yield ast.unparse(node.func).removesuffix(".get"), node.args[0]


def strings(tree: ast.AST) -> list[str]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def spells_keys(path: Path) -> bool:
    """Whether a file has a key that can be nothing else, or looks another one up in an identity."""
    tree = ast.parse(path.read_text())
    asked = [key for name, key in lookups(tree) if name.endswith(("identity", "decoding", "['identity']"))]
    return bool(TELLING.intersection(strings(tree))) or any(isinstance(key, ast.Constant) for key in asked)


def test_keys_are_spelled_in_one_file_and_once():
    folders = (ROOT / "workers" / "tandem_workers", ROOT / "jobs" / "tandem_jobs")
    files = [path for folder in folders for path in folder.rglob("*.py") if spells_keys(path)]
    others = {"study", "tune", "training"}  # reports, and the identities of token sets and trainings
    assert {path.stem for path in files if path.parent.name not in others} == {"identity"}
    found = strings(ast.parse(Path(identity.__file__).read_text()))
    assert all(found.count(key) == 1 for key in (*TELLING, "rows", "columns", "shard_size", "row_settings", "codec"))


def test_what_is_written_is_read():
    source = rows_identity(7, "r" * 64, {"note": "string"})
    written = job_identity(HASHES, SETTINGS, source, 4, None, "drafts")
    found = Identity(json.loads(json.dumps(written)))
    assert (found.kind, found.weights, found.rows, found.rows_sha256) == ("drafts", HASHES, 7, "r" * 64)
    assert (found.seed, found.draft_steps, found.sampling, found.batch) == (3, 2, SAMPLING, 8)
    assert (found.dtype, found.preparation, found.row_settings) == ("bfloat16", {"int8": True}, ("cfg", "seed"))
    assert (found.columns, found.shard_size) == ({"note": "string"}, 4)
    assert drafts_identity(found) == {"drafts": written, "rows": 7}


def test_keys_stand_in_the_order_of_older_versions():
    """So that the bytes of `job.json` stay what they were."""
    written = job_identity(HASHES, SETTINGS, rows_identity(7, "r" * 64), 4, "c" * 64, "drafts")
    assert [*written] == [
        *("kind", "weights_sha256", "decoding", "rows", "rows_sha256", "shard_size", "class_names_sha256")
    ]
    assert [*written["decoding"]] == [
        *("seed", "draft_steps", "sampling", "batch", "dtype", "threads", "how", "row_settings")
    ]


def test_what_an_older_version_lacks_is_nothing_and_what_is_needed_is_missed():
    older = Identity({"decoding": {"seed": 1}})
    assert (older.kind, older.batch, older.rows, older.shard_size, older.columns) == (None,) * 5
    assert (older.row_settings, older.preparation, Identity({}).batch) == ((), {}, None)
    for name in ("weights", "dtype", "sampling", "draft_steps"):
        with pytest.raises(KeyError):
            getattr(older, name)
