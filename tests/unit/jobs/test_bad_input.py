"""What people give by mistake, or to see what happens: a line that says what was expected, and soon."""

import json
import os
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from support.sample_shards import sample_dataset
from support.tiny_models import CLASS_NAMES, save_tiny_models, tiny_var
from tandem.checkpoints.weights import open_all, open_checkpoint
from tandem.class_names import ClassNames
from tandem.config import to_dict
from tandem.errors import InputError, JobError, LabelError, TandemError
from tandem.image_folder import list_image_folder
from tandem.user_files import MAX_DEPTH, parse_json, shown
from tandem_cluster.plan_file import read_plan
from tandem_cluster.profile_file import read_profile
from tandem_jobs.cli import main
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.labels.label_file import read_label_file
from tandem_jobs.options.spec import parse
from tandem_jobs.options.yaml_file import load_yaml
from tandem_jobs.plan import parse_hours
from tandem_workers.dataset.drafts import open_drafts
from tandem_workers.dataset.formats import unique_class_names
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.seal import open_sealed, seal
from tandem_workers.models.class_files import read_class_names
from tandem_workers.models.model_set import resolve_models
from tandem_workers.models.sources import local_file
from tandem_workers.storage.places import open_store

NAMES = ClassNames(CLASS_NAMES)
BASE = ("--out", "o", "--classes", "all", "--images", "5")


def generate(*argv: str) -> GenerateSpec:
    return parse(GenerateSpec, [*BASE, *argv], "tandem generate")


READERS = {
    "labels.csv": lambda path: read_label_file(path, NAMES),
    "class names": lambda path: read_class_names(path, 4),
    "spec": lambda path: generate("--spec", path),
    "runtime env": lambda path: load_yaml("--runtime-env", path),
    "profile": read_profile,
    "plan": read_plan,
    "weights": lambda path: open_all(local_file(path).path),
    "image folder": lambda path: list_image_folder(Path(path)),
    "place": lambda path: open_store(path).check(),
    "drafts": lambda path: open_drafts(open_store(path)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "name",
    [
        "x" * 300,
        "/tmp/" + "a/" * 3000 + "x",
        "a\0b",
        "a\udcffb",
        "~nobody-called-so/x",
        "loop",
        "folder",
        "/dev/zero",
    ],
    ids=["long name", "long path", "zero byte", "surrogate", "unknown user", "loop of links", "folder", "endless"],
)
def test_a_name_that_leads_nowhere_is_a_line(reader, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ending = ".csv" if reader == "labels.csv" and not name.startswith("/dev") else ""
    (tmp_path / f"loop{ending}").symlink_to(tmp_path / f"loop{ending}")
    (tmp_path / f"folder{ending}").mkdir()
    if (reader, name) in (("place", "folder"), ("place", "a\udcffb"), ("place", "~nobody-called-so/x")):
        return READERS[reader](name)  # folders can be called so
    with pytest.raises(TandemError) as caught:
        READERS[reader](name + ending)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    return None


@pytest.mark.parametrize("reader", ["labels.csv", "class names", "weights", "place", "drafts"])
@pytest.mark.parametrize("address", ["s3:/b/x", "S3:b/x", "hf:/a/b/c", "https:/host/x", "file:/x", "gs:/b/x"])
def test_an_address_with_too_few_slashes_is_no_path(reader, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"expected {address.split(':')[0].lower()}://\.\.\., got {address}"):
        READERS[reader](address + (".csv" if reader == "labels.csv" else ""))
    assert not os.listdir(tmp_path), "nothing was made"


@pytest.mark.parametrize(
    "command", [["pictures", "--out"], ["train", "classifier", "--data", "d", "--out"], ["profile", "--out"]]
)
@pytest.mark.parametrize("out", ["s3://bucket/x", "s3:/bucket/x", "x" * 300])
def test_what_is_written_here_takes_no_address(command, out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*command, out]) == 2
    err = capsys.readouterr().err
    assert "error: --out: expected" in err and "Traceback" not in err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, f"expected at most {MAX_DEPTH} levels"),
        ('{"a":' * 70 + "1" + "}" * 70, f"expected at most {MAX_DEPTH} levels"),
        ('{"a": NaN}', "expected a number or null, got NaN"),
        ('{"a": [-Infinity]}', "expected a number or null, got -Infinity"),
        ('{"a": 1e999}', "expected numbers below 1.8e308, got 1e999"),
        ('{"a": ' + "1" * 5000 + "}", "expected numbers of at most 4,300 digits"),
        ('{"a": 1, "a": 2}', "expected every key once, got 'a' twice or more"),
        ('{"a": 1', "not JSON: "),
    ],
    ids=lambda value: value[:20],
)
def test_json_is_read_within_bounds(text, message, tmp_path):
    for reader, name in (("labels.csv", "rows.jsonl"), ("class names", "names.json")):
        (tmp_path / name).write_text(text)
        with pytest.raises(LabelError, match=message):
            READERS[reader](str(tmp_path / name))
    save_file({"x": torch.zeros(1)}, tmp_path / "v.safetensors", metadata={"tandem": text})
    with pytest.raises(InputError, match=message):
        open_all(tmp_path / "v.safetensors")


