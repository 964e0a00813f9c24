"""Label files that were read wrongly once, as a flag, in a spec file and from S3: one meaning, one refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from tandem_jobs.cli import main
from tandem_jobs.run.job import Job
from tandem_workers.models.model_set import ModelSet, resolve_models

DATA = Path(__file__).parents[1] / "data" / "labels"
BUCKET = "labels"
TEXT = dict.fromkeys(("id", "ver", "zip", "when", "flag", "phone", "hash", "clock", "big", "na", "pct"), "string")
# what job.json keeps of the carried columns, or the refusal
EXPECTED: dict[str, dict[str, str] | str] = {
    "bigcount.csv": "row 1: count: expected at most 1000000000 images in all rows so far, got 9999999999999",
    "bigcount2.csv": "row 1: count: expected at most 1000000000 images in all rows so far, got 99999999999999999999",
    "ucount.parquet": "row 1: count: expected at most 1000000000 images in all rows so far, got 9223372036854775813",
    "both.csv": "row 1: label 0 is 'face', but class_name is 'flag'",
    "bytesdict.parquet": {"b": "binary"},
    "bytesview.parquet": {"b": "binary"},
    "colA.csv": {"id": "string"},
    "colB.csv": {"id": "string"},
    "emptydict.jsonl": "column 'meta' of the label file holds objects without any key, which a dataset cannot keep",
    "header_space.csv": "column ' count': expected 'count', or a less similar name",
    "ids.csv": TEXT,
    "iso.jsonl": "row 1: big: expected whole numbers from -2^63 to 2^63 - 1, got 12345678901234567890",
    "label_columns_like_settings.csv": {"cfg": "double", "top_k": "int64"},
    "latenull.parquet": {"note": "string", "w": "double"},
    "latin1.csv": "line 2: not UTF-8 (byte 0xe9)",
    "srcname.parquet": {"source_file_name": "string"},
    "uuid.parquet": {"u": "string"},
}


class ReadyError(Exception):
    """A job that would start now."""


@pytest.fixture(scope="module")
def models() -> ModelSet:
    return resolve_models("embedded", "embedded", "embedded", False)


@pytest.fixture(scope="module")
def bucket(s3_server: str, tmp_path_factory):
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for name in EXPECTED:
        client.upload_file(str(DATA / name), BUCKET, name)
    yield f"s3://{BUCKET}"
    for name in EXPECTED:
        client.delete_object(Bucket=BUCKET, Key=name)
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture
def start(models, tmp_path, monkeypatch, capsys):
    """Checks a command up to its start: what makes its job the same job, or its line of error."""

    def stop(job: Job) -> Any:
        raise ReadyError(job.identity(False))

    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Job, "is_done", stop)
    for command in ("generate", "draft"):
        monkeypatch.setattr(f"tandem_jobs.{command}.resolve_models", lambda *given: models)

    def start(*argv: str) -> Any:
        try:
            assert main([*argv, "--out", str(tmp_path / "out")]) == 2
        except ReadyError as ready:
            return ready.args[0]
        assert not (tmp_path / "out").exists()
        return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))

    return start


@pytest.mark.parametrize("name", EXPECTED)
def test_an_input_is_the_same_job_or_error_by_flag_spec_file_and_from_s3(start, bucket, tmp_path, name):
    expected, format_flag = EXPECTED[name], ["--format", "parquet"]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"labels": str(DATA / name), "format": "parquet"}))
    found = [
        start("generate", "--labels", str(DATA / name), *format_flag),
        start("generate", "--spec", str(tmp_path / "job.yaml")),
        start("generate", "--labels", f"{bucket}/{name}", *format_flag),
        start("draft", "--labels", str(DATA / name)),
    ]
    if isinstance(expected, str):
        assert all(line.endswith(expected) for line in found), found
        return
    assert found[0] == found[1] == found[2]
    assert found[0]["columns"] == found[3]["columns"] == expected
    assert found[0]["rows_sha256"] == found[3]["rows_sha256"]


def test_formats_that_cannot_hold_a_column_are_refused_at_the_start(start):
    bytes_in_json = start("generate", "--labels", str(DATA / "bytesview.parquet"))
    assert bytes_in_json == "error: column 'b' is binary, which JSON cannot hold"
    paths = start("generate", "--labels", str(DATA / "srcname.parquet"), "--format", "folder")
    assert paths.startswith("error: column 'source_file_name' would be read as the path of an image")


def test_names_of_the_dataset_itself_are_refused_in_drafts_too(start, tmp_path):
    (tmp_path / "rows.csv").write_text("label,index,tokens\n1,2,3\n")
    for command in ("generate", "draft"):
        said = start(command, "--labels", str(tmp_path / "rows.csv"))
        assert said == "error: columns index, tokens of the label file: these names are the dataset's own"


def test_other_values_are_another_job(start):
    a, b = (start("generate", "--labels", str(DATA / name)) for name in ("colA.csv", "colB.csv"))
    assert a["rows_sha256"] != b["rows_sha256"]
