"""Which label rows are the same job, and how datasets of older versions go on."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tandem.errors import OutputError
from tandem_jobs.labels.label_file import read_label_file
from tandem_jobs.labels.labels import LabelRows, rows_of_classes
from tandem_jobs.labels.row_identity import old_digest, row_identity
from tandem_workers.dataset.claim import open_job
from tandem_workers.storage.places import open_store

DATA = Path(__file__).parents[3] / "data" / "labels"
NAMES = ("face", "flag")
# of the version that joined values: two rows of class 0 with the numbers 1 and 23, or 12 and 3
JOINED = hashlib.sha256(bytes(8) + b"\nid int64\n" + b"123").hexdigest()


def rows_with(column: pa.Array | pa.ChunkedArray, name: str = "x") -> LabelRows:
    return LabelRows(np.zeros(len(column), np.int32), pa.table({name: column}))


def test_values_that_read_alike_when_joined_are_other_jobs():
    a, b = (read_label_file(str(DATA / name), NAMES) for name in ("colA.csv", "colB.csv"))
    assert a.digest != b.digest
    different = [
        pa.array([1, 23]),
        pa.array([12, 3]),
        pa.array([12, 3], pa.int32()),
        pa.array(["1", "23"]),
        pa.array(["12", "3"]),
        pa.array([b"12", b"3"]),
        pa.array(["12", None]),
        pa.array([None, "12"]),
        pa.array(["12", ""]),
        pa.array([["1", "2"], ["3"]]),
        pa.array([["1"], ["2", "3"]]),
        pa.array([["1"], None]),
        pa.array([["1"], []]),
        pa.array([{"a": 1}, None]),
        pa.array([{"a": 1}, {"a": None}]),
        pa.array([True, False]),
        pa.array([False, True]),
        pa.array([None, None]),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
    ]
    digests = {rows_with(column).digest for column in different}
    assert len(digests | {rows_with(different[0], "y").digest}) == len(different) + 1
    two = pa.table({"a": ["x"], "b": ["y"]})
    assert (
        LabelRows(np.zeros(1, np.int32), two).digest != LabelRows(np.zeros(1, np.int32), two.select(["b", "a"])).digest
    )


def test_chunks_slices_and_buffers_do_not_change_the_digest():
    values = [
        [None, "a", "", "bc", None, "é"],
        [1, None, 3, 4, 5, None],
        [None, True, False, True, None, False],
        [["a"], None, [], ["b", None], [None], ["c"]],
        [{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}, {"a": 2, "b": []}, None, {"a": 3, "b": ["y", "z"]}],
        [0.5, float("nan"), None, -0.0, 1e300, 2.0],
    ]
    for column in map(pa.array, values):
        whole = rows_with(column).digest
        longer = pa.concat_arrays([column[3:], column, column[:2]])
        assert rows_with(longer.slice(3, 6)).digest == whole
        assert rows_with(pa.chunked_array([column[:1], column[1:1], column[1:5], column[5:]])).digest == whole
        twice = LabelRows(np.zeros(6, np.int32), pa.table({"x": column}), np.arange(6, dtype=np.int32))
        assert twice.digest == whole
    dirty = pa.Array.from_buffers(pa.int64(), 3, [pa.py_buffer(b"\xfd"), pa.py_buffer(np.array([1, 99, 3]).tobytes())])
    assert rows_with(dirty).digest == rows_with(pa.array([1, None, 3])).digest


def test_a_long_table_is_hashed_alike_however_it_is_cut():
    column = pa.array([str(i) for i in range(150_000)])
    cut = pa.chunked_array([column[:70_001], column[70_001:]])
    assert rows_with(column).digest == rows_with(cut).digest != rows_with(column.take(np.arange(150_000)[::-1])).digest


def test_a_long_text_for_many_images_is_hashed_in_parts_that_arrow_can_hold(monkeypatch):
    """50 kB for 45,000 images in one array are more than the 2 GiB that it can hold. Here texts are short."""
    count, taken = 45_000, []
    rows = LabelRows(np.zeros(count, np.int32), pa.table({"x": ["a"]}), np.zeros(count, np.int32))
    carried = LabelRows.carried
    monkeypatch.setattr(LabelRows, "carried", lambda self, part: taken.append(len(part)) or carried(self, part))
    assert len(rows.digest) == 64
    assert sum(taken) == count and max(taken) * 500_000 < 2**31


def test_counts_and_repeated_rows_are_the_same_job(tmp_path):
    (tmp_path / "a.csv").write_text("label,count,n\n0,2,x\n1,0,y\n1,1,z\n")
    (tmp_path / "b.csv").write_text("label,n\n0,x\n0,x\n1,z\n")
    a, b = (read_label_file(str(tmp_path / name), NAMES) for name in ("a.csv", "b.csv"))
    assert a.digest == b.digest and old_digest(a) == old_digest(b)


def test_jobs_without_carried_columns_keep_their_digest(tmp_path):
    rows = rows_of_classes([1, 0], per_class=2, images=None)
    fields = {"rows": 4, "rows_sha256": hashlib.sha256(np.array([1, 0, 1, 0], "<i4").tobytes()).hexdigest()}
    assert row_identity(rows, open_store(str(tmp_path)), False) == fields


def resume(tmp_path, rows: LabelRows, overwrite: bool = False) -> dict:
    store = open_store(str(tmp_path / "out"))
    fields = row_identity(rows, store, overwrite)
    open_job(store, fields, overwrite=overwrite)
    return fields


def test_a_job_keeps_names_and_types_of_its_columns_and_another_file_is_refused(tmp_path):
    a, b = (read_label_file(str(DATA / name), NAMES) for name in ("colA.csv", "colB.csv"))
    assert resume(tmp_path, a)["columns"] == {"id": "string"}
    assert resume(tmp_path, a)["rows_sha256"] == a.digest
    with pytest.raises(OutputError, match=r"another job(?s:.*)rows_sha256: there"):
        resume(tmp_path, b)
    with pytest.raises(OutputError, match=r'columns: there {"id": "string"}, here nothing'):
        resume(tmp_path, LabelRows(a.label))
    assert resume(tmp_path, b, overwrite=True)["rows_sha256"] == b.digest


def test_a_dataset_of_an_older_version_goes_on_where_its_digest_is_certain(tmp_path):
    rows = rows_with(pa.array(["1", "23"]))
    old = {"rows": 2, "rows_sha256": hashlib.sha256(bytes(8) + b"\nx string\n'1''23'").hexdigest()}
    open_job(open_store(str(tmp_path / "out")), old)
    assert resume(tmp_path, rows) == old
    with pytest.raises(OutputError, match="another job, or one of an older version, which read these columns as other"):
        resume(tmp_path, rows_with(pa.array(["12", "3"])))
    assert "columns" in resume(tmp_path, rows, overwrite=True)


@pytest.mark.parametrize("values", [[1, 23], [12, 3]])
def test_a_dataset_of_an_older_version_is_refused_where_numbers_were_joined(tmp_path, values):
    open_job(open_store(str(tmp_path / "out")), {"rows": 2, "rows_sha256": JOINED})
    with pytest.raises(OutputError, match="whose digest does not tell 1, 23 from 12, 3: the column 'id' may") as caught:
        resume(tmp_path, rows_with(pa.array(values), "id"))
    assert caught.value.hint == "choose another --out, or replace that job with --overwrite"


def test_a_dataset_of_an_older_version_that_took_numbers_from_text_is_named_as_such(tmp_path):
    open_job(open_store(str(tmp_path / "out")), {"rows": 2, "rows_sha256": JOINED})
    with pytest.raises(OutputError, match="of an older version, which read these columns as other types"):
        resume(tmp_path, read_label_file(str(DATA / "colA.csv"), NAMES))