def test_nested_values_up_to_the_limit_are_carried(tmp_path):
    deep = '{"label": 1, "x": ' + "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1) + "}"
    assert parse_json(deep)["label"] == 1
    (tmp_path / "rows.jsonl").write_text(deep)
    assert len(read_label_file(str(tmp_path / "rows.jsonl"), NAMES)) == 1


def test_rows_with_keys_of_their_own_are_refused_before_they_fill_the_memory(tmp_path):
    for nested in (False, True):
        rows = [{f"k{100 * i + j}": 1 for j in range(100)} for i in range(1000)]
        lines = [{"label": 1, **({"o": row} if nested else row)} for row in rows]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(LabelError, match="expected at most 1000 different keys in all rows"):
            read_label_file(str(tmp_path / "rows.jsonl"), NAMES)
    (tmp_path / "rows.csv").write_text("label," + ",".join(f"k{i}" for i in range(100_000)) + "\n")
    with pytest.raises(LabelError, match="expected at most 1000 columns, got 100001"):
        read_label_file(str(tmp_path / "rows.csv"), NAMES)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([f"name {i}" for i in range(8)], "expected 4 names, got 8"),
        (["ant"], "expected 4 names, got 1"),
        (None, "expected a list of names, got None"),
        (7, "expected a list of names, got 7"),
        (True, "expected a list of names, got True"),
        ({"0": "ant"}, "expected a list of names, got {'0': 'ant'}"),
        (["ant", "bee", "cat", None], "expected a list of names"),
        (["ant", "bee", "cat", 3], "expected a list of names"),
        (["ant", "bee", "cat", ["dog"]], "expected a list of names"),
        (["ant", "bee", "cat", "do\ng"], r"expected names without control characters, got 'do\\ng' for 3"),
        (["ant", "bee", "cat", "\ud800"], r"expected names without control characters, got '\\ud800' for 3"),
    ],
)
def test_class_names_in_a_header_are_counted_against_the_model(classes, message, tmp_path):
    var = tiny_var(2, 1)
    header = json.dumps({"kind": "var", "config": to_dict(var.config), "classes": classes})
    path = tmp_path / "var.safetensors"
    save_file({name: t.clone() for name, t in var.state_dict().items()}, path, metadata={"tandem": header})
    with pytest.raises(InputError, match=message):
        open_checkpoint(path)
    others = save_tiny_models(tmp_path)
    with pytest.raises(InputError, match=message):  # as generate asks, before anything starts
        resolve_models(str(path), others["refiner"], others["vqvae"], random_weights=False)


def test_a_torch_file_with_keys_of_mixed_types_is_a_line(tmp_path):
    tensor = torch.zeros(1)
    torch.save({5: tensor, None: 1, (1, "a"): tensor, b"x": {}, "a": tensor}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"expected a VQVAE .* or a VAR .*, got 5, None, \(1, 'a'\), b'x', 'a'"):
        open_all(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": float("inf")}, "stages.0.seconds: expected less than or equal to 1000000, got inf"),
        ({"seconds": float("nan")}, "stages.0.seconds: expected"),
        ({"seconds": 0}, "stages.0: draft needs seconds above 0"),
        ({"seconds": 1e300}, "stages.0.seconds: expected"),
        ({"batch": 10**400}, "stages.0.batch: "),
        ({"memory_bytes": 10**400}, "stages.0.memory_bytes: "),
        (None, "not JSON: expected value at line 1 column 1"),
    ],
)
def test_a_profile_with_impossible_times_is_a_line(change, message, tmp_path):
    profile = json.loads(read_profile("paper-l20").model_dump_json())
    profile["stages"][0].update(change or {})
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile) if change else "hello")
    with pytest.raises(InputError, match=f"^--profile: {path}: {message}"):
        read_profile(str(path))


