"""`tandem export --to folder|webdataset|parquet`: pictures of every kind as a dataset of Tandem."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tandem_jobs.export_dataset
from support.damage import SHARDS, content, make
from support.sample_shards import CLASS_NAMES, PLAN, encoded_shard, sample_dataset, sample_format
from tandem.images import codec_of
from tandem_jobs.cli import main
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.closing import close_dataset
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.identity import Identity
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.verify import verify
from tandem_workers.pictures.own_columns import column_types, type_of, typed
from tandem_workers.pictures.own_dataset import OwnDataset
from tandem_workers.pictures.source import open_pictures
from tandem_workers.storage.local_store import LocalStore

FORMS = ("webdataset", "parquet", "folder")
IMAGES = [image for shard in SHARDS for image in shard.images]
LABELS = [label for shard in SHARDS for label in shard.label.tolist()]
PIXELS = [np.asarray(Image.open(io.BytesIO(image))) for image in IMAGES]
NAMES = ("train", "crane", "2", "crane", "4", "é<&>")  # names of labels without images are not recorded
UNIQUE = ("train", "crane (1)", "a|b/../c", "crane (3)", "test set", "é<&>")


def export(source, out, to, *more: str) -> int:
    return main(["export", str(source), "--to", to, str(out), *more])


def everything(place):
    source = open_pictures(str(place))
    blocks = [source.read(block) for block in range(source.num_blocks)]
    images = [image for block in blocks for image in block.encoded]
    return source, images, [label for block in blocks for label in block.label.tolist()]


def data_of(place) -> dict[str, bytes]:
    store = LocalStore(str(place))
    folders = ("shards/", "images/", "rows/")
    return {path: store.read(path) for path in store.list_files() if path.startswith(folders)}


def png(pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("kind", ["webdataset", "parquet", "folder", "webdataset/shards", "parquet/shards", "npz"])
def test_every_kind_becomes_every_form(tmp_path, kind, to):
    source, _, folder = (tmp_path / "in", *kind.partition("/")[1:])
    if kind == "npz":
        source = tmp_path / "in.npz"
        np.savez(source, np.stack(PIXELS), np.array(LABELS))
    else:
        make(source, kind.partition("/")[0])
    assert export(source / folder if folder else source, tmp_path / "out", to, "--shard-size", "3") == 0
    verdict = verify(LocalStore(str(tmp_path / "out")))
    assert (verdict.complete, verdict.problems, verdict.shards, verdict.rows) == (True, [], 4, 10)
    found, images, labels = everything(tmp_path / "out")
    assert isinstance(found, OwnDataset) and labels == LABELS
    if kind == "npz":
        assert all(
            np.array_equal(np.asarray(Image.open(io.BytesIO(a))), b) for a, b in zip(images, PIXELS, strict=True)
        )
    else:
        assert images == IMAGES
    names = {"npz": None, "webdataset/shards": None, "parquet/shards": UNIQUE}
    assert found.class_names == names.get(kind, NAMES)


def test_from_form_to_form_nothing_is_lost(tmp_path):
    """Images, labels, and all columns with their types; by tars too, whose types are in job.json."""
    sample_dataset(tmp_path / "parquet", "parquet", tokens=True)
    chain = ["parquet", "first", "webdataset", "folder", "second"]
    for source, out, to in zip(chain, chain[1:], ("parquet", "webdataset", "folder", "parquet"), strict=False):
        assert export(tmp_path / source, tmp_path / out, to, "--shard-size", "4") == 0
    found, images, labels = everything(tmp_path / "second")
    assert (images, labels, found.class_names) == (IMAGES, LABELS, NAMES)
    first, second = (pq.read_table(tmp_path / name / "shards") for name in ("first", "second"))
    assert first.schema.names == second.schema.names
    assert first.drop_columns(["weight"]).equals(second.drop_columns(["weight"]))  # JSON has no NaN
    before = pq.read_table(tmp_path / "parquet" / "shards")
    assert set(before.schema.names) == set(first.schema.names)
    for name in ("seed", "draft_steps", "tokens", "note"):
        assert before[name].equals(second[name])
    assert (
        second["weight"].type == pa.float32() and second["weight"].to_pylist()[1:] == before["weight"].to_pylist()[1:]
    )


@pytest.mark.parametrize("to", FORMS)
def test_twice_gives_the_same_bytes(tmp_path, to):
    make(tmp_path / "in")
    for out in ("a", "b"):
        assert export(tmp_path / "in", tmp_path / out, to) == 0
    assert data_of(tmp_path / "a") == data_of(tmp_path / "b") != {}
    before = content(LocalStore(str(tmp_path / "a")))
    assert export(tmp_path / "in", tmp_path / "a", to) == 0
    assert content(LocalStore(str(tmp_path / "a"))) == before


def test_an_interrupted_export_is_resumed_and_reads_only_what_is_missing(tmp_path, monkeypatch, capsys):
    make(tmp_path / "in")  # shards of 4, 4 and 2 pictures
    arguments = tmp_path / "in", tmp_path / "out", "parquet", "--shard-size", "3"
    monkeypatch.setattr("sys.argv", ["tandem", "export"])
    stored = []

    def interrupted(*args):
        if len(stored) == 2:
            raise KeyboardInterrupt
        stored.append(args)
        return store_shard(*args)

    with monkeypatch.context() as patch:
        patch.setattr(tandem_jobs.export_dataset, "store_shard", interrupted)
        assert export(*arguments) == 130
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert export(tmp_path / "out", tmp_path / "x", "parquet") == 2
    assert "out is not complete: " in capsys.readouterr().err
    reads, read = [], OwnDataset.read
    monkeypatch.setattr(OwnDataset, "read", lambda self, block: (reads.append(block), read(self, block))[1])
    assert export(*arguments) == 0
    assert json.loads(capsys.readouterr().out)["resumed_shards"] == 2
    assert reads == [0, 1, 2]  # the first is looked at; pictures 6 to 9 are in the others
    assert export(tmp_path / "in", tmp_path / "whole", "parquet", "--shard-size", "3") == 0
    whole, resumed = (content(LocalStore(str(tmp_path / name))) for name in ("whole", "out"))
    assert whole == resumed


def test_a_damaged_export_is_healed_by_the_same_command(tmp_path):
    make(tmp_path / "in")
    assert export(tmp_path / "in", tmp_path / "out", "parquet", "--shard-size", "4") == 0
    before = content(LocalStore(str(tmp_path / "out")))
    path = tmp_path / "out" / "shards" / "00001.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["verify", str(tmp_path / "out"), "--repair"]) == 0
    assert export(tmp_path / "in", tmp_path / "out", "parquet", "--shard-size", "4") == 0
    assert content(LocalStore(str(tmp_path / "out"))) == before


def test_pictures_of_a_dataset_with_failed_shards_are_numbered_anew(tmp_path, capsys):
    store = LocalStore(str(tmp_path / "in"))
    open_job(store, {"rows": PLAN.num_rows, "shard_size": PLAN.shard_size})
    for shard in (0, 2):
        store_shard(store, Manifest(store), encoded_shard(shard, PLAN), sample_format(), PLAN)
    close_dataset(Manifest(store), PLAN.num_shards, {1: "lost"})
    assert export(tmp_path / "in", tmp_path / "out", "folder") == 0
    assert "note: " in (error := capsys.readouterr().err) and "shards [1] could not be made" in error
    found = open_pictures(str(tmp_path / "out")).read(0)
    assert found.index.tolist() == list(range(6)) and found.encoded == IMAGES[:4] + IMAGES[8:]


def test_files_keep_their_bytes_and_other_kinds_become_png(tmp_path):
    folder = tmp_path / "in" / "cat"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for name in ("a.jpg", "b.png", "c.webp", "d.gif", "e.bmp", "f.tiff"):
        image.save(folder / name)
    image.convert("RGBA").save(folder / "g.png")
    (folder / "h.png").write_bytes(
        (folder / "a.jpg").read_bytes()
    )  # ImageNet too has a file of another kind than named
    assert export(tmp_path / "in", tmp_path / "out", "webdataset") == 0
    _, images, _ = everything(tmp_path / "out")
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    kept = [0, 1, 2, 6, 7]
    assert [images[i] for i in kept] == [files[i] for i in kept]
    assert [codec_of(data) for data in images] == ["jpeg", "png", "webp", "png", "png", "png", "png", "jpeg"]
    for i in (4, 5):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(images[i]))), pixels)
    assert verify(LocalStore(str(tmp_path / "out"))).problems == []
    assert b"trainedAlgorithmicMedia" not in b"".join(images)


def test_the_card_calls_only_generated_pictures_synthetic(tmp_path):
    sample_dataset(tmp_path / "in", "webdataset")
    assert export(tmp_path / "in", tmp_path / "a", "parquet") == 0
    assert export(tmp_path / "a", tmp_path / "b", "folder") == 0
    assert export(tmp_path / "b" / "images", tmp_path / "c", "webdataset") == 0
    for name, synthetic in (("a", True), ("b", True), ("c", False)):
        card = (tmp_path / name / "README.md").read_text()
        assert ("- synthetic" in card, "generative model" in card) == (synthetic, synthetic), name
        assert "$" not in card


@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("named", [True, False])
def test_the_python_of_the_card_runs(tmp_path, monkeypatch, to, named):
    if named:
        make(tmp_path / "in")
    else:
        np.savez(tmp_path / "in.npz", np.stack(PIXELS), np.array(LABELS))
    assert export(tmp_path / ("in" if named else "in.npz"), tmp_path / "out", to, "--shard-size", "4") == 0
    python = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    seen = {}
    exec(python.split("\n\nfrom torchvision")[0], seen)  # torchvision is not among the test dependencies
    if to == "webdataset":
        assert (seen["image"].size, seen["label"], seen["row"]["index"]) == ((12, 12), LABELS[9], 9)
    else:
        assert [row["label"] for row in seen["dataset"]] == LABELS


def test_types_of_columns_come_from_their_names():
    kinds = [pa.float32(), pa.float64(), pa.string(), pa.bool_(), pa.date32(), pa.list_(pa.list_(pa.float64()))]
    kinds += [pa.list_(pa.int32(), 3), pa.large_list(pa.string()), pa.timestamp("us"), pa.float16(), pa.null()]
    assert [type_of(str(kind)) for kind in kinds] == kinds
    assert type_of(str(pa.struct([("a", pa.int64())]))) is None and type_of("list<item: struct<a: int64>>") is None
    names = column_types(Identity({"columns": {"a": "int64", "b": "struct<a: int64>"}}))
    assert names == {"seed": pa.int64(), "draft_steps": pa.int32(), "a": pa.int64()}
    assert typed("day", ["2026-01-31", None], pa.date32()).to_pylist()[0].day == 31
    with pytest.raises(ValueError, match="column 'a': expected values of int64, got others"):
        typed("a", ["x"], pa.int64())


def test_columns_of_unknown_types_are_named(tmp_path, capsys):
    make(tmp_path / "in")  # its record does not have the types of its carried columns
    assert export(tmp_path / "in", tmp_path / "out", "parquet") == 0
    assert "note: columns note, weight are left out: the tars hold them without their types" in capsys.readouterr().err
    assert pq.read_table(tmp_path / "out" / "shards").schema.names[-2:] == ["seed", "draft_steps"]


def unlabelled(path):
    np.savez(path, np.stack(PIXELS))


def flipped(path):
    np.savez(path, np.stack(PIXELS), np.array(LABELS))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1  # of a pixel
    path.write_bytes(data)


def broken(path):
    (path / "cat").mkdir(parents=True)
    (path / "cat" / "1.png").write_bytes(IMAGES[0])
    (path / "cat" / "2.png").write_bytes(IMAGES[1][:300])


def too_few_names(path):
    path.mkdir()
    features = {"label": {"_type": "ClassLabel", "names": ["only"]}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": IMAGES[:2], "label": [0, 3]}).replace_schema_metadata(metadata)
    pq.write_table(table, path / "a.parquet")


@pytest.mark.parametrize(
    ("arrange", "name", "out", "message"),
    [
        (unlabelled, "in.npz", "out", "in.npz: arr_0[0]: expected a label, got none"),
        (flipped, "in.npz", "out", "in.npz: not a whole .npz file: Bad CRC-32 for file 'arr_0.npy'"),
        (broken, "in", "out", "in/cat/2.png: "),
        (
            too_few_names,
            "in",
            "out",
            "row 1 of row group 0: expected a label from 0 to 0, as there are 1 class names, ",
        ),
        (make, "in", "in/out", "OUT: expected a place apart from DATASET, got "),
        (make, "in", ".", "OUT: expected a place apart from DATASET, got "),
        (make, "in", "taken", "taken is not empty and holds no job"),
        (make, "in", "a.npz", "expected a directory, "),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, arrange, name, out, message):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "a.npz").touch()
    arrange(tmp_path / name)
    assert export(tmp_path / name, tmp_path / out, "parquet") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_another_export_in_the_same_place_is_refused_or_replaces_it(tmp_path, capsys):
    make(tmp_path / "in")
    assert export(tmp_path / "in", tmp_path / "out", "parquet") == 0
    assert export(tmp_path / "in", tmp_path / "out", "webdataset") == 2
    assert 'format: there "parquet", here "webdataset"' in capsys.readouterr().err
    assert export(tmp_path / "in", tmp_path / "out", "webdataset", "--overwrite") == 0
    assert everything(tmp_path / "out")[1] == IMAGES
    assert list(data_of(tmp_path / "out")) == ["shards/00000-1.tar"]
    assert export(tmp_path / "in", tmp_path / "a.npz", "npz", "--shard-size", "4") == 2
    assert "--shard-size: expected none, as an .npz file has no shards, got 4" in capsys.readouterr().err


def test_class_names_are_those_of_the_source(tmp_path):
    assert CLASS_NAMES[2] != NAMES[2]
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.png").write_bytes(png(np.full((4, 4, 3), value)))
    assert export(tmp_path / "in", tmp_path / "out", "webdataset") == 0
    assert export(tmp_path / "out", tmp_path / "again", "parquet") == 0
    found, _, labels = everything(tmp_path / "again")
    assert found.class_names == ("a", "b") and labels == [0, 1]
    assert pq.read_table(tmp_path / "again" / "shards")["class_name"].to_pylist() == ["a", "b"]
