"""`tandem export --to npz`: the file that the ADM evaluator takes, from pictures of every kind."""

import io
import json
import os
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tandem_jobs.export
from support.damage import SHARDS, make
from support.fake_s3 import FakeS3
from support.picture_sources import DrawnPictures
from tandem.errors import OutputError
from tandem_jobs.cli import main
from tandem_workers.pictures import npz_file, npz_writer
from tandem_workers.pictures.npz_writer import whole_file, write_npz
from tandem_workers.pictures.picture_block import PictureBlock
from tandem_workers.pictures.source import open_pictures
from tandem_workers.storage import s3_store

PIXELS = np.stack([np.asarray(Image.open(io.BytesIO(image))) for shard in SHARDS for image in shard.images])
LABELS = np.concatenate([shard.label for shard in SHARDS])


def export(*argv: object) -> int:
    return main(["export", *map(str, argv)])


def adm_batches(path: Path, size: int):
    """Reads as the evaluator of guided-diffusion does: header first, then batches one after the other."""
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        version = np.lib.format.read_magic(file)
        assert version in ((1, 0), (2, 0))
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        assert not fortran and not dtype.hasobject
        for start in range(0, shape[0], size):
            count = min(size, shape[0] - start)
            data = file.read(count * int(np.prod(shape[1:])) * dtype.itemsize)
            yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def pictures(tmp_path: Path, kind: str) -> Path:
    """The pictures of SHARDS as one of the kinds."""
    if kind == "npz":
        np.savez_compressed(tmp_path / "in.npz", PIXELS, LABELS)
        return tmp_path / "in.npz"
    name, _, folder = kind.partition("/")
    make(tmp_path / "in", name)
    return tmp_path / "in" / folder


@pytest.mark.parametrize(
    "kind", ["webdataset", "parquet", "folder", "webdataset/shards", "parquet/shards", "folder/images", "npz"]
)
def test_pictures_of_every_kind_are_read_back_by_numpy_and_the_evaluator(tmp_path, kind, capsys):
    source = pictures(tmp_path, kind)
    assert export(source, "--to", "npz", tmp_path / "a.npz") == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(PIXELS)
    order = np.arange(len(PIXELS))
    labels = LABELS
    if kind == "folder/images":  # sorted by class, numbered anew
        order = np.argsort(LABELS, kind="stable")
        labels = np.unique(LABELS, return_inverse=True)[1]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert sorted(found) == ["arr_0", "arr_1"]
        assert found["arr_0"].dtype == np.uint8 and found["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(found["arr_0"], PIXELS[order])
        np.testing.assert_array_equal(found["arr_1"], labels[order])
    batches = list(adm_batches(tmp_path / "a.npz", 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches), PIXELS[order])
    read = open_pictures(str(tmp_path / "a.npz")).read(0)
    np.testing.assert_array_equal(read.pixels, PIXELS[order])


def test_a_second_export_has_the_same_bytes_and_replaces_only_if_asked(tmp_path, capsys, monkeypatch):
    source = pictures(tmp_path, "webdataset")
    assert export(source, tmp_path / "a.npz", "--to", "npz") == 0
    monkeypatch.setattr(npz_file, "BLOCK_BYTES", 3 * PIXELS[0].nbytes)  # a source cut into other blocks
    assert export(tmp_path / "a.npz", tmp_path / "b.npz", "--to", "npz") == 0
    before = (tmp_path / "a.npz").read_bytes()
    assert (tmp_path / "b.npz").read_bytes() == before
    capsys.readouterr()
    assert export(source, tmp_path / "a.npz", "--to", "npz") == 2
    assert "a.npz is already there\nhint: --overwrite replaces it" in capsys.readouterr().err
    (tmp_path / "a.npz").write_bytes(b"other")
    assert export(source, tmp_path / "a.npz", "--to", "npz", "--overwrite") == 0
    assert (tmp_path / "a.npz").read_bytes() == before


def test_only_a_few_pictures_are_in_memory_at_once(tmp_path, monkeypatch):
    """At most one write a picture, and never more than two blocks that are read and not yet written."""
    source = DrawnPictures("p", num_blocks=40, per_block=100)
    written, blocks, most = [], [0, 0], [0]
    read = DrawnPictures.read

    def counting(self, block):
        blocks[0] += 1
        most[0] = max(most[0], blocks[0] - blocks[1])
        return read(self, block)

    class Counting(io.BytesIO):
        def write(self, data):
            written.append(memoryview(data).nbytes)
            return super().write(data)

    monkeypatch.setattr(DrawnPictures, "read", counting)
    out = Counting()

    def done(count):
        assert count == 100
        blocks[1] += 1

    shape, labels = npz_writer.write_images(out, source, [100] * 40, done)
    assert shape == (4000, 8, 8, 3) and len(labels) == 4000
    assert max(written) == 8 * 8 * 3 and sum(written) == len(out.getvalue())
    assert most[0] <= 2


def test_pictures_without_labels_have_no_arr_1(tmp_path, capsys):
    np.savez(tmp_path / "in.npz", PIXELS)
    assert export(tmp_path / "in.npz", "--to", "npz", tmp_path / "a.npz") == 0
    assert "not every picture has a label" in capsys.readouterr().err
    with np.load(tmp_path / "a.npz") as found:
        assert list(found) == ["arr_0"]


def test_pictures_in_s3_are_exported_to_this_machine_alone(tmp_path, monkeypatch, capsys):
    here = make(tmp_path / "in")
    fake = FakeS3({("bucket", f"data/{path}"): here.read(path) for path in here.list_files()})
    monkeypatch.setattr(s3_store, "make_client", lambda patience: fake)
    assert export("s3://bucket/data", "--to", "npz", tmp_path / "a.npz") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["arr_0"], PIXELS)
    capsys.readouterr()
    assert export("s3://bucket/data", "--to", "npz", "s3://bucket/a.npz") == 2
    error = capsys.readouterr().err
    assert "OUT: expected a path on this machine, got the address s3://bucket/a.npz" in error