def test_a_deadline_has_a_limit():
    assert parse_hours("3650d") == 87_600
    for text in ("3651d", "9" * 400 + "d", "1" * 30 + "s"):
        with pytest.raises(InputError, match="--deadline: expected at most 3650d, got"):
            parse_hours(text)


@pytest.mark.parametrize("column", ["label", "count", "class_name", "cfg", "seed"])
def test_dates_that_python_does_not_have_are_a_line_in_columns_that_are_read(column, tmp_path):
    table = pa.table({"label": [1], column: pa.array([2**30], pa.date32())} | ({} if column == "label" else {"x": [1]}))
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(LabelError, match=rf"rows\.parquet: {column}: cannot read values of type date32"):
        read_label_file(str(tmp_path / "rows.parquet"), NAMES)


def test_a_manifest_entry_with_impossible_seconds_is_named(tmp_path):
    store = sample_dataset(tmp_path, "webdataset")
    path = tmp_path / "manifest/00000.json"
    values = open_sealed(path.read_bytes(), ())
    for seconds in (10**400, float("nan"), -1, True, "1"):
        path.write_bytes(seal(values | {"seconds": {"draft": seconds}}))
        with pytest.raises(JobError, match="expected seconds by stage") as caught:
            Manifest(store).entry(0)
        assert len(str(caught.value)) < 600


def test_a_picture_with_damaged_metadata_is_read_without_a_warning(tmp_path):
    (tmp_path / "ant").mkdir()
    cut = b"Exif\0\0II*\0\x08\0\0\0\x05\0"  # five entries, of which none is there
    Image.new("RGB", (4, 4), "red").save(tmp_path / "ant" / "0.jpg", exif=cut)
    with warnings.catch_warnings(action="error"):
        assert [pixels.shape for _, pixels in list_image_folder(tmp_path).read_all()] == [(4, 4, 3)]


def test_messages_show_a_part_of_long_values(tmp_path):
    texts = {"names.json": json.dumps("a\nb" * 1000), "names.csv": 'label,name\n"' + "a\n" * 1000 + '",ant\n'}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(LabelError) as caught:
            read_class_names(str(tmp_path / name), 4)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_names_of_a_class_label_are_unique_whatever_classes_are_called():
    assert unique_class_names(("crane", "ant", "crane")) == ["crane (0)", "ant", "crane (2)"]
    odd = ("crane", "crane (0)", "crane", "crane (0) (0)", "null", "1", "[a]")
    names = unique_class_names(odd)
    assert len(set(names)) == len(odd) and names[4:] == ["null", "1", "[a]"]


def test_values_in_messages_are_one_line():
    assert shown("a\nb\0\ud800é") == r"a\nb\x00\ud800é"
    assert shown("x" * 1000) == "x" * 100 + "..." + "x" * 100 and len(shown("\n" * 1000)) < 210


def test_a_file_of_too_many_models_is_refused(tmp_path):
    torch.save({f"{i}.word_embed.weight": torch.zeros(1) for i in range(65)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth: expected at most 64 models, got 65"):
        open_all(tmp_path / "x.pth")


def test_a_table_of_too_many_rows_is_refused_by_its_footer(tmp_path, monkeypatch):
    monkeypatch.setattr("tandem_jobs.labels.label_tables.MAX_ROWS", 3)
    pq.write_table(pa.table({"label": [1] * 4}), tmp_path / "rows.parquet")
    with pytest.raises(LabelError, match=r"rows\.parquet: expected at most 3 rows, got 4"):
        read_label_file(str(tmp_path / "rows.parquet"), NAMES)
