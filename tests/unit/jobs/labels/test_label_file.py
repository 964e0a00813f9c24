"""Label files: every value as it is written, and what cannot be kept is refused with its row."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tandem.class_names import ClassNames
from tandem.errors import LabelError
from tandem_jobs.labels.label_file import read_label_file
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.storage.layout import MAX_ROWS

NAMES = ClassNames(("ant", "bee", "cat", "dog", "sea lion"))
DATA = Path(__file__).parents[3] / "data" / "labels"


def write(tmp_path, kind: str, rows: list[dict]) -> str:
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif kind == "csv":
        lines = [",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS = [
    {"label": 2, "count": 2, "note": "x"},
    {"label": 0, "count": 0, "note": "y"},
    {"label": 4, "count": 1, "note": "z"},
]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    rows = read_label_file(write(tmp_path, kind, ROWS), NAMES)
    assert rows.label.tolist() == [2, 2, 4]
    assert {name: column.to_pylist() for name, column in rows.carried(range(3)).items()} == {"note": ["x", "x", "z"]}
    plain = read_label_file(write(tmp_path, "jsonl", [{"class_name": "cat"}, {"class_name": "sea lion"}]), NAMES)
    assert plain.label.tolist() == [2, 4]
    assert plain.extra is None


def test_shards_slice_labels_and_columns(tmp_path):
    rows = read_label_file(write(tmp_path, "csv", ROWS), NAMES)
    shard = rows.shard(ShardPlan(3, 2), 1)
    assert shard.index.tolist() == [2]
    assert shard.label.tolist() == [4]
    assert shard.extra["note"].to_pylist() == ["z"]


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("csv", [{"label": 1}, {"label": 5}], r"row 2: expected labels 0 to 4, got 5"),
        ("csv", [{"label": 1}, {"label": -1}], r"row 2: label: expected a whole number >= 0, got -1"),
        ("jsonl", [{"label": 1}, {"label": 1.5}], r"row 1: label: expected a whole number >= 0, got 1\.0"),
        ("jsonl", [{"label": 1}, {"label": None}], r"row 2: label: expected a whole number >= 0, got None"),
        ("csv", [{"class_name": "cat"}, {"class_name": "wolf"}], "row 2: class_name: .* got 'wolf'"),
        ("csv", [{"name": "cat"}], "expected a column 'label' or 'class_name', got name"),
        ("csv", [{"label": 1, "count": -3}], r"row 1: count: expected a whole number >= 0, got -3"),
        ("csv", [{"label": 1, "count": 0}], "expected one row or more, got none"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, kind, rows, message):
    with pytest.raises(LabelError, match=message):
        read_label_file(write(tmp_path, kind, rows), NAMES)


@pytest.mark.parametrize("text", ["label,count\n0,3\n1,\n", '{"label":0,"count":3}\n{"label":1}\n'])
def test_a_row_without_a_count_is_one_image(tmp_path, text):
    name = "a.csv" if text.startswith("label") else "a.jsonl"
    assert read_label_file(save(tmp_path, name, text), NAMES).label.tolist() == [0, 0, 0, 1]


def test_rows_are_counted_over_batches(tmp_path):
    rows = [{"label": i % 5} for i in range(5000)] + [{"label": 7}]
    with pytest.raises(LabelError, match="row 5001: expected labels 0 to 4, got 7"):
        read_label_file(write(tmp_path, "parquet", rows), NAMES)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(LabelError, match=r"no such file: .*gone\.csv"):
        read_label_file(str(tmp_path / "gone.csv"), NAMES)
    with pytest.raises(LabelError, match=r"ends in \.parquet, \.csv"):
        read_label_file(write(tmp_path, "txt", [{"label": 1}]), NAMES)
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(LabelError, match=r"cannot read .*bad\.parquet"):
        read_label_file(str(tmp_path / "bad.parquet"), NAMES)


def columns(path) -> dict[str, list]:
    """Carried columns of a file, one value an image."""
    rows = read_label_file(str(path), ClassNames(("face", "flag", *NAMES)))
    return {name: column.to_pylist() for name, column in rows.carried(range(len(rows))).items()}


def save(tmp_path, name: str, content: str | bytes) -> str:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(tmp_path / name)


def test_csv_columns_stay_the_text_that_is_written():
    assert columns(DATA / "ids.csv") == {
        "id": ["007", "010"],
        "ver": ["1.10", "1.20"],
        "zip": ["02116", "00501"],
        "when": ["2024-01-02 03:04", "2024-12-31 00:00"],
        "flag": ["TRUE", "False"],
        "phone": ["+4912", "+4913"],
        "hash": ["1e10", "2e5"],
        "clock": ["12:30", "00:05"],
        "big": ["18446744073709551615", "12345678901234567890"],
        "na": ["NA", "x"],
        "pct": ["5%", "6%"],
    }


def test_csv_quotes_newlines_empty_values_and_byte_order_marks(tmp_path):
    text = '\ufefflabel,note\r\n" 01 ","two\nlines, ""quoted"""\r\n0,\r\n\r\n2,""\r\n1, x \r\n'
    assert columns(save(tmp_path, "a.csv", text)) == {"note": ['two\nlines, "quoted"', "", "", " x "]}


