"""Label rows: from classes or from a file, checked before anything starts."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.labels import choose_classes, read_label_file, rows_of_classes
from tandem.errors import LabelError
from workers.shards import ShardPlan

NAMES = ("ant", "bee", "cat", "dog", "sea lion")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("cat,ant", [2, 0]),
        ("1-3", [1, 2, 3]),
        ("3, sea lion ,0-1,3", [3, 4, 0, 1]),
    ],
)
def test_classes_by_name_number_and_range(text, labels):
    assert choose_classes(text, NAMES) == labels


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("catt", "got 'catt'", "did you mean cat"),
        ("5", "expected labels 0 to 4, got 5", None),
        ("2-9", "expected labels 0 to 4, got 9", None),
        ("3-1", "a range that ascends, got 3-1", None),
        ("", "got ''", "classes are"),
        ("-1", "got '-1'", None),
    ],
)
def test_a_wrong_class_is_named(text, message, hint):
    with pytest.raises(LabelError, match=message) as caught:
        choose_classes(text, NAMES)
    assert hint is None or hint in caught.value.hint


def test_rows_go_round_the_classes():
    assert rows_of_classes([2, 0], per_class=3, images=None).label.tolist() == [2, 0] * 3
    assert rows_of_classes([2, 0, 1], per_class=None, images=5).label.tolist() == [2, 0, 1, 2, 0]


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
    assert rows.extra.to_pydict() == {"note": ["x", "x", "z"]}
    plain = read_label_file(write(tmp_path, "jsonl", [{"class_name": "cat"}, {"class_name": "sea lion"}]), NAMES)
    assert plain.label.tolist() == [2, 4]
    assert plain.extra is None


def test_shards_slice_labels_and_columns(tmp_path):
    rows = read_label_file(write(tmp_path, "csv", ROWS), NAMES)
    shard = rows.shard(ShardPlan(3, 2), 1)
    assert shard.index.tolist() == [2]
    assert shard.label.tolist() == [4]
    assert shard.extra["note"].to_pylist() == ["z"]


def test_the_digest_tells_labels_and_columns_apart(tmp_path):
    rows = [{"label": 1, "note": "a"}, {"label": 2, "note": "b"}]
    digests = set()
    for changed in (
        rows,
        rows[::-1],
        [{"label": 1, "note": "a"}, {"label": 2, "note": "c"}],
        [{"label": 1}, {"label": 2}],
    ):
        digests.add(read_label_file(write(tmp_path, "jsonl", changed), NAMES).digest)
    assert len(digests) == 4
    again = read_label_file(write(tmp_path, "parquet", rows), NAMES).digest
    assert again in digests


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("csv", [{"label": 1}, {"label": 5}], r"row 2: expected labels 0 to 4, got 5"),
        ("csv", [{"label": 1}, {"label": -1}], r"row 2: label: expected a whole number >= 0, got -1"),
        ("jsonl", [{"label": 1}, {"label": 1.5}], r"row 1: label: expected a whole number >= 0, got 1\.0"),
        ("jsonl", [{"label": 1}, {"label": None}], r"row 2: label: expected a whole number >= 0, got None"),
        ("csv", [{"class_name": "cat"}, {"class_name": "wolf"}], "row 2: unknown class name 'wolf'"),
        ("csv", [{"name": "cat"}], "expected a column 'label' or 'class_name', got name"),
        ("csv", [{"label": 1, "count": -3}], r"row 1: count: expected a whole number >= 0, got -3"),
        ("csv", [{"label": 1, "count": 0}], "expected one row or more, got none"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, kind, rows, message):
    with pytest.raises(LabelError, match=message):
        read_label_file(write(tmp_path, kind, rows), NAMES)


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
