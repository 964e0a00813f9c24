"""Files that carry a hash of themselves."""

import json

import pytest

from workers.seal import DamagedError, is_sealed, open_sealed, seal

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