def test_csv_with_long_lines_and_many_quoted_newlines(tmp_path):
    notes = ["a\n" * 1_500_000, "b" * 1_500_000, *["c\nd" * 50] * 5000]
    text = "label,note\n" + "".join(f'1,"{note}"\n' for note in notes)
    assert columns(save(tmp_path, "a.csv", text)) == {"note": notes}


def test_json_keys_that_first_appear_late_are_kept(tmp_path):
    rows = [{"label": 0, "text": "x" * 50_000}] * 25 + [{"label": 1, "count": 10, "source": "b"}]
    found = columns(write(tmp_path, "jsonl", rows))
    assert found["source"] == [None] * 25 + ["b"] * 10
    assert found["text"] == ["x" * 50_000] * 25 + [None] * 10
    late = [{"label": 0, "n": 1, "o": {"a": 1}}] * 1500 + [{"label": 0, "n": 0.5, "o": {"b": "x"}}]
    found = columns(write(tmp_path, "jsonl", late))
    assert found["n"] == [1.0] * 1500 + [0.5]
    assert found["o"] == [{"a": 1, "b": None}] * 1500 + [{"a": None, "b": "x"}]


def test_json_values_keep_their_kind(tmp_path):
    day, at, z, big = "2024-01-02", "2024-01-02T03:04:05+02:00", "007", 2**63 - 1
    rows = [
        {"label": 0, "day": day, "at": at, "z": z, "big": big, "flag": True, "deep": {"tags": ["1e10"], "n": [[1]]}},
        {"label": 1, "day": "", "at": None, "z": "8", "big": -(2**63), "flag": None, "deep": None, "nothing": None},
    ]
    found = columns(write(tmp_path, "jsonl", rows))
    assert found == {
        "day": [day, ""],
        "at": [at, None],
        "z": [z, "8"],
        "big": [big, -(2**63)],
        "flag": [True, None],
        "deep": [{"tags": ["1e10"], "n": [[1]]}, None],
        "nothing": [None, None],
    }


