"""Carried columns of every Arrow type, through every format, read back by Hugging Face's datasets by our own card."""

import datetime
import decimal
import io
import uuid
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.sample_shards import PLAN, dataset_with, encoded_shard, sample_format
from tandem.errors import InputError
from tandem_jobs.labels.label_file import read_label_file
from tandem_workers.dataset.columns import check_carried, stored, stored_schema
from tandem_workers.dataset.drafts import DraftFormat
from tandem_workers.dataset.shards import PrefixShard

DATA = Path(__file__).parents[3] / "data" / "labels"
FORMATS = ["webdataset", "parquet", "folder"]
DAY, CLOCK, UUID = datetime.date(2024, 2, 29), datetime.time(1, 2, 3), uuid.UUID(int=7)
STAMP = datetime.datetime(2024, 2, 29, 1, 2, 3)
VIEW = pa.binary_view()
# type, two values, and the type and values that are stored where they differ
TYPES = {
    "null": (pa.null(), [None, None]),
    "flag": (pa.bool_(), [True, False]),
    "int8": (pa.int8(), [-1, 2]),
    "uint64": (pa.uint64(), [2**63 - 1, 1]),
    "half": (pa.float16(), [0.5, 2.0]),
    "float": (pa.float32(), [0.5, 2.0]),
    "text": (pa.string(), ["007", ""]),
    "large": (pa.large_string(), ["1e10", "é"]),
    "view": (pa.string_view(), ["NA", "x"], pa.string()),
    "words": (pa.dictionary(pa.int32(), pa.string()), ["a", "b"], pa.string()),
    "bytes": (pa.binary(), [b"\xff\x00", b""]),
    "bytes_view": (VIEW, [b"\xff\x00", b""], pa.binary()),
    "bytes_words": (pa.dictionary(pa.int32(), pa.binary()), [b"\xff\x00", b""], pa.binary()),
    "fixed": (pa.binary(2), [b"\xff\x00", b"ab"], pa.binary()),
    "date": (pa.date32(), [DAY, DAY]),
    "date64": (pa.date64(), [DAY, DAY], pa.date32()),
    "clock": (pa.time64("us"), [CLOCK, CLOCK]),
    "stamp": (pa.timestamp("us"), [STAMP, STAMP]),
    "zone": (pa.timestamp("us", "UTC"), [STAMP.replace(tzinfo=datetime.UTC)] * 2),
    "lasting": (pa.duration("us"), [datetime.timedelta(1), datetime.timedelta(0, 1)]),
    "decimal": (pa.decimal128(38, 2), [decimal.Decimal("1.50"), decimal.Decimal(0)]),
    "wide_decimal": (pa.decimal256(60, 2), [decimal.Decimal("1.50"), decimal.Decimal(0)]),
    "list": (pa.list_(pa.int64()), [[1, None], []]),
    "large_list": (pa.large_list(pa.string()), [["a"], []]),
    "pair": (pa.list_(pa.int64(), 2), [[1, 2], [3, None]]),
    "no_pair": (pa.list_(pa.int64(), 0), [[], []], pa.list_(pa.int64())),
    "tags": (pa.list_(pa.dictionary(pa.int8(), pa.string())), [["a", None], []], pa.list_(pa.string())),
    "views": (pa.list_(VIEW), [[b"\xff"], []], pa.list_(pa.binary())),
    "struct": (pa.struct([("a", pa.int64()), ("b", VIEW)]), [{"a": 1, "b": b"\xff"}, {"a": None, "b": None}]),
    "map": (pa.map_(pa.string(), pa.int64()), [[("a", 1)], []]),
    "structs": (pa.list_(pa.struct([("a", pa.int64())])), [[{"a": 1}], []]),
}
STORED = {  # that are spelt at length
    "struct": (pa.struct([("a", pa.int64()), ("b", pa.binary())]), TYPES["struct"][1]),
    "map": (pa.list_(pa.struct([("key", pa.string()), ("value", pa.int64())])), [[{"key": "a", "value": 1}], []]),
}
REFUSED = {
    "empty": pa.struct([]),
    "empty_within": pa.list_(pa.struct([("a", pa.struct([]))])),
    "list_view": pa.list_view(pa.int64()),
    "large_list_view": pa.large_list_view(pa.int64()),
    "interval": pa.month_day_nano_interval(),
    "tensor": pa.fixed_shape_tensor(pa.float32(), [2, 2]),
    "union": pa.sparse_union([pa.field("a", pa.int64()), pa.field("b", pa.string())]),
    "run_ends": pa.run_end_encoded(pa.int32(), pa.string()),
}
if hasattr(pa, "decimal32"):  # of pyarrow 19
    TYPES["uuid"] = (pa.uuid(), [UUID.bytes, UUID.bytes], pa.string(), [str(UUID), str(UUID)])
    TYPES["small"] = (pa.decimal32(5, 2), [decimal.Decimal("1.50"), decimal.Decimal(0)], pa.decimal128(5, 2))
    REFUSED["uuids"] = pa.list_(pa.uuid())


