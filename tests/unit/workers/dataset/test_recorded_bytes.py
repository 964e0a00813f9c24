"""A shard has the recorded bytes in every format and codec, so that a dataset of another version is completed alike.

The digests were made by the code of this file at commit 03373ee, before its modules were moved. A new Pillow or
pyarrow in constraints.txt may change them (parquet files name the version of pyarrow). Then record what a failed run
prints, and say so in CHANGELOG.md.
"""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest

from support.sample_shards import CLASS_NAMES, LABELS, PROVENANCE, sample_format, sha256
from support.sources import ROOT
from tandem.images import Codec
from tandem_workers.dataset.drafts import DraftFormat
from tandem_workers.dataset.formats import FormatName, shard_files
from tandem_workers.dataset.shards import EncodedShard, PixelShard, PrefixShard
from tandem_workers.stages.encoder import ImageEncoder

DIGESTS = {
    "webdataset png": "46fea746c460e3494f3629a2131beeaa45f546f36c869610ec4dfd5bc23fc6ba",
    "webdataset jpeg": "1a5f2ab817ed0512ddd460d138ea8f0c7d791cdab4ae6afa56d471509009aad3",
    "webdataset webp": "0129a386c40f6ab01b139fd87a647040aedc56134b27efd9b261f3f43f9e18f3",
    "parquet png": "9bbabf169a85cd47f733cdd2530fcdd5648122de51eba0ee282dd4ecdfe0835e",
    "parquet jpeg": "39cd215dce87792408f7838fdfdf858cb1f6903b2c6622492c4aa0ea86aac7cc",
    "parquet webp": "c53b54075371928dcb4696edf27ef8be9ab6602d2f824de048d14370647592ac",
    "folder png": "0febc9d42de3bdb96196ad1460c2816658e28f34c561e1330ca8083678bcebc9",
    "folder jpeg": "e329122dc569a79e23011ee67678cbf5aeac17b67f5ed2e15a631cfd60776409",
    "folder webp": "76f6943a88bef483fe56950f95b5163099eb0d99d489d733cf864b4432c30906",
    "drafts": "21e8ea9bc9a2e78eb1cefc9fb6d4533422e28ac10749aec7bc72e54e96d8a0f3",
    "webdataset": "1f61c4aa6b6f97a3dc4ceca7fe6a56181f4847032e86b9c48ab1e5cfa0a483f6",
}
PINNED = dict(re.findall(r"^(pillow|pyarrow)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
AS_RECORDED = platform.machine() == "x86_64" and all(version(name) == pinned for name, pinned in PINNED.items())

TOKENS = np.arange(20, dtype=np.uint16).reshape(4, 5)
ROWS = {
    "shard": 1,
    "index": np.arange(4, 8),
    "label": np.array(LABELS, dtype=np.int32),
    "tokens": TOKENS,
    "extra": {
        "note": pa.array(["é", None, "", "d"]),
        "tags": pa.array([["a"], [], None, ["b", "c"]]),
        "weight": pa.array([0.5, None, float("nan"), 1.0], pa.float32()),
        "cfg": pa.array([1.5, 2.0, 2.0, 4.0]),
        "seed": pa.array([7, 8, 9, 7]),
        "seed_index": pa.array([0, 0, 0, 1]),
    },
}


def digest(files: list[tuple[str, bytes]]) -> str:
    """One hash of all names and contents."""
    return sha256("".join(f"{path} {sha256(data)}\n" for path, data in files).encode())


def images_of(name: str, codec: str) -> str:
    """Digest of a shard of smooth images, with tokens, carried columns and settings of its rows."""
    n, y, x, channel = np.ogrid[:4, :16, :16, :3]
    pixels = (60 * n + 11 * y + 5 * x * (channel + 1)).astype(np.uint8)
    encode = ImageEncoder(codec, 92, PROVENANCE, CLASS_NAMES, ("cfg", "seed"))
    return digest(shard_files(encode(PixelShard(**ROWS, pixels=pixels)), sample_format(name, codec)))


def test_the_bytes_of_a_tar_are_those_of_before_whatever_the_versions():
    shard = EncodedShard(**ROWS, images=[b"one", b"two", b"three", b"four"])
    assert digest(shard_files(shard, sample_format("webdataset"))) == DIGESTS["webdataset"]


@pytest.mark.skipif(not AS_RECORDED, reason="recorded on x86-64 with the versions in constraints.txt")
def test_the_bytes_of_every_format_and_codec_are_those_of_before():
    found = {f"{name} {codec}": images_of(name, codec) for name in get_args(FormatName) for codec in get_args(Codec)}
    found["drafts"] = digest(DraftFormat().files(PrefixShard(**ROWS, prefix=TOKENS, draft_steps=3)))
    assert found == {name: value for name, value in DIGESTS.items() if name != "webdataset"}
