"""Hashes of files that a thread works out, and whether a file is still the one that was hashed."""

import hashlib
import os
import pickle
import threading

import pytest

from tandem import hashing
from tandem.errors import InputError
from tandem.hashing import FileHash, file_sha256


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    return path


def test_the_hash_is_worked_out_beside_its_owner(file, monkeypatch):
    go_on = threading.Event()

    def slow(path):
        go_on.wait(60)
        return file_sha256(path)

    monkeypatch.setattr(hashing, "file_sha256", slow)
    found = FileHash(file)  # returns at once
    go_on.set()
    assert found.sha256 == hashlib.sha256(b"weights").hexdigest()


def test_another_process_knows_the_file_that_was_hashed(file, monkeypatch):
    found = FileHash(file)
    sent = pickle.dumps(found)
    monkeypatch.setattr(hashing, "file_sha256", None)
    arrived = pickle.loads(sent)
    assert arrived == found and arrived.sha256 == found.sha256
    assert arrived.unchanged == file


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_file_that_was_written_to_is_another_one(file, keeps_time):
    found, before = FileHash(file), file.stat()
    assert found.unchanged == file
    file.write_bytes(b"weighty")
    if keeps_time:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found.unchanged is None


def test_a_copy_in_its_place_is_another_one(file, tmp_path):
    found = FileHash(file)
    assert found.unchanged == file
    (tmp_path / "copy").write_bytes(b"weights")
    os.replace(tmp_path / "copy", file)
    assert found.unchanged is None
    file.unlink()
    assert found.unchanged is None


def test_the_same_path_on_another_machine_is_another_file(file, monkeypatch):
    found = FileHash(file)
    assert found.unchanged == file
    monkeypatch.setattr(hashing.platform, "node", lambda: "elsewhere")
    assert found.unchanged is None


def test_a_file_that_is_written_to_meanwhile_has_no_fingerprint(file, monkeypatch):
    def interrupted(path):
        digest = file_sha256(path)
        file.write_bytes(b"more weights")
        return digest

    monkeypatch.setattr(hashing, "file_sha256", interrupted)
    assert FileHash(file).unchanged is None


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    found = FileHash(tmp_path / "gone")
    with pytest.raises(InputError, match=r"/gone: cannot be read: No such file or directory$"):
        _ = found.sha256


def test_a_hash_that_is_known_needs_no_file():
    known = FileHash.known("ab" * 32)
    assert known.sha256 == "ab" * 32
    assert known.unchanged is None and pickle.loads(pickle.dumps(known)) == known
