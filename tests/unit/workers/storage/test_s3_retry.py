"""Slow, silent, busy or faulty stores: which requests are retried, for how long, and the reported lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from support.scripted_s3 import SILENCE, Answer, Request, ScriptedS3
from tandem.errors import InputError, OutputError, TandemError
from tandem_jobs.cli import main
from tandem_workers.models import fetch, fetch_http
from tandem_workers.storage import s3_retry, s3_store, waiting_notice
from tandem_workers.storage.places import open_store
from tandem_workers.storage.s3_retry import Patience

SHORT = Patience(seconds=0.5, attempts=1000, read_timeout_s=0.2)
Serve = Callable[[Callable[[Request], Answer | None]], ScriptedS3]


@pytest.fixture
def serve(monkeypatch, tmp_path) -> Iterator[Serve]:
    """Starts a store that answers as a function says; clients are of little patience, and say at once what they do."""
    servers = []
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    for module in (s3_store, s3_retry):
        monkeypatch.setattr(module, "QUICK", Patience(0.5, 3, 0.2))
        monkeypatch.setattr(module, "PATIENT", SHORT)
    monkeypatch.setattr(waiting_notice, "SAY_AFTER_S", 0.1)
    monkeypatch.setattr(waiting_notice, "SAY_EVERY_S", 0.1)
    monkeypatch.setitem(waiting_notice._last, "at", 0.0)

    def start(answer: Callable[[Request], Answer | None]) -> ScriptedS3:
        server = ScriptedS3(answer)
        servers.append(server)
        server.__enter__()
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        return server

    yield start
    for server in servers:
        server.__exit__()


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.check(),
        lambda store: store.read("job.json"),
        lambda store: store.put_once("shards/00000.tar", b"data"),
        lambda store: store.list_files(),
        lambda store: store.clean(),
        lambda store: store.exists("job.json"),
    ],
    ids=["check", "read", "put", "list", "clean", "exists"],
)
def test_a_store_that_swallows_requests_is_waited_for_aloud_and_not_for_ever(serve, capsys, ask):
    server = serve(lambda request: SILENCE)
    with pytest.raises(OutputError, match=r"bucket pail, .*Read timeout"):
        ask(open_store("s3://pail/x"))
    assert 3 <= len(server.requests) <= 5  # of 0.2 s each
    said = capsys.readouterr().err.splitlines()
    assert said and all(line.startswith("waiting for S3: ") and "bucket pail, key " in line for line in said)
    assert "no answer; asking again for 0 s more at most" in said[0]


def test_of_many_files_no_other_is_begun_once_one_has_failed(serve):
    server = serve(lambda request: SILENCE)
    with pytest.raises(OutputError, match="Read timeout"):
        open_store("s3://pail/x").put_many([(f"images/{i}.png", b"data") for i in range(200)])
    assert len({request.path for request in server.requests}) <= 2 * s3_store.CONNECTIONS


def test_what_a_person_waits_for_has_an_end_in_every_command(serve, capsys, tmp_path):
    server = serve(lambda request: SILENCE)
    out = str(tmp_path / "out")
    for command in (
        ["verify", "s3://pail/x"],
        ["refine", "--drafts", "s3://pail/x", "--out", out],
        ["generate", "--labels", "s3://pail/rows.csv", "--out", out],
    ):
        before = len(server.requests)
        assert main(command) == 2
        assert 3 <= len(server.requests) - before <= 5  # of 0.2 s each
        said = capsys.readouterr().err
        assert "waiting for S3: " in said and "\nerror: cannot " in said and "Traceback" not in said


def test_a_server_of_weights_that_is_silent_is_waited_for_aloud_and_given_up(serve, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch_http, "TIMEOUT_S", 0.2)
    server = serve(lambda request: SILENCE)
    with pytest.raises(InputError, match="cannot be reached, or breaks off: timed out"):
        fetch_http.fetch_from_http(f"{server.endpoint}/w.bin#sha256={'0' * 64}", tmp_path, patient=False)
    assert f"waiting for {server.endpoint}/w.bin: timed out; asking again\n" in capsys.readouterr().err
    assert len(server.requests) == fetch_http.ATTEMPTS


def test_a_body_that_stops_coming_is_said_and_ends(serve, capsys, monkeypatch):

    class Stalled(bytes):
        """Written as ten bytes of a hundred."""

        def __len__(self) -> int:
            return 100

    serve(lambda request: Answer(body=Stalled(b"ten bytes ")))
    monkeypatch.setattr("tandem_workers.storage.s3_read.time.sleep", lambda seconds: None)
    with pytest.raises(OutputError, match="Read timeout"):
        open_store("s3://pail/x").read("shards/00000.tar")
    assert "no more of its body; asking again" in capsys.readouterr().err


def test_an_outage_is_waited_for_by_all_writers_at_once(serve):
    """botocore's own retries are some 35 for all requests of a client: sixteen writers had two each."""
    until = time.monotonic() + 0.4
    serve(lambda request: Answer(500, "InternalError") if time.monotonic() < until else Answer())
    stored = open_store("s3://pail/x").put_many([(f"images/{i}.png", b"data") for i in range(48)])
    assert all(file.created for file in stored)