def png(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, 4)).save(out, "PNG")
    return out.getvalue()


def several_sizes(folder):
    (folder / "a").mkdir(parents=True)
    for name, side in (("1", 4), ("2", 4), ("3", 6), ("4", 8)):
        (folder / "a" / f"{name}.png").write_bytes(png(side))


def broken(folder):
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.png").write_bytes(png(4))
    (folder / "a" / "2.png").write_bytes(png(4)[:40])


def incomplete(folder):
    (make(folder).root / "_SUCCESS").unlink()


def empty_npz(folder):
    folder.mkdir()
    np.savez(folder / "in.npz", np.zeros((0, 4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("arrange", "out", "message"),
    [
        (several_sizes, "a.npz", r"in/a/3.png: expected 4 x 4 pixels (height x width) as "),
        (broken, "a.npz", "in/a/2.png: "),
        (incomplete, "a.npz", "is not complete: it has no _SUCCESS"),
        (empty_npz, "a.npz", "in: expected pictures, the npz file has none"),
        (lambda folder: None, "a.npz", "there is nothing"),
        (several_sizes, "a.zip", "OUT: expected a name *.npz, got "),
        (several_sizes, "in/a.npz", "OUT: expected a place apart from DATASET"),
        (several_sizes, "none/a.npz", "expected a folder "),
        (several_sizes, "in/../in/a/x.npz", "OUT: expected a place apart from DATASET"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_left(tmp_path, capsys, arrange, out, message):
    arrange(tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    assert export(tmp_path / "in", "--to", "npz", tmp_path / out) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_of_two_exports_to_one_name_the_first_to_end_stays(tmp_path):
    path = tmp_path / "a.npz"
    first = whole_file(path, overwrite=False)
    first.__enter__().write(b"first")
    with whole_file(path, overwrite=False) as second:
        second.write(b"second")
    with pytest.raises(OutputError, match="is already there"):
        first.__exit__(None, None, None)
    assert path.read_bytes() == b"second" and os.listdir(tmp_path) == ["a.npz"]


def test_a_source_that_changes_meanwhile_is_refused(tmp_path):
    source = DrawnPictures("p")
    with pytest.raises(Exception, match="p has changed: expected 5 pictures in block 1, got 4"):
        write_npz(tmp_path / "a.npz", source, [4, 5, 4], False, lambda count: None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch, number):
    """The process signals itself in the middle of its work."""

    class Interrupting(DrawnPictures):
        notes = ()

        def read(self, block):
            if block == 2:
                assert [name[-4:] for name in os.listdir(tmp_path)] == [".tmp"]
                os.kill(os.getpid(), number)
            return super().read(block)

    monkeypatch.setattr(tandem_jobs.export, "open_pictures", Interrupting)
    assert export("pictures", "--to", "npz", tmp_path / "a.npz") == 130
    assert os.listdir(tmp_path) == []


def test_a_block_may_hold_pixels_that_are_a_view(tmp_path):
    """Arrays cut out of others are written as they are seen."""
    wide = np.arange(2 * 4 * 8 * 3, dtype=np.uint8).reshape(2, 4, 8, 3)

    class Views(DrawnPictures):
        def read(self, block):
            return PictureBlock(block, np.arange(2), np.zeros(2, np.int32), ("0", "1"), pixels=wide[:, :, ::2])

    write_npz(tmp_path / "a.npz", Views("p", num_blocks=1), [2], False, lambda count: None)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["arr_0"], wide[:, :, ::2])
