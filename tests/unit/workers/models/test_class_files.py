"""Files of class names: lines, CSV and JSON, and what is wrong with one in a line."""

import json

import pytest

from tandem.class_names import ClassNames
from tandem.errors import LabelError
from tandem_workers.models.class_files import choose_class_names, read_class_names

LINES = "ant\nbee, honeybee\ntom cat\n"
SAME = {
    "names.txt": LINES,
    "bom.txt": "\ufeff" + LINES.replace("\n", "\r\n"),
    "names.csv": 'name,label\nant,0\n"bee, honeybee",1\ntom cat,2\n',
    "names.json": json.dumps(["ant", "bee, honeybee", "tom cat"]),
    "index.json": json.dumps({"2": "tom cat", "0": "ant", "1": "bee, honeybee"}),
}


def write(folder, name: str, text: str | bytes) -> str:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    return str(folder / name)


@pytest.mark.parametrize("name", SAME)
def test_every_kind_of_file_gives_the_same_names(tmp_path, name):
    found = read_class_names(write(tmp_path, name, SAME[name]), 3)
    assert found == ClassNames(("ant", "bee, honeybee", "tom cat"))
    assert found.find("HONEYBEE") == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n.txt", "n02206856 bee, honeybee\nn02219486 ant\n"),
        ("n.csv", 'wnid,name,synonyms\nn02206856,bee,honeybee\nn02219486,ant,"emmet, pismire"\n'),
        ("n.json", json.dumps({"0": ["n02206856", "bee", "honeybee"], "1": ["n02219486", "ant"]})),
    ],
)
def test_ids_and_synonyms(tmp_path, name, text):
    found = read_class_names(write(tmp_path, name, text), 2)
    assert found.wnids == ("n02206856", "n02219486")
    assert [found.find(text) for text in ("honeybee", "N02219486", "ant")] == [0, 1, 1]


def test_our_own_list_can_be_read(tmp_path):
    from importlib.resources import files

    text = (files("tandem") / "imagenet_1k.csv").read_text(encoding="utf-8").replace(",crane", ",crane {}")
    found = read_class_names(write(tmp_path, "list.csv", text.format("bird", "machine")), 1000)
    assert found.find("n02099601") == found.find("golden retriever") == 207


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "a\nb\n", r"a\.txt: expected 3 names, one for each class of the model, got 2"),
        ("a.txt", "a\n\nc\n", r"a\.txt, row 2: expected a name of 1 to 200 printable characters, got ''"),
        ("a.txt", f"a\n{'b' * 201}\nc\n", "row 2: expected a name of 1 to 200 printable"),
        ("a.txt", "a\nb\x00\nc\n", r"row 2: expected a name of 1 to 200 printable characters, got 'b\\x00'"),
        ("a.txt", "a\nb\nA\n", "row 3: expected a name of its own, got 'A' as in row 1"),
        ("a.txt", "1\n0\n2\n", "row 1: expected a name, or the class's own number 0, got 1"),
        ("a.txt", b"a\n\xe9\nc\n", r"a\.txt, line 2: not UTF-8"),
        ("a.csv", "a\nb\nc\nd\n", r"a\.csv: expected a column name and maybe label, synonyms, wnid, got \['a'\]"),
        ("a.csv", "name\na\nb,c\nd\n", "row 2: expected 1 cells, got more or fewer"),
        ("a.csv", "label,name\n0,a\n2,b\n1,c\n", "row 2: expected label 1, as rows are in label order, got 2"),
        ("a.csv", "wnid,name\nn02206856,a\nn02206856,b\nn02206857,c\n", "row 2: expected a WordNet id of its own"),
        ("a.csv", "wnid,name\nn02206856,a\n,b\nn02206857,c\n", "row 2: expected a WordNet id .* got none"),
        ("a.csv", 'name\n"a\nb\nc\n', r"a\.csv, line \d: unexpected end of data"),
        ("a.json", '["a", null, "c"]', "label 1: expected a name, or a list of a name and its synonyms, got None"),
        ("a.json", '["a", [], "c"]', "label 1: expected a name"),
        ("a.json", '{"0": "a", "1": "b", "3": "c"}', "expected the labels 0 to 2 as keys, got '3'"),
        ("a.json", "7", "expected a list of names, or an object of names by label, got 7"),
        ("a.json", "[", r"a\.json: not JSON: "),
        ("a.json", "[" * 100_000, r"a\.json: expected at most 64 levels"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, name, text, message):
    with pytest.raises(LabelError, match=message) as caught:
        read_class_names(write(tmp_path, name, text), 3)
    assert str(caught.value).startswith("--class-names: ") and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LabelError, match=r"--class-names: cannot read .*gone\.txt: No such file") as caught:
        choose_class_names(None, str(tmp_path / "gone.txt"), 3)
    assert "'imagenet' or 'numbers'" in caught.value.hint
    with pytest.raises(LabelError, match="--class-names: 'imagenet' needs a model of 1000 classes, got 3"):
        choose_class_names(None, "imagenet", 3)
