"""Addresses are checked before anything is asked of a server (the server itself: integration/test_s3_inputs.py)."""

import pytest

from tandem.errors import InputError
from tandem_workers.models.fetch import cache_folder, fetch, is_remote


@pytest.mark.parametrize("address", ["https://host/weights.pth", "s3://", "s3://bucket", "s3://bucket/", "s3:///key"])
def test_only_bucket_and_key_make_an_address(address, tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="expected s3://bucket/key, got .*" + address):
        fetch(address)
    assert not (tmp_path / "cache").exists()


def test_paths_are_not_addresses():
    assert [is_remote(a) for a in ("weights.pth", "/a/b.pth", "s3://b/k")] == [False, False, True]


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TANDEM_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "tandem")
