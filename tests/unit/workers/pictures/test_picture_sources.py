"""Pictures of every kind are read in blocks, with the same bytes and labels."""

import io
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.damage import SHARDS, make
from support.fake_s3 import FakeS3
from tandem.errors import InputError, OutputError
from tandem_workers.pictures import npz_file
from tandem_workers.pictures.own_dataset import open_own_dataset
from tandem_workers.pictures.source import open_pictures
from tandem_workers.storage import s3_store
from tandem_workers.storage.places import open_store

IMAGES = [image for shard in SHARDS for image in shard.images]
LABELS = [label for shard in SHARDS for label in shard.label.tolist()]


def blocks_of(place):
    source = pickle.loads(pickle.dumps(open_pictures(str(place))))
    blocks = [source.read(block) for block in range(source.num_blocks)]
    assert [len(block) for block in blocks] == [source.count(block) for block in range(source.num_blocks)]
    index = np.concatenate([block.index for block in blocks]).tolist()
    assert index == sorted(set(index))
    return source, blocks


def decode_all(place):
    return [list(block.decoded()) for block in blocks_of(place)[1]]


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("name", ["webdataset", "parquet", "folder"])
def test_a_dataset_of_any_format_gives_its_images_and_labels(tmp_path, name):
    make(tmp_path / "out", name)
    source, blocks = blocks_of(tmp_path / "out")
    assert source.kind == "dataset of Tandem" and source.is_checked
    assert [image for block in blocks for image in block.encoded] == IMAGES
    assert [label for block in blocks for label in block.label.tolist()] == LABELS
    assert source.class_names == ("train", "crane", "2", "crane", "4", "é<&>")
    assert next(blocks[0].decoded()).shape == (12, 12, 3)


@pytest.mark.parametrize(("name", "folder"), [("webdataset", "shards"), ("parquet", "shards"), ("folder", "images")])
def test_its_files_alone_are_read_as_those_of_other_tools(tmp_path, name, folder):
    make(tmp_path / "out", name)
    source, blocks = blocks_of(tmp_path / "out" / folder)
    assert source.kind == {"folder": "image folder"}.get(name, name) and not source.is_checked
    images = [image for block in blocks for image in block.encoded]
    assert images == IMAGES if name != "folder" else sorted(images) == sorted(IMAGES)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_is_read_by_blocks(tmp_path, monkeypatch, save):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", pixels, np.arange(5))
    monkeypatch.setattr(npz_file, "BLOCK_BYTES", 96)
    _, blocks = blocks_of(tmp_path / "a.npz")
    assert len(blocks) == 3
    assert np.array_equal(np.concatenate([block.pixels for block in blocks]), pixels)
    assert np.concatenate([block.label for block in blocks]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        *[("webdataset", ""), ("parquet", ""), ("folder", "")],
        *[("webdataset", "/shards"), ("parquet", "/shards"), ("folder", "/images")],
        *[("webdataset", "/shards/00001.tar"), ("parquet", "/shards/00001.parquet")],
    ],
)
def test_in_s3_a_place_gives_what_it_gives_here(tmp_path, monkeypatch, name, folder):
    here = make(tmp_path / "out", name)
    fake = FakeS3({("bucket", f"data/{path}"): here.read(path) for path in here.list_files()})
    fake.objects["bucket", "data/shards/00001.tar.bak"] = b"of a name that begins alike"
    monkeypatch.setattr(s3_store, "make_client", lambda patience: fake)
    (_, theirs), (_, ours) = blocks_of(f"s3://bucket/data{folder}"), blocks_of(f"{tmp_path}/out{folder}")
    assert [block.encoded for block in theirs] == [block.encoded for block in ours]
    assert [block.label.tolist() for block in theirs] == [block.label.tolist() for block in ours]
    assert [block.index.tolist() for block in theirs] == [block.index.tolist() for block in ours]


def test_an_npz_file_in_s3_and_a_missing_place(monkeypatch):
    out = io.BytesIO()
    np.savez(out, np.ones((3, 4, 4, 3), np.uint8))
    fake = FakeS3({("bucket", "a/b.npz"): out.getvalue()})
    monkeypatch.setattr(s3_store, "make_client", lambda patience: fake)
    _, (block,) = blocks_of("s3://bucket/a/b.npz")
    assert block.pixels.sum() == 3 * 48 and block.label.tolist() == [-1, -1, -1]
    with pytest.raises(InputError, match=r"expected pictures at s3://bucket/a/c\.npz, there is nothing"):
        open_pictures("s3://bucket/a/c.npz")
    with pytest.raises(InputError, match=r"s3://bucket/c: expected a dataset of Tandem, class folders .*, got no file"):
        open_pictures("s3://bucket/c")


