"""Errors of a store: one line with the request and the response, and one with the remedy."""

import pytest
from botocore import exceptions

from support.fake_s3 import FakeS3
from tandem.errors import InputError, OutputError
from tandem_jobs.cli import main
from tandem_workers.dataset.closing import is_closed
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.models.fetch import fetch
from tandem_workers.storage import s3_client, s3_store
from tandem_workers.storage.places import open_store
from tandem_workers.storage.s3_client import explain, one_line

AT = {"endpoint_url": "https://store.example", "error": "why"}


@pytest.fixture
def store(monkeypatch, tmp_path) -> FakeS3:
    fake = FakeS3({})
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    for module in (s3_store, s3_client):
        monkeypatch.setattr(module, "make_client", lambda attempts: fake)
    return fake


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "RequestTimeTooSkewed"])
@pytest.mark.parametrize(
    "command",
    [
        ["ls", "s3://bucket/x"],
        ["verify", "s3://bucket/x"],
        ["refine", "--drafts", "s3://bucket/x", "--out", "out"],
        ["inspect", "s3://bucket/x/job.json"],
        ["generate", "--labels", "s3://bucket/x/job.json", "--out", "out"],
        ["generate", "--drafter", "s3://bucket/x/job.json", "--classes", "0", "--images", "1", "--out", "out"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_wrong_keys_end_in_one_line_and_a_remedy(store, command, code, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    store.denied = code
    assert main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    verb = "read" if command[0] in ("ls", "verify", "refine") else "fetch"
    assert lines[-2] == f"error: cannot {verb} bucket bucket, key x/job.json: {code}: what the store says"
    assert lines[-1].startswith("hint: ") and lines[-1] != f"hint: {s3_client.DEFAULT_HINT}"
    assert sum(line.startswith("error") for line in lines) == 1 and not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_read_is_no_damaged_entry(store):
    store.denied = "AccessDenied"
    place = open_store("s3://bucket/x")
    for ask in (lambda: Manifest(place, 0).entry(3), lambda: is_closed(Manifest(place, 0), 4, frozenset())):
        with pytest.raises(OutputError, match=r"cannot read bucket bucket, key x/.*: AccessDenied"):
            ask()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (exceptions.SSLError(**AT), "AWS_CA_BUNDLE"),
        (exceptions.ProxyConnectionError(proxy_url="http://proxy", error="why"), "HTTPS_PROXY"),
        (exceptions.ProfileNotFound(profile="lab"), "AWS_PROFILE"),
        (exceptions.NoCredentialsError(), "AWS_ACCESS_KEY_ID"),
        (exceptions.EndpointConnectionError(**AT), "AWS_ENDPOINT_URL"),
        (exceptions.NoRegionError(), "region"),
        (exceptions.ClientError({"Error": {"Code": "NoSuchBucket"}}, "GetObject"), "bucket's name"),
        (exceptions.ClientError({"Error": {"Code": "PermanentRedirect"}}, "GetObject"), "AWS_DEFAULT_REGION"),
        (exceptions.ClientError({}, "GetObject"), "standard AWS variables"),
    ],
)
def test_each_error_has_its_remedy(error, remedy):
    cause, hint = explain(error)
    assert remedy in hint and "\n" not in cause
    with (
        pytest.raises(OutputError, match=r"cannot list bucket b, key -: ") as raised,
        one_line(OutputError, "list", "b", ""),
    ):
        raise error
    assert raised.value.hint == hint


@pytest.mark.parametrize(
    ("variable", "value", "hint"),
    [
        ("AWS_ENDPOINT_URL", "nonsense", "AWS_ENDPOINT_URL has to be"),
        ("AWS_PROFILE", "nobody", "AWS_PROFILE has to name"),
    ],
)
def test_settings_of_which_no_client_can_be_made_are_a_line(variable, value, hint, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(OutputError, match=value) as caught:
        open_store("s3://bucket/x").check()
    assert hint in caught.value.hint
    with pytest.raises(InputError, match=value):
        fetch("s3://bucket/weights.pth")