@pytest.mark.parametrize("code", s3_retry.CONFLICTS)
def test_a_conflict_of_conditional_puts_means_again(serve, code):
    server = serve(lambda request: Answer(409, code) if request.number <= 4 else Answer())
    assert open_store("s3://pail/x").put_once("shards/00000.tar", b"data").created
    assert len(server.requests) == 5 and all(request.conditional for request in server.requests)


def test_a_conflict_without_end_is_an_error_with_a_remedy(serve):
    serve(lambda request: Answer(409, "ConditionalRequestConflict"))
    with pytest.raises(OutputError, match=r"cannot write bucket pail.*ConditionalRequestConflict") as caught:
        open_store("s3://pail/x").put_once("shards/00000.tar", b"data")
    assert "run the same command again" in caught.value.hint


@pytest.mark.parametrize("status", [301, 307])
@pytest.mark.parametrize("region", [(), (("x-amz-bucket-region", "eu-north-1"),)], ids=["nowhere", "to a region"])
def test_redirects_without_end_are_an_error(serve, status, region):
    code = "TemporaryRedirect" if status == 307 else "PermanentRedirect"
    server = serve(lambda request: Answer(status, code, headers=region))
    for ask in (lambda store: store.check(), lambda store: store.put_once("a", b""), lambda store: store.exists("a")):
        before = len(server.requests)
        with pytest.raises(OutputError, match=r"Redirect|30[127]") as caught:
            ask(open_store("s3://pail/x"))
        assert len(server.requests) - before < 60
        assert "AWS_" in caught.value.hint


def test_a_redirect_that_ends_is_followed(serve):
    serve(lambda request: Answer(307, "TemporaryRedirect") if request.number < 4 else Answer())
    assert open_store("s3://pail/x").put_once("a", b"").created


@pytest.mark.parametrize("status", [400, 405, 501])
def test_a_store_that_refuses_the_condition_is_named_before_anything_starts(serve, status, capsys, tmp_path):
    server = serve(lambda request: Answer(status, "NotImplemented") if request.conditional else Answer())
    command = ["generate", "--classes", "0", "--images", "1", "--out", "s3://pail/x"]
    assert main(command) == 2
    said = capsys.readouterr().err
    refusal = f"bucket pail at {server.endpoint} has no conditional writes (If-None-Match: *): it answered {status} "
    assert f"error: {refusal}" in said
    assert "hint: without them two writers" in said and "Ray" not in said
    assert server.requests[-1].method == "DELETE"


def test_a_store_that_ignores_the_condition_is_named_before_anything_starts(serve):
    server = serve(lambda request: Answer())
    with pytest.raises(OutputError, match=r"no conditional writes .*of two puts of one key it took both"):
        open_store("s3://pail/x").check()
    assert [request.method for request in server.requests] == ["HEAD", "PUT", "PUT", "DELETE"]
    assert len({request.path for request in server.requests[1:]}) == 1


def test_a_store_that_keeps_the_condition_passes(serve):
    serve(lambda request: Answer(412, "PreconditionFailed") if request.number == 3 else Answer())
    open_store("s3://pail/x").check()


def test_a_bad_request_that_has_nothing_to_do_with_the_condition_is_what_it_is(serve):
    serve(lambda request: Answer(400, "InvalidRequest") if request.method == "PUT" else Answer())
    with pytest.raises(OutputError, match=r"cannot write bucket pail.*InvalidRequest"):
        open_store("s3://pail/x").check()


@pytest.mark.parametrize("address", ["http://me:hunter2@127.0.0.1:9", "http://me:hun/ter2@127.0.0.1:9", "me:hunter2@x"])
def test_a_password_in_the_endpoint_is_never_shown(address, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    for ask in (lambda: open_store("s3://pail/x").check(), lambda: fetch.fetch("s3://pail/k")):
        with pytest.raises(TandemError) as caught:
            ask()
        assert "ter2" not in f"{caught.value} {caught.value.hint}" and "AWS_ENDPOINT_URL has to be" in caught.value.hint
    assert main(["ls", "s3://pail/x"]) == 2
    assert "ter2" not in capsys.readouterr().err


def test_a_name_that_comes_and_goes_is_put_again(serve):
    def answer(request: Request) -> Answer:
        if request.method == "PUT":
            return Answer(412, "PreconditionFailed") if request.number < 4 else Answer()
        return Answer(404, "NoSuchKey")

    serve(answer)
    assert open_store("s3://pail/x").put_once("a", b"data").created