def test_parquet_columns_keep_their_types(tmp_path):
    table = pa.table(
        {
            "label": pa.array([1, 0], pa.uint8()),
            "count": pa.array([2, 1], pa.int16()),
            "zip": ["02116", None],
            "big": pa.array([2**64 - 1, 1], pa.uint64()),
            "at": pa.array([0, 1], pa.timestamp("us", "Europe/Paris")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rows = read_label_file(str(tmp_path / "a.parquet"), NAMES)
    assert {name: column.type for name, column in rows.carried(range(3)).items()} == {
        "zip": pa.string(),
        "big": pa.uint64(),
        "at": pa.timestamp("us", "Europe/Paris"),
    }
    assert rows.carried(range(1, 3))["big"].to_pylist() == [2**64 - 1, 1]


def test_rows_with_a_large_count_take_their_columns_once(tmp_path):
    rows = read_label_file(save(tmp_path, "a.csv", f"label,count,note\n0,2000000,{'x' * 10_000}\n1,1,y\n"), NAMES)
    assert len(rows) == 2_000_001 and rows.extra.nbytes < 20_000
    shard = rows.shard(ShardPlan(len(rows), 4), 500_000)
    assert shard.label.tolist() == [1] and shard.extra["note"].to_pylist() == ["y"]
    assert rows.shard(ShardPlan(len(rows), 4), 7).extra["note"].to_pylist() == ["x" * 10_000] * 4


@pytest.mark.parametrize(
    ("header", "got", "wanted"),
    [
        ("label, count", " count", "count"),
        ("label,Count", "Count", "count"),
        ("label,COUNTS", "COUNTS", "count"),
        ("Label,count", "Label", "label"),
        ("labels", "labels", "label"),
        ("class name,count", "class name", "class_name"),
        ("className", "className", "class_name"),
        ("label,Class-Name", "Class-Name", "class_name"),
    ],
)
def test_a_name_that_is_nearly_one_of_ours_is_refused(tmp_path, header, got, wanted):
    path = save(tmp_path, "a.csv", header + "\n" + ",".join("1" for _ in header.split(",")) + "\n")
    with pytest.raises(LabelError, match=f"column '{got}': expected '{wanted}'") as caught:
        read_label_file(path, NAMES)
    assert caught.value.hint
    typed = pa.table({name: [1] for name in header.split(",")})
    pq.write_table(typed, tmp_path / "a.parquet")
    with pytest.raises(LabelError, match=f"column '{got}': expected '{wanted}'"):
        read_label_file(str(tmp_path / "a.parquet"), NAMES)


def test_names_that_only_resemble_ours_are_carried(tmp_path):
    path = save(tmp_path, "a.csv", "label,label_source,classes,counter,labels\n1,a,b,c,d\n")
    assert columns(path) == {"label_source": ["a"], "classes": ["b"], "counter": ["c"], "labels": ["d"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "label\n1\n2.0\n", r"row 2: label: expected a whole number >= 0, got 2\.0"),
        ("a.csv", "label\n1\n,\n", "row 2: expected 1 values, as the header has, got 2"),
        ("a.csv", "label,note\n1,a\n,b\n", "row 2: label: expected a whole number >= 0, got nothing"),
        ("a.csv", "label,note\n1,a\n1\n", "row 2: expected 2 values, as the header has, got 1"),
        ("a.csv", "label,note,note\n1,a,b\n", "every column once, got 'note' twice"),
        ("a.csv", 'label,note\n1,"a\n1,b\n', "cannot read .*unexpected end of data"),
        ("a.csv", "label,class_name\n0,ant\n1,cat\n", "row 2: label 1 is 'bee', but class_name is 'cat'"),
        ("a.csv", "label,count\n0,9999999999999\n", f"row 1: count: expected at most {MAX_ROWS} images"),
        ("a.csv", f"label,count\n0,{MAX_ROWS}\n0,1\n", f"row 2: count: .* {MAX_ROWS} images .*, got {MAX_ROWS + 1}"),
        ("a.csv", "label,count\n0," + "9" * 5000 + "\n", "row 1: count: expected a whole number"),
        ("a.csv", "label,n\n1,x\n2,caf\u00e9\n".encode("latin-1"), r"line 3: not UTF-8 \(byte 0xe9\)"),
        ("a.csv", "label\n1\n".encode("utf-16"), r"line 1: not UTF-8 \(byte 0xff\)"),
        ("a.csv", "label\n1\n".encode("utf-16-le"), "line 1: not UTF-8 text"),
        ("a.csv", b"label,n\n1,\xc3", "line 2: not UTF-8"),
        ("a.csv", "", "expected one row or more, got none"),
        ("a.jsonl", '{"label": 1}\n{"label": 1, "label": 2}\n', "row 2: expected every key once, got 'label' twice"),
        ("a.jsonl", '{"label": 1, "o": {"a": 1, "a": 2}}\n', "row 1: expected every key once, got 'a' twice"),
        ("a.jsonl", '{"label": 1, "n": 1}\n\n{"label": 1, "n": "x"}\n', 'row 2: n: expected int64, .*, got "x"'),
        ("a.jsonl", '{"label": 1, "n": [12345678901234567890]}\n', r"row 1: n: expected whole numbers from -2\^63"),
        ("a.jsonl", '{"label": 1, "n": 9007199254740993}\n' * 1000 + '{"label": 1, "n": 0.5}\n', "n: whole numbers"),
        ("a.jsonl", '{"label": 1, "n": 0.5}\n{"label": 1, "n": true}\n', "row 2: n: expected double, .*, got true"),
        ("a.jsonl", '{"label": 1, "n": [{"a": [0.5, false]}]}\n', "row 1: n: expected .* values of one type"),
        ("a.jsonl", '{"class_name": ["ant"]}\n', r"row 1: class_name: expected a class name .*, got \"\['ant'\]\""),
        ("a.jsonl", '{"label": 1, "n": 1e999}\n', "row 1: expected numbers below 1.8e308, got 1e999"),
        ("a.jsonl", '{"label": 1, "n": "\\ud800"}\n', "row 1: n: expected text of valid characters"),
        ("a.jsonl", '{"label": 1}\n[1]\n', r"row 2: expected an object on each line, .*, got \[1\]"),
        ("a.jsonl", '{"label": 1}\n{"label": 1\n', "row 2: not JSON: "),
        ("a.jsonl", "[" * 100_000 + "\n", "row 1: expected at most 64 levels"),
        ("a.jsonl", '{"label": 1}\n'.encode("utf-16"), "line 1: not UTF-8"),
    ],
)
def test_what_cannot_be_kept_as_it_is_is_refused_with_its_place(tmp_path, name, content, message):
    with pytest.raises(LabelError, match=message):
        read_label_file(save(tmp_path, name, content), NAMES)


def test_counts_of_a_typed_file_are_limited_too():
    with pytest.raises(
        LabelError, match=f"row 1: count: expected at most {MAX_ROWS} images .*, got 9223372036854775813"
    ):
        read_label_file(str(DATA / "ucount.parquet"), NAMES)


def test_a_label_and_an_equal_class_name_are_fine(tmp_path):
    assert read_label_file(save(tmp_path, "a.csv", "class_name,label\nAnt,0\n,1\n"), NAMES).label.tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_colon_in_a_file_name_makes_it_no_address(kind, tmp_path, monkeypatch):
    write(tmp_path, kind, [{"label": 1}])
    (tmp_path / f"rows.{kind}").rename(tmp_path / f"labels:v1.{kind}")
    monkeypatch.chdir(tmp_path)
    assert read_label_file(f"labels:v1.{kind}", NAMES).label.tolist() == [1]
