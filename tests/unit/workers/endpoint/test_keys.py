"""API keys: which ones are known, and that only their digests are kept."""

from __future__ import annotations

import os

import pytest

from tandem.errors import InputError
from tandem_workers.endpoint.keys import MIN_KEY, digest, hide_keys, is_known, key_digests


@pytest.fixture(autouse=True)
def no_keys(monkeypatch) -> None:
    for name in ("TANDEM_API_KEYS", "TANDEM_API_KEY_DIGESTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("Bearer first-key", True),
        ("bearer second-key", True),
        ("BEARER  second-key ", True),
        ("Bearer third-key", False),
        ("Bearer first-key second-key", False),
        ("Bearer first-ke", False),
        ("Bearer ", False),
        ("Bearer", False),
        ("Basic first-key", False),
        ("first-key", False),
        (f"Bearer {digest('first-key')}", False),
        ("Bearer f\u00efrst-key", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_bearer_of_one_of_the_keys_is_known(header, known):
    assert is_known(header, (digest("first-key"), digest("second-key"))) is known


def test_a_digest_does_not_hold_the_key():
    assert "secret" not in digest("secret")
    assert digest("secret") != digest("Secret")


def test_keys_come_from_the_environment_and_are_told_apart_by_commas(monkeypatch):
    assert key_digests() == ()
    monkeypatch.setenv("TANDEM_API_KEYS", f" {'a' * MIN_KEY} ,{'b' * 40},, ")
    assert key_digests() == (digest("a" * MIN_KEY), digest("b" * 40))


@pytest.mark.parametrize("keys", ["", " , ", "schlüssel-für-alle-türen"])
def test_a_variable_without_usable_keys_opens_no_door(keys, monkeypatch):
    monkeypatch.setenv("TANDEM_API_KEYS", keys)
    with pytest.raises(InputError, match="TANDEM_API_KEYS: expected keys"):
        key_digests()


def test_a_key_that_could_be_guessed_is_refused_and_not_printed(monkeypatch):
    monkeypatch.setenv("TANDEM_API_KEYS", f"{'a' * MIN_KEY},hunter2")
    with pytest.raises(
        InputError, match=rf"expected keys of {MIN_KEY} ASCII characters or more, got one of 7"
    ) as caught:
        key_digests()
    assert "hunter2" not in str(caught.value)


def test_digests_may_stand_in_for_keys(monkeypatch):
    monkeypatch.setenv("TANDEM_API_KEY_DIGESTS", digest("a" * MIN_KEY))
    monkeypatch.setenv("TANDEM_API_KEYS", "b" * MIN_KEY)
    assert set(key_digests()) == {digest("a" * MIN_KEY), digest("b" * MIN_KEY)}
    for wrong in ("a" * MIN_KEY, "A" * 64, " , "):
        monkeypatch.setenv("TANDEM_API_KEY_DIGESTS", wrong)
        with pytest.raises(InputError, match="TANDEM_API_KEY_DIGESTS: expected SHA-256 digests") as caught:
            key_digests()
        assert "a" * MIN_KEY not in str(caught.value)


def test_only_digests_stay_in_the_environment_that_processes_inherit(monkeypatch):
    monkeypatch.setenv("TANDEM_API_KEYS", f"{'a' * MIN_KEY},{'b' * MIN_KEY}")
    before = key_digests()
    hide_keys()
    assert key_digests() == before
    assert not [value for value in os.environ.values() if "a" * MIN_KEY in value or "b" * MIN_KEY in value]
