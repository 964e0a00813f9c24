"""Seeded inputs for the readers of files that people give: valid seeds that are damaged, and values that are nasty.

Everything follows from one number, so that an input which fails can be made again.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tandem_workers.dataset.seal import seal

Random = random.Random
TEXTS = (
    *(
        "",
        " ",
        "0",
        "null",
        "~",
        "-1",
        "1e999",
        "NaN",
        "x" * 300,
        "\ud7ff",
        "\u202e",
        "a\0b",
        "a\nb",
        "../../etc",
        "{}",
    ),
    *("[]", "true", "99999-01-01", "2024-13-45", "0x", "1:1:1", "s3:/b/x", "'", '"', ",", "\ufeff", "é", "\U0001f600"),
    *("{}", "%s", "<<", "*a"),
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324, float("inf"), float("nan"))
BYTES = (
    *(b"\0", b"\xff", b"\xff\xfe", b"\n", b'"', b"{", b"[" * 500, b"\xc3", b"&a *a", b"\x80", b"\x01", b":"),
    b"\x7f\xff\xff\xff",
)


@dataclass(frozen=True)
class Seed:
    """A valid input of a reader, as bytes, and what kind of text it is."""

    reader: str
    ending: str
    data: bytes
    kind: str  # "json", "lines" (of JSON), "yaml", "text", "safetensors" or "binary"


def inputs(seeds: list[Seed], start: int, stop: int) -> Iterator[tuple[int, Seed, bytes]]:
    """Inputs number `start` to `stop`, each with the seed that it was made of; readers take turns."""
    for number in range(start, stop):
        chosen = seeds[number % len(seeds)]
        yield number, chosen, damaged(chosen, Random(f"tandem {number}"))


def damaged(seed: Seed, rng: Random) -> bytes:
    """A seed with some damage: of its bytes, or of the values that it holds."""
    structured = STRUCTURED.get(seed.kind)
    if structured and rng.random() < 0.7:
        return structured(seed.data, rng)
    data = seed.data
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        data = rng.choice(DAMAGES)(data, rng)
    return data


def flip(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data) or 1)
    return data[:at] + bytes([(data[at] if data else 0) ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def drop(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 2, 8, 64)) :]


def insert(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(BYTES) + data[at:]


def repeat(data: bytes, rng: Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice((1, 16, 256)))
    return data[:stop] + data[start:stop] * rng.choice((1, 10, 100)) + data[stop:]


def overwrite(data: bytes, rng: Random) -> bytes:
    """A whole number in binary, as lengths and offsets are."""
    at = rng.randrange(len(data) + 1)
    number = struct.pack(rng.choice(("<i", "<q", ">i")), rng.choice((-1, 0, 1, 2**31 - 1, -(2**31), 65_536)))
    return data[:at] + number + data[at + len(number) :]


DAMAGES: tuple[Callable[[bytes, Random], bytes], ...] = (flip, flip, cut, drop, insert, repeat, overwrite)


def nasty(rng: Random, depth: int = 0) -> Any:
    """A value of JSON that nobody expects."""
    kind = rng.randrange(8 if depth < 3 else 4)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind in (2, 3):
        return rng.choice(TEXTS)
    if kind == 4:
        return [nasty(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {rng.choice(TEXTS): nasty(rng, depth + 1) for _ in range(rng.randrange(4))}
    if kind == 6:
        value: Any = 1
        for _ in range(rng.choice((10, 63, 64, 65, 400))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return [rng.choice(TEXTS)] * rng.choice((10, 2000))


def changed(value: Any, rng: Random) -> Any:
    """A value of JSON with one of the values inside replaced, dropped, renamed or said twice."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return nasty(rng)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        middle = rng.choice(([changed(value[at], rng)], [], [value[at]] * 2))
        return [*value[:at], *middle, *value[at + 1 :]]
    key = rng.choice(list(value))
    others = {name: other for name, other in value.items() if name != key}
    return rng.choice(
        (others, {**others, rng.choice(TEXTS): value[key]}, *[{**value, key: changed(value[key], rng)}] * 6)
    )


def change_json(data: bytes, rng: Random) -> bytes:
    text = json.dumps(changed(json.loads(data), rng))
    if rng.random() < 0.1 and text.startswith('{"'):  # one key twice
        text = text.replace("{", '{"label": 1, "label": 2, ', 1)
    return text.encode()


def change_lines(data: bytes, rng: Random) -> bytes:
    lines = data.splitlines()
    for at in rng.sample(range(len(lines)), rng.choice((1, 2, 4))):
        lines[at] = change_json(lines[at], rng) if rng.random() < 0.8 else rng.choice(BYTES)
    return b"\n".join(lines)