def test_the_identity_follows_the_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        (tmp_path / "pictures" / name / "1.png").write_bytes(png(1))
    before = open_pictures(str(tmp_path / "pictures"))
    assert before.class_names == ("a", "b")
    (tmp_path / "pictures" / "b" / "2.png").write_bytes(png(2))
    assert open_pictures(str(tmp_path / "pictures")).identity != before.identity


def test_feature_files_beside_pictures_are_none_of_them(tmp_path, monkeypatch):
    for name in ("train/cat/1.png", "val/cat/1.png", "other/1.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(png(1))
    features = tmp_path / "in" / "train.features" / "embedded-1234abcd"
    features.mkdir(parents=True)
    pq.write_table(pa.table({"index": [0]}), features / "00000.parquet")
    assert blocks_of(tmp_path / "in")[0].class_names == ("other", "train", "val")


def incomplete(folder):
    (make(folder).root / "_SUCCESS").unlink()


def damaged(folder):
    path = make(folder).root / "shards" / "00000.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def two_kinds(folder):
    folder.mkdir()
    (folder / "a.tar").touch()
    pq.write_table(pa.table({"image": [b"x"]}), folder / "a.parquet")


def other_files(folder):
    folder.mkdir()
    (folder / "notes.txt").touch()


def no_image_column(folder):
    folder.mkdir()
    pq.write_table(pa.table({"label": [1]}), folder / "a.parquet")


def broken_image(folder):
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.png").write_bytes(png(1)[:40])


def splits(folder):
    for split in ("train", "val"):
        (folder / split / "cat").mkdir(parents=True)
        (folder / split / "cat" / "1.png").write_bytes(png(1))


def word_label(folder):
    put_tar(folder, ("1.png", png(1)), ("1.cls", b"cat"))


def put_tar(folder, *members):
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def cut_tar(length):
    """A tar of a picture, its label and another picture; each header takes 512 bytes, each of the files 512."""

    def arrange(folder):
        put_tar(folder, ("1.png", png(1)), ("1.cls", b"1"), ("2.png", png(2)))
        path = folder / "a.tar"
        path.write_bytes(path.read_bytes()[:length])

    return arrange


def damaged_header(folder):
    put_tar(folder, ("1.png", png(1)), ("1.cls", b"1"), ("2.png", png(2)))
    data = bytearray((folder / "a.tar").read_bytes())
    data[2048 + 100] ^= 255
    (folder / "a.tar").write_bytes(data)


def statistics(folder):
    folder.mkdir()
    np.savez(folder / "a.npz", mu=np.zeros(2), sigma=np.eye(2))


def no_pictures(folder):
    folder.mkdir()
    np.savez(folder / "a.npz", np.zeros((0, 4, 4, 3), np.uint8))


def cut_npz(folder):
    folder.mkdir()
    (folder / "a.npz").write_bytes(b"PK\x03\x04")


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda folder: None, "there is nothing"),
        (incomplete, "is not complete: it has no _SUCCESS"),
        (damaged, r"shards/00000\.tar in .* is damaged: DamagedError: expected sha256"),
        (two_kinds, r"expected pictures of one kind, got \.tar and \.parquet"),
        (other_files, "found no class folder"),
        (no_image_column, r"a\.parquet: expected a column 'image' of image files, got label \(int64\)"),
        (broken_image, r"a/1\.png: "),
        (splits, "<class>/<image>, got folders of classes: train, val"),
        (cut_tar(1500), r"a\.tar: not a whole tar file: it is damaged or cut off at byte 1024"),
        (cut_tar(2048), "cut off at byte 2048"),
        (cut_tar(2600), "not a whole tar file"),
        (damaged_header, "damaged or cut off at byte 2048"),
        (word_label, r"a\.tar: 1: expected a label from 0 on, got 'cat'"),
        (statistics, "expected an array arr_0, got mu, sigma"),
        (no_pictures, "expected pictures, the npz file has none"),
        (cut_npz, r"a\.npz: not a whole \.npz file"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, arrange, message):
    arrange(tmp_path / "in")
    with pytest.raises(InputError, match=message) as caught:
        decode_all(tmp_path / "in")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_place_without_a_job_is_no_dataset_of_tandem(tmp_path):
    with pytest.raises(OutputError, match=r"holds no dataset: job\.json is missing"):
        open_own_dataset(str(tmp_path), open_store(str(tmp_path)))
