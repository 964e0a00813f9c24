"""Result files are there whole or as they were."""

from pathlib import Path

import pytest

from tandem.user_files import write_whole


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path, write = tmp_path / "tuned.json", Path.write_text
    write_whole(path, "first")

    def half(self: Path, text: str) -> None:
        write(self, text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "second")
    assert path.read_text() == "first"