def change_yaml(data: bytes, rng: Random) -> bytes:
    """Lines of YAML with other values, tags, anchors and keys."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    key = lines[at].partition(":")[0]
    values = (rng.choice(TEXTS), json.dumps(nasty(rng)), "&a [*a]", "!!binary x", "!!set {a}", "[1", "- a", "|\n a")
    tags = ("", "", *(f"!!{tag} " for tag in ("int", "float", "timestamp", "bool", "omap", "python/name:os.system")))
    value, tag = rng.choice(values), rng.choice(tags)
    shapes = (f"{key}: {tag}{value}", f"{key}:\n  {value}", f"{value}: 1", f"{key}: 1\n{key}: 2", f"<<: {value}")
    lines[at] = rng.choice(shapes)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def change_text(data: bytes, rng: Random) -> bytes:
    """Cells of a CSV or lines of a text replaced."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    cells = lines[at].split(",")
    cells[rng.randrange(len(cells))] = rng.choice((rng.choice(TEXTS), str(rng.choice(NUMBERS)), '"a\n', '"x,y"'))
    lines[at] = ",".join(cells)
    return "\n".join(lines * rng.choice((1, 1, 1, 300))).encode("utf-8", "surrogatepass")


def change_safetensors(data: bytes, rng: Random) -> bytes:
    """A header with other values, its length in front made right."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    inside = header.get("__metadata__", {})
    if "tandem" in inside and rng.random() < 0.7:
        inside["tandem"] = change_json(inside["tandem"].encode(), rng).decode()
    else:
        header = changed(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def change_archive(data: bytes, rng: Random) -> bytes:
    """A torch file whose pickle is damaged and whose archive is whole."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                for _ in range(rng.choice((1, 2, 4))):
                    content = rng.choice(DAMAGES)(content, rng)
            new.writestr(entry.filename, content)
    return out.getvalue()


def change_sealed(data: bytes, rng: Random) -> bytes:
    """A record with other values, sealed anew or without a seal as older versions left it."""
    values = json.loads(data)
    values.pop("sha256", None)
    text = change_json(json.dumps(values).encode(), rng)
    values = json.loads(text)
    return seal(values) if isinstance(values, dict) and values and rng.random() < 0.5 else text


def change_table(data: bytes, rng: Random) -> bytes:
    """A parquet file in which columns have other types, names or values."""
    table = pq.read_table(io.BytesIO(data))
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(table.num_columns)
        name = rng.choice((table.column_names[at], table.column_names[at], rng.choice(TEXTS)))
        column = rng.choice(COLUMNS)(len(table))
        table = rng.choice((table.set_column, table.add_column))(at, name, column)
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def of_type(kind: pa.DataType, value: Any) -> Callable[[int], pa.Array]:
    return lambda n: pa.array([value] * n, kind)


COLUMNS: tuple[Callable[[int], pa.Array], ...] = (
    of_type(pa.timestamp("us"), 2**62),
    of_type(pa.timestamp("ns", "Nowhere/City"), 0),
    of_type(pa.date32(), 2**30),
    of_type(pa.date64(), -(2**50)),
    of_type(pa.time64("ns"), 2**46),
    of_type(pa.duration("s"), 2**62),
    of_type(pa.decimal128(38, 0), 10**37),
    of_type(pa.decimal256(76, 70), 1),
    of_type(pa.uint64(), 2**64 - 1),
    of_type(pa.int8(), -128),
    of_type(pa.float16(), 0.5),
    of_type(pa.float64(), float("nan")),
    of_type(pa.binary(), b"\xff"),
    of_type(pa.binary(2), b"\xff\0"),
    of_type(pa.string(), "\0"),
    of_type(pa.large_string(), "x" * 70_000),
    of_type(pa.null(), None),
    of_type(pa.bool_(), True),
    of_type(pa.list_(pa.null()), [None]),
    of_type(pa.list_(pa.float64(), 2), [0.5, None]),
    of_type(pa.struct([("a", pa.struct([("b", pa.null())]))]), {"a": {"b": None}}),
    of_type(pa.map_(pa.string(), pa.int64()), [("a", 1), ("a", 2)]),
    lambda n: pa.array(["ant"] * n).dictionary_encode(),
)
STRUCTURED: dict[str, Callable[[bytes, Random], bytes]] = {
    "json": change_json,
    "lines": change_lines,
    "yaml": change_yaml,
    "text": change_text,
    "safetensors": change_safetensors,
    "archive": change_archive,
    "sealed": change_sealed,
    "table": change_table,
}
