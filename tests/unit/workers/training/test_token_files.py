"""Token sets: ids of each picture as its VQVAE alone gives them, put once; what is no whole set of ours is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.picture_sources import DrawnPictures
from support.tiny_models import tiny_vqvae
from tandem.errors import InputError, OutputError
from tandem.hashing import FileHash
from tandem.training.pictures import load_pictures
from tandem_workers.models.model_set import ModelRef
from tandem_workers.pictures.class_labels import ClassLabels
from tandem_workers.pictures.picture_block import NO_LABEL
from tandem_workers.pictures.source import open_pictures
from tandem_workers.training.token_actor import group_of, tokenize_block, tokenizing
from tandem_workers.training.token_files import complete, open_tokens, read_all
from tandem_workers.training.token_info import check_vqvae
from tandem_workers.training.views import Views

VQVAE = tiny_vqvae()
REF = ModelRef("vqvae", "vqvae.safetensors", FileHash.known("ab" * 32))
SOURCE = DrawnPictures("pictures", num_blocks=2, per_block=5, sides=(16, 24))


def work_in(place, source=SOURCE, views=1, batch=1, skip=False, classes=ClassLabels(("ant", "bee", "cat"))):  # noqa: B008
    made = Views(16, views, "crop-flip", seed=1)
    return tokenizing(str(place), source, REF, VQVAE.config, made, classes, batch, skip)


@torch.inference_mode()
def make(work, blocks=None):
    """Tokenize blocks in this process, without Ray."""
    work.files.claim({"command": "tandem tokenize pictures --out tokens", "pictures": "pictures", "vqvae": "v"})
    for block in work.missing() if blocks is None else blocks:
        work.files.put(block, tokenize_block(work, work.source.read(block), VQVAE.encode, 2))
    return work.files


@torch.inference_mode()
def test_ids_are_those_of_encode_of_each_view_and_every_index_is_there_once(tmp_path):
    make(work_in(tmp_path, views=3))
    made = complete(work_in(tmp_path, views=3).files)
    files = open_tokens(str(tmp_path))
    assert files.info == made.info and files.num_blocks == 2
    tokens, views = read_all(files), Views(16, 3, "crop-flip", seed=1)
    assert tokens.ids.shape == (10, 3, 30) and tokens.ids.dtype == np.uint16 and tokens.weights is None
    pictures = [picture for block in range(2) for picture in SOURCE.read(block).decoded()]
    for index, picture in enumerate(pictures):
        alone = [VQVAE.encode(view[None])[0] for view in views.of(picture, index)]
        np.testing.assert_array_equal(tokens.ids[index], torch.stack(alone).numpy())
    np.testing.assert_array_equal(tokens.labels, np.arange(10) % 3)
    np.testing.assert_array_equal(np.concatenate([files.read(block).index for block in range(2)]), np.arange(10))
    info = files.info
    assert (info.vqvae_sha256, info.vocab_size, info.latent_channels, info.patch_nums) == (
        "ab" * 32,
        64,
        8,
        (1, 2, 3, 4),
    )
    assert (info.class_names, info.num_classes, info.views, info.rows) == (("ant", "bee", "cat"), 3, 3, 10)
    assert info.labels == {0: 4, 1: 3, 2: 3} and info.skipped == 0 and len(info.digest) == 64


def test_batches_have_one_shape_and_leave_rows_in_their_order(tmp_path):
    block, shapes = SOURCE.read(0), set()

    def encode(views_B3HW):
        shapes.add(len(views_B3HW))
        with torch.inference_mode():
            return VQVAE.encode(views_B3HW)

    alone, together = (tokenize_block(work_in(tmp_path, views=3, batch=batch), block, encode, 1) for batch in (1, 4))
    assert shapes == {1, 4}
    np.testing.assert_array_equal(alone.ids, together.ids)
    assert alone.sha256 == together.sha256


def test_weights_count_variants_of_a_picture_once(tmp_path):
    names = ["/d~1/face/grin.png", "/d~1/face/grin~1f3fb.png", "/d~1/face/grin~1f3fc.png", "/d~1/face/wink.png"]
    groups = [group_of(name) for name in names]
    assert groups[0] == groups[1] == groups[2] != groups[3]
    keys = [group_of(f"s3://b/x.tar: face/{key}") for key in ("grin", "grin~1f3fb", "wink")]
    assert keys[0] == keys[1] != keys[2]
    make(work_in(tmp_path))
    weights = read_all(complete(work_in(tmp_path).files), balance=0).weights
    np.testing.assert_allclose(weights, np.array([1 / 4, 1 / 3, 1 / 3])[np.arange(10) % 3] / 3)


def test_weights_are_those_of_the_pictures_of_a_folder(tmp_path):
    for name in ("ant/x.png", "ant/x~1.png", "ant/y.png", "bee/x.png", "bee/z~1.png", "bee/z~2.png", "cat/x.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(SOURCE.png(0))
    make(work_in(tmp_path / "tokens", source=open_pictures(str(tmp_path / "set"))))
    files = complete(work_in(tmp_path / "tokens", source=open_pictures(str(tmp_path / "set"))).files)
    expected = load_pictures(tmp_path / "set").weights(0.5)
    np.testing.assert_allclose(read_all(files, balance=0.5).weights, expected.numpy())


def test_other_pictures_another_vqvae_or_other_views_are_refused_in_one_line(tmp_path):
    make(work_in(tmp_path), [0])
    for other, field in (
        (work_in(tmp_path, source=replace(SOURCE, per_block=4)), "pictures.sha256"),
        (work_in(tmp_path, views=2), "views: there 1, here 2"),
        (work_in(tmp_path, batch=2), "batch: there 1, here 2"),
        (work_in(tmp_path, classes=ClassLabels(("bee", "ant", "cat"))), "class_names"),
    ):
        with pytest.raises(OutputError, match="holds tokens of something else") as error:
            other.missing()
        assert field in str(error.value) and "\n" not in str(error.value)
    assert work_in(tmp_path, skip=True).missing() == [1]  # what is done with broken pictures may change
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "job.json").write_text("{}")
    with pytest.raises(OutputError, match=r"has files, but no identity.json of tokens") as error:
        work_in(tmp_path / "dataset").missing()
    assert "remove" not in error.value.hint


def test_a_broken_picture_stops_or_is_left_out_and_listed(tmp_path):
    broken = replace(SOURCE, broken=6)
    with pytest.raises(InputError, match=r"^006.png: not an image, despite its name$") as error:
        make(work_in(tmp_path / "a", source=broken))
    assert "--on-error skip" in error.value.hint
    files = complete(make(work_in(tmp_path / "a", source=broken, skip=True)))  # the first block is kept
    assert files.info.rows == 9 and files.info.skipped == 1
    left_out = {"index": 6, "name": "006.png", "reason": "006.png: not an image, despite its name"}
    assert [json.loads(line) for line in (tmp_path / "a" / "skipped.jsonl").read_text().splitlines()] == [left_out]
    assert files.read(1).index.tolist() == [5, 7, 8, 9] and vars(files.read(1).skipped[0]) == left_out
    assert "Pictures left out: 1;" in (tmp_path / "a" / "README.md").read_text()


def test_a_picture_without_a_label_or_with_one_beyond_the_names_is_no_use(tmp_path):
    block = SOURCE.read(0)
    without = replace(block, label=np.where(np.arange(5) == 3, NO_LABEL, block.label).astype(np.int32))
    with pytest.raises(InputError, match=r"^003.png: expected a label, got none$"):
        tokenize_block(work_in(tmp_path), without, VQVAE.encode, 1)
    two = work_in(tmp_path, classes=ClassLabels(("ant", "bee")), skip=True)
    with torch.inference_mode():
        found = tokenize_block(two, block, VQVAE.encode, 1)
    assert found.label.tolist() == [0, 1, 0, 1]
    assert [picture.reason for picture in found.skipped] == ["002.png: expected a label from 0 to 1, got 2"]
    other_order = work_in(tmp_path, classes=ClassLabels(("cat", "ant", "dog", "bee"), (1, 3, 0)))
    with torch.inference_mode():
        assert tokenize_block(other_order, block, VQVAE.encode, 1).label.tolist() == [1, 3, 0, 1, 3]


def test_a_set_without_any_picture_is_no_set(tmp_path):
    empty = work_in(tmp_path, source=replace(SOURCE, sides=(1, 1)), classes=ClassLabels(()), skip=True)
    with pytest.raises(
        InputError, match=r"all were left out, the first: 000.png: expected a label from 0 to -1, got 0"
    ):
        complete(make(empty))


def test_what_is_no_complete_set_is_refused_with_the_command_that_goes_on(tmp_path):
    with pytest.raises(InputError, match=r"expected a token set at .*, got nothing") as error:
        open_tokens(str(tmp_path))
    assert "tandem tokenize" in error.value.hint
    work = work_in(tmp_path / "set")
    make(work, [1])
    with pytest.raises(InputError, match="is not complete: 1 of 2 blocks are missing") as error:
        open_tokens(str(tmp_path / "set"))
    assert error.value.hint == "go on with: tandem tokenize pictures --out tokens"
    make(work)
    with pytest.raises(InputError, match="is not complete: it has no _SUCCESS"):
        open_tokens(str(tmp_path / "set"))
    complete(work.files)
    Path(tmp_path / "set" / "other").mkdir()
    Path(tmp_path / "set" / "other" / "a.txt").touch()
    with pytest.raises(InputError, match=r"got 1 other files, such as a.txt"):
        open_tokens(str(tmp_path / "set" / "other"))
    record = tmp_path / "set" / "_SUCCESS"
    record.write_bytes(record.read_bytes().replace(b'"num_classes": 3', b'"num_classes": 4'))
    with pytest.raises(InputError, match=r"_SUCCESS in .* is damaged"):
        open_tokens(str(tmp_path / "set"))


def test_a_damaged_or_exchanged_block_is_named(tmp_path):
    for name, views in (("a", 1), ("b", 1)):
        make(work_in(tmp_path / name, views=views))
        complete(work_in(tmp_path / name, views=views).files)
    files, path = open_tokens(str(tmp_path / "a")), tmp_path / "a" / "00001.parquet"
    data = bytearray(path.read_bytes())
    data[data.index(b"\x28\xb5\x2f\xfd") + 8] ^= 255
    path.write_bytes(data)
    with pytest.raises(OutputError, match=r"00001.parquet in .* is damaged") as error:
        read_all(files)
    assert "remove it" in error.value.hint
    path.write_bytes((tmp_path / "a" / "00000.parquet").read_bytes())
    with pytest.raises(OutputError, match="is another block than when the set was completed"):
        read_all(files)
    path.unlink()
    with pytest.raises(OutputError, match=r"00001.parquet in .* is missing"):
        files.read(1)


def test_tokens_of_another_vqvae_are_refused_in_one_line(tmp_path):
    info = complete(make(work_in(tmp_path))).info
    check_vqvae(info, "ab" * 32)
    with pytest.raises(
        InputError, match=r"expected tokens of the VQVAE cdcdcdcdcdcd…, the token set is of abababababab… \(v\)"
    ):
        check_vqvae(info, "cd" * 32)


def test_the_digest_names_the_content_and_not_the_place(tmp_path):
    digests = [
        complete(make(work_in(tmp_path / name, views=views))).info.digest
        for name, views in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert digests[0] == digests[1] != digests[2]
