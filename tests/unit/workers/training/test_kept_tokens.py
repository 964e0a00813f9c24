"""Token sets of the ids that datasets kept."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from support.evaluations import pictures, save_folder
from support.sample_shards import CLASS_NAMES, LABELS, PLAN, pixel_shard, sample_dataset
from tandem.config import VqvaeConfig
from tandem.errors import InputError
from tandem.hashing import FileHash
from tandem_jobs.cli import main
from tandem_workers.models.model_set import ModelRef
from tandem_workers.pictures.class_labels import ClassLabels
from tandem_workers.pictures.source import open_pictures
from tandem_workers.training.kept_tokens import keeping
from tandem_workers.training.token_files import complete, open_tokens, read_all

REF = ModelRef("vqvae", "vqvae.safetensors", FileHash.known("ab" * 32))
CONFIG = VqvaeConfig(patch_nums=(1, 2))  # 5 ids below 4,096, as the sample shards have


def source_of(place, keep_tokens=True, **identity):
    """A dataset of random ids, as if this VQVAE had made it."""
    source = open_pictures(str(place))
    more = {"keep_tokens": keep_tokens, "weights_sha256": {"vqvae": REF.sha256}, **identity}
    return replace(source, record={**source.record, "identity": {**source.record["identity"], **more}})


@pytest.mark.parametrize("fmt", ["webdataset", "parquet", "folder"])
def test_ids_and_labels_are_those_of_the_dataset(tmp_path, fmt):
    sample_dataset(tmp_path / "images", fmt, tokens=True)
    work = keeping(str(tmp_path / "tokens"), source_of(tmp_path / "images"), REF, CONFIG, ClassLabels(CLASS_NAMES))
    work.files.claim({"command": "tandem tokenize"})
    take = work.load(None, 1)
    assert [take(block) for block in work.missing()] == [4, 4, 2] and not work.missing()
    complete(work.files)
    files = open_tokens(str(tmp_path / "tokens"))
    tokens = read_all(files, balance=0.0)
    drawn = np.concatenate([pixel_shard(shard, PLAN, tokens=True).tokens for shard in range(PLAN.num_shards)])
    np.testing.assert_array_equal(tokens.ids, drawn[:, None])
    assert tokens.labels.tolist() == [LABELS[i % 4] for i in range(10)]
    assert tokens.weights is not None and len(set(tokens.weights[:2])) == 1  # no image is another one's variant
    assert files.info.vqvae_sha256 == REF.sha256 and files.info.class_names == CLASS_NAMES
    assert "no image was encoded" in (tmp_path / "tokens/README.md").read_text()


@pytest.mark.parametrize(
    ("identity", "config", "message"),
    [
        ({"keep_tokens": False}, CONFIG, "images kept no token ids"),
        ({"kind": "export"}, CONFIG, "images is an export"),
        ({"edit": {}}, CONFIG, "images holds edits, whose drawn ids are not those of the whole picture"),
        ({"weights_sha256": {"vqvae": "cd" * 32}}, CONFIG, "was made with, cdcdcdcdcdcd…, got vqvae.safetensors, abab"),
        ({}, VqvaeConfig(patch_nums=(1, 2, 3)), "expected 14 ids below 4096 an image, got 5"),
        ({}, VqvaeConfig(vocab_size=32, patch_nums=(1, 2)), "expected 5 ids below 32 an image, got 5 up to 4"),
    ],
)
def test_ids_of_other_models_are_refused(tmp_path, identity, config, message):
    sample_dataset(tmp_path / "images", "parquet", tokens=True)
    source = source_of(tmp_path / "images", **identity)
    with pytest.raises(InputError, match=message):
        keeping(str(tmp_path / "tokens"), source, REF, config, ClassLabels(CLASS_NAMES)).take(0)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected a dataset that tandem generate or refine wrote, .* image folder"),
        (["--views", "2"], "--views: expected 1 with --kept-tokens"),
        (["--patch-nums", "1,2"], "--patch-nums: expected none with --kept-tokens"),
    ],
)
def test_what_keeps_no_ids_is_refused_before_anything_starts(tmp_path, capsys, options, message):
    place = save_folder(tmp_path / "pictures", pictures(4))
    assert main(["tokenize", place, "--kept-tokens", "--out", str(tmp_path / "tokens"), *options]) == 2
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "tokens").exists()
