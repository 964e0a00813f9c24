"""File names of a dataset: the only place that spells them.

OUT/
  job.json                      identity and versions of the job
  overwrites/00001.json         the same for the job that replaced it (--overwrite), and so on: epochs 1, 2, ...
  shards/00000.tar | .parquet   webdataset and parquet
  images/00007/000000123.png    folder: label, index
  rows/00000.parquet            folder: the other columns of a shard
  images/metadata.parquet       folder: all rows/ in one, written when the job is complete
  manifest/00000.json           commits a shard
  contact_sheet.png README.md
  _SUCCESS                      last

Shards and labels have at least five digits, indices nine. The folders of `images/` are bare labels: a class name could
be too long for the file system, and Hugging Face `datasets` takes a folder whose name contains a word such as "train"
or "test" for a split and then reads nothing else.

A tag before the extension distinguishes files that must not be mixed: `shards/00000-1.tar` is of epoch 1, and
`shards/00000-0-ab12cd34.tar` is of epoch 0 with its content's hash in the name, because a damaged file had the plain
name. Entries are tagged only with the epoch.
"""

from __future__ import annotations

import re

from tandem.images import EXTENSIONS

MAX_ROWS = 10**9  # images of a job: no index has more than nine digits, and labels alone take 4 GB in the driver
JOB = "job.json"
SUCCESS = "_SUCCESS"
CARD = "README.md"
CONTACT_SHEET = "contact_sheet.png"
IMAGE_TABLE = "images/metadata.parquet"  # the name that Hugging Face's imagefolder expects
CLOSING_FILES = (CARD, CONTACT_SHEET, IMAGE_TABLE)
MANIFEST = "manifest"
OVERWRITES = "overwrites"

_EPOCH = r"(?:-(?P<epoch>[1-9]\d{0,8}))?"
_TAG = rf"(?:{_EPOCH}|-(?P<named>0|[1-9]\d{{0,8}})-[0-9a-f]{{8}})"
_ENTRY = re.compile(rf"{MANIFEST}/(?P<shard>\d{{5,18}}){_EPOCH}\.json")
_DATA = re.compile(
    rf"(?:shards/(?P<shard>\d{{5,18}})|rows/(?P<rows>\d{{5,18}})|images/(?P<label>\d{{5,18}})/(?P<index>\d{{9,18}})){_TAG}"
    rf"\.(?:tar|parquet|{'|'.join(EXTENSIONS.values())})"
)
_OVERWRITE = re.compile(rf"{OVERWRITES}/\d{{5,9}}\.json")


def tag(epoch: int, content: str = "") -> str:
    """The tag before the extension of an epoch's files. `content`: eight hex digits of their content's hash."""
    return f"-{epoch}-{content}" if content else f"-{epoch}" if epoch else ""


def overwrite_path(epoch: int) -> str:
    """The record of the job that began an epoch; epoch 0 has `job.json`."""
    return f"{OVERWRITES}/{epoch:05d}.json"


def manifest_path(shard: int, epoch: int = 0) -> str:
    return f"{MANIFEST}/{shard:05d}{tag(epoch)}.json"


def manifest_shard(path: str, epoch: int = 0) -> int | None:
    """Shard id of a manifest path of this epoch, None for any other path."""
    match = _ENTRY.fullmatch(path)
    shard = int(match["shard"]) if match else -1
    return shard if path == manifest_path(shard, epoch) else None


def shard_path(shard: int, extension: str, tag: str = "") -> str:
    return f"shards/{shard:05d}{tag}.{extension}"


def rows_path(shard: int, tag: str = "") -> str:
    return f"rows/{shard:05d}{tag}.parquet"


def image_path(label: int, index: int, extension: str, tag: str = "") -> str:
    return f"images/{label:05d}/{index:09d}{tag}.{extension}"


def image_label(path: str) -> int:
    """Label of an image path."""
    return int(path.split("/")[1])


def image_index(path: str) -> int:
    """Index of an image path."""
    return int(re.split(r"[-.]", path.split("/")[2])[0])


def data_shard(path: str) -> int | None:
    """Shard id in the name of a file of shards/ or rows/, None for any other path."""
    match = _DATA.fullmatch(path)
    shard = match and (match["shard"] or match["rows"])
    return int(shard) if shard else None


def data_index(path: str) -> int | None:
    """Index in the name of an image file, None for any other path."""
    match = _DATA.fullmatch(path)
    return int(match["index"]) if match and match["index"] else None


def epoch_of(path: str) -> int | None:
    """Epoch of a data file or a manifest entry, None for any other path."""
    if match := _ENTRY.fullmatch(path):
        return int(match["epoch"] or 0)
    match = _DATA.fullmatch(path)
    return int(match["epoch"] or match["named"] or 0) if match else None


def is_named_by_content(path: str) -> bool:
    """Whether a data file has its content's hash in its name."""
    match = _DATA.fullmatch(path)
    return match is not None and match["named"] is not None


def is_data(path: str) -> bool:
    """Whether files of this name hold rows of shards."""
    return _DATA.fullmatch(path) is not None


def is_record(path: str) -> bool:
    """Whether a file is the record of a job that owns or owned the store."""
    return path == JOB or _OVERWRITE.fullmatch(path) is not None


def is_ours(path: str) -> bool:
    """Whether a job writes files of this name."""
    return path in (SUCCESS, *CLOSING_FILES) or is_record(path) or epoch_of(path) is not None