def all_types() -> pa.Table:
    """A row of nulls, then two of values."""
    columns = {}
    for name, (kind, values, *_) in TYPES.items():
        storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        column = pa.array([None, *values], storage)
        columns[name] = column if storage == kind else pa.ExtensionArray.from_storage(kind, column)
    return pa.table(columns)


def expected(name: str) -> tuple[pa.DataType, list]:
    kind, values, *after = TYPES[name]
    return STORED.get(name) or (after[0] if after else kind, after[1] if len(after) > 1 else values)


def test_columns_of_all_types_keep_their_values():
    table = stored(all_types())
    for name in TYPES:
        kind, values = expected(name)
        assert table[name].type == kind
        assert table[name].to_pylist() == [None, *values], name


@pytest.mark.parametrize("name", REFUSED)
def test_types_that_no_dataset_keeps_are_refused_by_name(name):
    with pytest.raises(InputError, match=f"column '{name}' of the label file holds .* cannot keep") as caught:
        stored_schema(pa.schema([("note", pa.string()), (name, REFUSED[name])]))
    assert caught.value.hint == "drop or convert it"


def load(root: Path) -> datasets.Dataset:
    datasets.disable_progress_bars()
    return datasets.load_dataset(str(root), split="train", cache_dir=str(root.parent / "cache"))


def as_json(value):
    """What a tar keeps of a value: text of what JSON has no word for."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value) if isinstance(value, (datetime.timedelta, decimal.Decimal)) else value


@pytest.mark.parametrize("name", FORMATS)
def test_datasets_reads_columns_of_all_types_by_our_card(tmp_path, name):
    table = stored(all_types())
    if name == "webdataset":  # JSON has no bytes
        table = table.drop_columns([*(n for n in table.column_names if "bytes" in n), "fixed", "views", "struct"])
    check_carried(table, name)
    dataset_with(tmp_path / "out", name, table)
    rows = sorted(load(tmp_path / "out").to_list(), key=lambda row: row.get("json", row)["index"])
    for column in table.column_names:
        values = [row.get("json", row)[column] for row in rows]
        wanted = table[column].to_pylist()
        assert values == ([as_json(value) for value in wanted] if name == "webdataset" else wanted), column


def test_drafts_keep_columns_of_all_types():
    shard = encoded_shard(2, PLAN)
    table = stored(all_types()).slice(0, len(shard))
    check_carried(table, "drafts")
    extra = {column: table[column] for column in table.column_names}
    prefix = PrefixShard.of(shard, prefix=shard.label[:, None].astype("uint16"), draft_steps=1)
    prefix.extra = {column: values.combine_chunks() for column, values in extra.items()}
    ((_, data),) = DraftFormat().files(prefix)
    back = pq.read_table(io.BytesIO(data)).select(table.column_names)
    assert back.to_pylist() == table.to_pylist()
    # a refiner writes what `tandem generate` writes, down to the names of list items in the schema
    pairs = {(str(a.type), str(b.type)) for a, b in zip(table.schema, stored(back).schema, strict=True)}
    assert not {pair for pair in pairs if pair[0] != pair[1]}


@pytest.mark.parametrize("name", [*FORMATS, "drafts"])
@pytest.mark.parametrize("column", ["image", "file_name", "index", "label", "class_name", "seed", "tokens"])
def test_names_of_the_dataset_itself_are_refused_before_the_job(name, column):
    with pytest.raises(InputError, match=f"columns {column} of the label file: these names are the dataset's own"):
        check_carried(pa.table({column: [1], "note": [""]}), name)


@pytest.mark.parametrize("name", [*FORMATS, "drafts"])
@pytest.mark.parametrize("nested", [False, True])
def test_numbers_that_datasets_cannot_read_are_refused_before_the_job(tmp_path, name, nested):
    big = pa.array([2**64 - 1, 1], pa.uint64())
    column = pa.array([{"n": [2**64 - 1]}, None], pa.struct([("n", pa.list_(pa.uint64()))])) if nested else big
    table = pa.table({"x": column})
    if name != "parquet":
        with pytest.raises(InputError, match=r"column 'x' has numbers above 2\^63 - 1") as caught:
            check_carried(table, name)
        assert caught.value.hint.startswith("rename" if name == "drafts" else "use --format parquet")
        return
    check_carried(table, name)
    dataset_with(tmp_path / "out", name, table)
    assert load(tmp_path / "out")["x"][:] == column.to_pylist()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.timestamp("s"), 10**12),
        (pa.timestamp("s"), -(10**12)),
        (pa.timestamp("s", "Nowhere/City"), 1),
        (pa.date32(), 10**7),
        (pa.duration("s"), 10**15),
    ],
)
def test_times_that_python_does_not_know_are_refused_before_the_job(kind, value):
    """They failed in the write stage, after all decoding."""
    column = pa.chunked_array([pa.array([None, value], kind)])
    inside = pa.chunked_array([pa.array([[], [value]], pa.list_(kind))])
    for table in (pa.table({"x": column}), pa.table({"x": inside})):
        for name in ("webdataset", "drafts"):
            with pytest.raises(InputError, match="column 'x' has times that cannot be written as text"):
                check_carried(table, name)
        check_carried(table, "parquet")
    for near in (pa.array([None, 1], pa.duration("s")), pa.array([1], pa.time32("s")), pa.array([None], kind)):
        check_carried(pa.table({"x": near}), "webdataset")


def test_tars_keep_the_nanoseconds_of_times_of_day(tmp_path):
    """Python's own times have none of them, and cut them off."""
    moments, kind = [0, 10**9, 123_456_000, 86_399_123_456_789, 7, None], pa.time64("ns")
    texts = ["00:00:00", "00:00:01", "00:00:00.123456", "23:59:59.123456789", "00:00:00.000000007", None]
    clock = pa.array(moments, kind)
    columns = {
        "clock": clock,
        "list": pa.array([[None, moment] for moment in moments], pa.list_(kind)),
        "pair": pa.array([[moment, 1] for moment in moments], pa.list_(kind, 2)),
        "struct": pa.array([{"deep": [{"at": moment}]} for moment in moments]).cast(
            pa.struct([("deep", pa.list_(pa.struct([("at", kind)])))])
        ),
        "stamp": pa.array([None, *range(5)], pa.timestamp("ns")),
        "lasting": pa.array([None, *range(5)], pa.duration("ns")),
    }
    dataset_with(tmp_path / "out", "webdataset", stored(pa.table(columns)))
    rows = sorted((row["json"] for row in load(tmp_path / "out").to_list()), key=lambda row: row["index"])
    assert [row["clock"] for row in rows] == texts
    assert [row["list"] for row in rows] == [[None, text] for text in texts]
    assert [row["pair"] for row in rows] == [[text, "00:00:00.000000001"] for text in texts]
    assert [row["struct"] for row in rows] == [{"deep": [{"at": text}]} for text in texts]
    assert [row["stamp"] for row in rows][-1] == "1970-01-01T00:00:00.000000004"
    assert [row["lasting"] for row in rows][-1] == "0 days 00:00:00.000000004"


