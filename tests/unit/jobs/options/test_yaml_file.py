"""YAML files are read within bounds: a file of a kilobyte can stand for billions of values."""

import time

import pytest

from tandem.errors import InputError
from tandem.user_files import MAX_DEPTH
from tandem_jobs.generate import GenerateSpec
from tandem_jobs.options.spec import parse
from tandem_jobs.options.yaml_file import load_yaml


def generate(*argv: str) -> GenerateSpec:
    return parse(GenerateSpec, ["--out", "o", "--classes", "all", "--images", "5", *argv], "tandem generate")


READERS = {
    "spec": lambda path: generate("--spec", path),
    "runtime env": lambda path: load_yaml("--runtime-env", path),
}
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line [56]: expected at most 20,000 values, aliases included, got more"),
        (MERGES, "line [56]: expected at most 20,000 values"),
        ("out: [" + "a," * 100_000 + "]", "line 1: expected at most 20,000 values"),
        ("out: &a [*a]", "line 1: expected aliases of other values, got one of a value that contains it"),
        ("out: " + "[" * 100_000, f"line 1: expected at most {MAX_DEPTH} levels of nested values"),
        ("".join(" " * i + "a:\n" for i in range(1000)), f"line {MAX_DEPTH}: expected at most {MAX_DEPTH} levels"),
        ("seed: 1\nseed: 2", "line 1: expected every key once, got 'seed' twice or more"),
        ("seed: 1\nout: {a: 1, a: 2}", "line 2: expected every key once, got 'a' twice or more"),
        ("seed: 1".encode("utf-16"), r"line 1: not UTF-8 \(byte 0xff\)"),
        (b"seed: 1\nout: \xe9", r"line 2: not UTF-8 \(byte 0xe9\)"),
        (b"out: \x01", r"is not YAML: special characters are not allowed \(U\+0001\)"),
        ("out: !!timestamp 99999-01-01", "line 1: expected timestamp, got 99999-01-01"),
        ("out: !!bool maybe", "line 1: expected bool, got maybe"),
        ("out: !!int " + "1" * 5000, "line 1: expected at most 4000 characters, got 5000"),
        ("out: [1", "line 1: is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("out: *b", "line 1: is not YAML: found undefined alias 'b'"),
        ("seed: 1 #" + "x" * 3_000_000, "expected at most 524,288 bytes of text, got more"),
    ],
    ids=lambda value: repr(value)[:20],
)
@pytest.mark.parametrize("reader", ["spec", "runtime env"])
def test_yaml_is_read_within_bounds(reader, text, message, tmp_path):
    path, began = tmp_path / "job.yaml", time.monotonic()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        READERS[reader](str(path))
    assert "unicode string" not in str(caught.value) and len(str(caught.value)) < 600
    assert time.monotonic() - began < 10


def test_an_option_in_both_spellings_is_refused(tmp_path):
    (tmp_path / "job.yaml").write_text("draft_steps: 1\ndraft-steps: 2\n")
    with pytest.raises(InputError, match=r"job\.yaml: expected --draft-steps once, got 'draft-steps' as well"):
        generate("--spec", str(tmp_path / "job.yaml"))
    with pytest.raises(InputError, match=r"--spec: expected a path, got an empty text"):
        generate("--spec=")


def test_plain_aliases_and_merges_are_fine(tmp_path):
    (tmp_path / "env.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, x: 2, y: 3}\nc: [*a, *a]\n")
    assert load_yaml("--runtime-env", tmp_path / "env.yaml")["b"] == {"x": 2, "y": 3}
