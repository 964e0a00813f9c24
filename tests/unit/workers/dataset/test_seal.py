"""Files that carry a hash of themselves."""

import json

import numpy as np
import pytest

from tandem_workers.dataset.seal import DamagedError, is_sealed, mend, open_sealed, seal

VALUES = {"rows": 4, "seconds": {"draft": 1e-07}, "class": "é", "sha256s": ["a" * 64]}


def test_what_was_sealed_is_read_back():
    data = seal(VALUES)
    assert is_sealed(data) and open_sealed(data, ()) == VALUES
    assert json.loads(data) | {"sha256": 0} == VALUES | {"sha256": 0}


def test_every_changed_bit_and_every_cut_shows():
    data = seal(VALUES)
    damaged = [data[:length] for length in range(len(data))]
    damaged += [
        bytes(b ^ (1 << bit) if i == at else b for i, b in enumerate(data))
        for at in range(len(data))
        for bit in range(8)
    ]
    for bad in damaged:
        with pytest.raises(DamagedError):
            open_sealed(bad, VALUES)


def test_files_of_before_are_read_as_they_are():
    assert open_sealed(json.dumps(VALUES).encode(), VALUES) == VALUES
    assert not is_sealed(json.dumps(VALUES).encode())


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"null", b'"x"', b"[" * 100_000, b'{"a": 1', b'{"other": 1}'])
def test_other_content_is_damaged(data):
    with pytest.raises(DamagedError):
        open_sealed(data, VALUES)


def test_one_changed_byte_is_mended():
    data, rng = seal(VALUES), np.random.default_rng(0)
    for at in [*rng.choice(len(data), 30, replace=False).tolist(), len(data) - 1]:
        damaged = bytearray(data)
        damaged[at] ^= int(rng.integers(1, 256))
        assert mend(bytes(damaged)) == data
    long = seal({"text": "x" * 5000})
    assert mend(long.replace(b"xx", b"xy", 1)) == long  # one bit of it


@pytest.mark.parametrize(
    "data", [b"", b"{", b"x" * 83, seal(VALUES)[:-1], seal(VALUES).replace(b"ow", b"wo"), b"x" * 200]
)
def test_more_damage_is_not_mended(data):
    assert mend(data) is None