def test_paths_that_imagefolder_would_follow_are_refused_before_the_job(tmp_path):
    source = read_label_file(str(DATA / "srcname.parquet"), ("face",) * 8).extra
    lists = pa.table({"page_file_names": [["a"]]})
    deep = pa.table({"source": [{"file_name": "a"}]})
    for table in (source, lists, deep):
        with pytest.raises(InputError, match=rf"column '{table.column_names[0]}' would be read as the path") as caught:
            check_carried(table, "folder")
        assert "--format parquet" in caught.value.hint
    fine = pa.table({"file_names": ["a", "b"], "x_file_name": [1, 2], "file_name_x": ["c", "d"]})
    check_carried(fine, "folder")
    dataset_with(tmp_path / "folder", "folder", fine)
    assert load(tmp_path / "folder")["file_name_x"][:] == ["c", "d"]
    check_carried(source, "parquet")
    dataset_with(tmp_path / "parquet", "parquet", source)
    assert load(tmp_path / "parquet")["source_file_name"][:2] == ["orig/0.jpg", "orig/1.jpg"]


@pytest.mark.parametrize("name", FORMATS)
def test_columns_that_are_null_in_the_first_rows_are_read_by_our_card(tmp_path, name):
    table = read_label_file(str(DATA / "latenull.parquet"), ("face",) * 8).extra
    dataset_with(tmp_path / "out", name, table, tokens=True)
    rows = sorted(load(tmp_path / "out").to_list(), key=lambda row: row.get("json", row)["index"])
    assert [row.get("json", row)["note"] for row in rows] == table["note"].to_pylist()
    assert [row.get("json", row)["w"] for row in rows] == table["w"].to_pylist()
    assert len(rows[0].get("tokens.npy") or rows[0]["tokens"]) == 5


def test_bytes_are_refused_where_json_holds_them():
    for name in ("bytesview.parquet", "bytesdict.parquet"):
        table = read_label_file(str(DATA / name), ("face",) * 8).extra
        assert table["b"].to_pylist()[:2] == [b"\xff\x00"] * 2
        with pytest.raises(InputError, match="column 'b' is binary, which JSON cannot hold"):
            sample_format("webdataset").check_extra(table)
