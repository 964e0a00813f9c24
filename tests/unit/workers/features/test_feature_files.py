"""Feature files: a file a block, put once, of one extractor and one source; and how a block's features are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.picture_sources import DrawnPictures, MeanColours, save_torchscript
from tandem.errors import InputError, OutputError
from tandem_workers.features.choose_extractor import choose_extractor
from tandem_workers.features.extract import extract_block
from tandem_workers.features.feature_files import FeatureBlock, place_features


@pytest.fixture
def extractor(tmp_path):
    return choose_extractor(save_torchscript(tmp_path / "colours.pt", MeanColours(), '{"size": 8}'))


@pytest.fixture
def source(tmp_path):
    return DrawnPictures(str(tmp_path / "pictures"))


def test_features_stand_beside_pictures_and_within_a_dataset(extractor, source, tmp_path):
    assert place_features(source, extractor).place == f"{tmp_path}/pictures.features/{extractor.folder}"
    ours = replace(source, kind="tandem webdataset")
    assert place_features(ours, extractor).place == f"{tmp_path}/pictures/features/{extractor.folder}"
    assert (
        place_features(ours, extractor, "float16", f"{tmp_path}/x").place == f"{tmp_path}/x/{extractor.folder}-float16"
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_put_is_read_again_and_never_replaced(extractor, source, dtype):
    files = place_features(source, extractor, dtype)
    assert files.committed() == frozenset()
    files.claim()
    made = extract_block(source.read(1), extractor, extractor.load(torch.device("cpu")), 3)
    assert files.put(1, made).created
    assert not files.put(1, replace(made, index=made.index + 1)).created
    assert files.committed() == {1}
    there = files.read(1)
    np.testing.assert_array_equal(there.index, [4, 5, 6, 7])
    np.testing.assert_array_equal(there.label, [1, 2, 0, 1])
    assert (there.index.dtype, there.label.dtype, there.columns["features"].dtype) == (np.int64, np.int32, dtype)
    for name in ("features", "logits"):
        np.testing.assert_array_equal(there.columns[name], made.columns[name].astype(dtype))
    assert set(files.read(1, ["logits"]).columns) == {"logits"}


def test_features_of_other_pictures_are_refused_in_one_line(extractor, source):
    place_features(source, extractor).claim()
    others = place_features(replace(source, per_block=5), extractor)
    with pytest.raises(OutputError, match=r"holds features of something else \(pictures.sha256: there ") as error:
        others.committed()
    assert "\n" not in str(error.value) and "another place" in error.value.hint


def test_a_damaged_or_foreign_file_is_named(extractor, source):
    files = place_features(source, extractor)
    files.claim()
    block = FeatureBlock(np.arange(2), np.zeros(2, np.int32), {"features": np.ones((2, 300), np.float32)})
    files.put(0, block)
    path = Path(files.place, "00000.parquet")
    data = bytearray(path.read_bytes())
    with pytest.raises(OutputError, match="is not of these pictures and this extractor"):
        replace(files, identity={"other": 1}).read(0)
    data[data.index(b"\x28\xb5\x2f\xfd") + 8] ^= 255
    path.write_bytes(data)
    with pytest.raises(OutputError, match=r"00000.parquet in .* is damaged"):
        files.read(0)
    with pytest.raises(OutputError, match=r"00002.parquet in .* is missing"):
        files.read(2)


def test_numbers_that_are_not_finite_are_refused(extractor, source):
    files = place_features(source, extractor, "float16")
    block = FeatureBlock(np.arange(1), np.zeros(1, np.int32), {"features": np.full((1, 3), 1e6, np.float32)})
    with pytest.raises(InputError, match="features of block 0: expected finite float16 numbers"):
        files.put(0, block)


def test_sizes_are_counted_and_batches_change_nothing(extractor, source):
    network = extractor.load(torch.device("cpu"))
    mixed = replace(source, sides=(8, 12)).read(0)
    made, alone = (extract_block(mixed, extractor, network, batch) for batch in (3, 1))
    assert made.sizes == {"8 x 8": 2, "12 x 12": 2} and len(made) == 4
    files = place_features(source, extractor)
    files.put(0, made)
    assert files.read(0, ()).sizes == made.sizes
    np.testing.assert_allclose(made.columns["features"], alone.columns["features"], atol=1e-6)


def test_a_broken_picture_is_named(extractor, source):
    with pytest.raises(InputError, match=r"005.png: not an image"):
        extract_block(replace(source, broken=5).read(1), extractor, extractor.load(torch.device("cpu")), 2)
