"""Where everything stands in a dataset: the only place that spells its names.

OUT/
  job.json                      identity and versions of the job
  shards/00000.tar | .parquet   webdataset and parquet
  images/00007/000000123.png    folder: label, index
  rows/00000.parquet            folder: the other columns of a shard
  images/metadata.parquet       folder: all rows/ in one, written when the job is complete
  manifest/00000.json           commits a shard
  contact_sheet.png README.md
  _SUCCESS                      last

Shards and labels have five digits and more when they need more, indices have nine. The folders of `images/` are
bare labels: a class name there would be cut to what file systems allow, and Hugging Face `datasets` takes a
folder whose name holds a word such as "train" or "test" for a split and then reads nothing else.
"""

from __future__ import annotations

import re

MAX_ROWS = 10**9  # images of a job: no index has more than nine digits, and labels alone take 4 GB in the driver
JOB = "job.json"
SUCCESS = "_SUCCESS"
CARD = "README.md"
CONTACT_SHEET = "contact_sheet.png"
IMAGE_TABLE = "images/metadata.parquet"  # the name that datasets' imagefolder looks for
MANIFEST = "manifest"

_OURS = re.compile(
    r"job\.json|_SUCCESS|README\.md|contact_sheet\.png|images/metadata\.parquet"
    r"|manifest/\d{5,}\.json|shards/\d{5,}\.(tar|parquet)|rows/\d{5,}\.parquet"
    r"|images/\d{5,}/\d{9,}\.(png|jpg|webp)"
)
_ENTRY = re.compile(rf"{MANIFEST}/(\d{{5,}})\.json")


def manifest_path(shard: int) -> str:
    return f"{MANIFEST}/{shard:05d}.json"


def manifest_shard(path: str) -> int | None:
    """Shard id of a manifest path, None for any other path."""
    match = _ENTRY.fullmatch(path)
    shard = int(match[1]) if match else -1
    return shard if path == manifest_path(shard) else None


def shard_path(shard: int, extension: str) -> str:
    return f"shards/{shard:05d}.{extension}"


def rows_path(shard: int) -> str:
    return f"rows/{shard:05d}.parquet"


def image_path(label: int, index: int, extension: str) -> str:
    return f"images/{label:05d}/{index:09d}.{extension}"


def image_label(path: str) -> int:
    """Label of an image path."""
    return int(path.split("/")[1])


def image_index(path: str) -> int:
    """Index of an image path."""
    return int(path.split("/")[2].split(".")[0])


def is_ours(path: str) -> bool:
    """Whether a job writes files of this name."""
    return _OURS.fullmatch(path) is not None
