"""Whether existing files with the names of a shard may be committed as that shard."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from support.sample_shards import CLASS_NAMES, PLAN, PROVENANCE, encoded_shard, pixel_shard, sample_format
from tandem_workers.dataset.drafts import DraftFormat
from tandem_workers.dataset.shard_reader import check_shard_files, read_rows
from tandem_workers.dataset.shards import PrefixShard, ShardPlan
from tandem_workers.stages.encoder import ImageEncoder

FORMATS = ["webdataset", "parquet", "folder"]


def files(name, noise=0, plan=PLAN, codec="png", tokens=False, change=lambda shard: None):
    shard = encoded_shard(1, plan, codec, tokens, noise)
    change(shard)
    return sample_format(name, codec).files(shard)


ours = cache(encoded_shard)


def reason(found, name="webdataset", codec="png", tokens=False) -> str | None:
    return check_shard_files(found, ours(1, PLAN, codec, tokens), sample_format(name, codec).files)


def flipped(found, file: int, bit: int):
    path, data = found[file]
    data = bytearray(data)
    data[bit // 8] ^= 1 << bit % 8
    return [*found[:file], (path, bytes(data)), *found[file + 1 :]]


def draft(noise=0) -> PrefixShard:
    index = np.arange(4, 8)
    tokens = np.random.default_rng(noise).integers(0, 4096, (4, 5), dtype=np.uint16)
    return PrefixShard(shard=1, index=index, label=index.astype(np.int32), prefix=tokens, draft_steps=2)


@pytest.mark.parametrize("name", FORMATS)
def test_other_pictures_of_the_same_rows_pass(name):
    assert reason(files(name), name) is None
    assert files(name, noise=1) != files(name) and reason(files(name, noise=1), name) is None


def relabel(shard):
    shard.label = shard.label[::-1].copy()


def recolumn(shard):
    shard.extra = {**shard.extra, "note": ["other"] * len(shard)}


@pytest.mark.parametrize("name", FORMATS)
def test_other_rows_do_not(name):
    """Rows of another plan, labels in another order, other values in a column."""
    assert reason(files(name, plan=ShardPlan(10, 5)), name)
    assert reason(files(name, noise=1, change=recolumn), name) == "labels, columns or their layout differ from ours"
    assert reason(files(name, noise=1, change=relabel), name)


@pytest.mark.parametrize("name", FORMATS)
def test_images_of_another_job_do_not(name):
    fmt = sample_format(name)
    for other in (replace(PROVENANCE, seed=8), replace(PROVENANCE, drafter_sha256="e" * 64)):
        shard = ImageEncoder("png", 90, other, CLASS_NAMES)(pixel_shard(1, PLAN))
        assert "image 4: expected provenance" in reason(fmt.files(shard), name)


@pytest.mark.parametrize("name", FORMATS)
def test_every_damaged_bit_is_found(name):
    """Of another writer's shard, where bytes cannot be compared with ours."""
    found, rng = files(name, noise=1), np.random.default_rng(0)
    for file, (path, data) in enumerate(found):
        for bit in rng.choice(len(data) * 8, 150 if path.startswith("shards/") else 40, replace=False).tolist():
            assert reason(flipped(found, file, bit), name), (path, bit)
    for file, (_, data) in enumerate(found):
        for end in (0, 1, len(data) // 2, len(data) - 1):
            assert reason([*found[:file], (found[file][0], data[:end]), *found[file + 1 :]], name)


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_what_has_no_checksum_has_to_be_ours(codec):
    assert reason(files("webdataset", codec=codec), codec=codec) is None
    assert "has no checksum" in reason(files("webdataset", noise=1, codec=codec), codec=codec)
    assert reason(files("parquet", noise=1, tokens=True), "parquet", tokens=True)
    assert check_shard_files(DraftFormat().files(draft()), draft(), DraftFormat().files) is None
    assert "no checksum" in check_shard_files(DraftFormat().files(draft(1)), draft(), DraftFormat().files)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_read_back(name):
    rows = [row for path, data in files(name) for row in read_rows(path, data)]
    assert sorted(rows) == [(4, 0), (5, 1), (6, 3), (7, 5)]
    ((path, data),) = DraftFormat().files(draft())
    assert read_rows(path, data) == [(i, i) for i in range(4, 8)]
