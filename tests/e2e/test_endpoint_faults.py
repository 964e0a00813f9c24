"""What happens to a server's clients when replicas die, when it is told to stop, and what becomes of keys and links."""

from __future__ import annotations

import base64
import json
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import openai
import pytest
import torch

from support.runs import wait_until
from support.served import MARK, Served, kill_replicas, serve
from tandem.checkpoints.weights import load_var, open_checkpoint, save_checkpoint
from tandem.zoo import weights_path

pytestmark = pytest.mark.slow
NO_NUMBERS = 11  # the last class of the drafter here
KEY, OTHER_KEY = "a-key-for-tests-5f1c0e9b", "another-key-for-tests-77aa"
BUCKET = "served"


def images_of(answer: tuple[int, dict[str, Any]]) -> list[bytes]:
    status, body = answer
    assert status == 200, body
    return [base64.b64decode(image["b64_json"]) for image in body["data"]]


def ask_by_stream(server: Served, **body: Any) -> tuple[int, dict[str, Any]]:
    """As `post` answers; no preview may come twice, nor behind its image."""
    try:
        events = server.stream(**body, preview_scales=[1, 3, 6])
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    if events[-1][0] == "error":
        return 500, events[-1][1]
    names = [name.rpartition(".")[2] for name, _ in events]
    assert names == ["partial_image"] * 3 * body["n"] + ["completed"] * body["n"]
    previews = [(event["image_index"], event["scale"]) for _, event in events[: -body["n"]]]
    assert len(set(previews)) == len(previews)
    return 200, {"data": [event for _, event in events[-body["n"] :]]}


@pytest.fixture(scope="module")
def server(s3_server, tmp_path_factory) -> Iterator[Served]:
    """One for all tests here, the last of which tells it to stop.

    It has two keys, a store for links, a log of every request, and a drafter that knows nothing of its last class but
    NaN.
    """
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    folder = tmp_path_factory.mktemp("server")
    drafter = load_var(weights_path("drafter"), preparation=None)
    with torch.no_grad():
        drafter.class_emb.weight[NO_NUMBERS] = torch.nan
    names = list(open_checkpoint(weights_path("drafter")).classes)
    save_checkpoint(folder / "drafter.safetensors", drafter, {"classes": names}, torch.float32)
    options = ["--placement", "split", "--drafters", "1", "--drafter", str(folder / "drafter.safetensors")]
    options += ["--refiners", "1", "--batch", "2", "--max-requests", "64", "--access-log"]
    options += ["--store", f"s3://{BUCKET}/here", "--url-seconds", "600"]
    server = serve(folder / "log", *options, key=f"{KEY},{OTHER_KEY}")
    server.key = KEY
    yield server
    code = server.process.poll()
    assert (server.stop() if code is None else code) == 0, server.log.read_text()


def get(url: str, timeout: float = 30) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("codec", ["png", "webp"])
def test_a_link_gives_anyone_the_bytes_of_the_image_and_the_bare_address_nobody(server, codec):
    body = {"prompt": "face", "n": 2, "seed": 5, "deterministic": True, "output_format": codec}
    status, answer = server.post(**body, response_format="url")
    assert status == 200 and all(set(image) == {"url"} for image in answer["data"])
    links = [image["url"] for image in answer["data"]]
    assert [get(link) for link in links] == [(200, data) for data in images_of(server.post(**body))]
    assert all(f"/{BUCKET}/here/served/" in link and f".{codec}?" in link for link in links)
    assert get(links[0].partition("?")[0])[0] == 403
    status, again = server.post(**body, response_format="url")
    assert [get(image["url"])[1] for image in again["data"]] == [get(link)[1] for link in links]


def test_the_openai_client_gets_links_with_a_key(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=OTHER_KEY, max_retries=0) as client:
        extra = {"seed": 5, "deterministic": True}
        made = client.images.generate(prompt="face", response_format="url", extra_body=extra)
    (image,) = made.data
    assert get(image.url) == (200, images_of(server.post(prompt="face", seed=5, deterministic=True))[0])
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.images.generate(prompt="face")


def test_links_come_in_a_stream_too(server):
    events = server.stream(prompt="face", seed=5, deterministic=True, response_format="url", partial_images=1)
    _, last = events[-1]
    assert "b64_json" not in last
    assert get(last["url"]) == (200, images_of(server.post(prompt="face", seed=5, deterministic=True))[0])


@pytest.mark.parametrize(("key", "status"), [(KEY, 200), (OTHER_KEY, 200), (KEY[:-1], 401), ("", 401)])
def test_images_are_for_those_with_a_key(server, key, status):
    found, body = Served(server.process, server.url, server.log, key).post(prompt="face")
    assert found == status
    if status == 401:
        assert body["error"]["type"] == "authentication_error"
        assert get(f"{server.url}/v1/models")[0] == 401
        assert get(f"{server.url}/")[0] == get(f"{server.url}/healthz")[0] == 200


def arguments(served: Served) -> list[bytes]:
    """Command lines of all processes of a server, as `ps` shows them."""
    mark = f"{MARK}={served.url.rpartition(':')[2]}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes())
            except OSError:  # it has ended
                continue
    return found


def test_keys_are_in_no_log_and_no_process_list(server):
    images_of(server.post(prompt="face"))
    lines = arguments(server)
    assert sum(b"ServeReplica:tandem:" in line for line in lines) == 3
    session = re.search(rb"--session-dir=(/tmp/ray/session_[^\0]+)", b"\0".join(lines))
    assert session is not None
    logs = [path for path in Path(session[1].decode(), "logs").rglob("*") if path.is_file()]
    wait_until(
        lambda: any(b"/v1/images/generations" in path.read_bytes() for path in logs), "the request is in a log", 30
    )
    places = {"arguments": b"\n".join(lines), "log": server.log.read_bytes()}
    places |= {"output": server.log.with_suffix(".out").read_bytes()}
    places |= {str(path): path.read_bytes() for path in logs}
    for key in (KEY, OTHER_KEY):
        secrets = [key.encode(), base64.b64encode(key.encode()).rstrip(b"="), json.dumps(key).encode()]
        assert not [name for name, text in places.items() if any(secret in text for secret in secrets)]


def test_weights_that_yield_no_numbers_are_a_500_that_says_so_and_other_classes_go_on(server):
    for way in (Served.post, lambda server, **body: (500, server.stream(**body)[-1][1])):
        status, answer = way(server, prompt=str(NO_NUMBERS), seed=1)
        assert (status, answer["error"]["code"]) == (500, "decoding_failed")
        assert re.fullmatch(r"logits of scales \d to \d are not finite: [a-z ]+", answer["error"]["message"])
    assert server.post(prompt="0", seed=1)[0] == 200


def test_no_client_is_left_without_its_images_when_replicas_are_killed(server, measured):
    """200 requests of 16 clients; the only drafter dies among them, and once there is a new one, the only refiner."""
    asked = [{"prompt": str(seed), "seed": seed, "n": 1 + seed % 2, "deterministic": True} for seed in range(10)]
    undisturbed = [images_of(server.post(**body)) for body in asked]
    answers: dict[int, tuple[int, dict[str, Any]]] = {}
    over = threading.Event()

    def ask(number: int) -> None:
        if number == 199:  # comes after both faults, however fast the others are
            assert over.wait(300)
        by = ask_by_stream if number % 4 == 0 else Served.post
        answers[number] = by(server, **asked[number % 10])

    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(ask, number) for number in range(200)]
        for stage, least in (("Drafter", 40), ("Refiner", 100)):
            wait_until(lambda least=least: len(answers) >= least, f"{least} are answered")
            assert kill_replicas(stage, server) == 1
            at = len(answers)
            assert at < 180, "too late: nearly all are answered"
            wait_until(lambda at=at: len(answers) >= at + 20, f"there is a new {stage}")
        over.set()
        for future in futures:
            future.result(timeout=150)  # none hangs
    right, errors = 0, Counter()
    for number, (status, body) in answers.items():
        if status == 200:
            assert images_of((status, body)) == undisturbed[number % 10], f"request {number} has other images"
            right += 1
        else:
            assert status in (429, 500, 503) and set(body["error"]) == {"message", "type", "param", "code"}
            errors[status, body["error"]["code"]] += 1
    measured(f"replicas killed: {right} of 200 right, others {dict(errors)}")
    assert len(answers) == 200
    assert right >= 190


def test_a_server_that_is_stopped_finishes_its_requests_and_accepts_none(server):
    alone = images_of(server.post(prompt="face", n=10, seed=1, deterministic=True))
    body = {"prompt": "face", "n": 10, "seed": 1, "deterministic": True}
    with ThreadPoolExecutor(80) as pool:
        running: list[Future] = [pool.submit(server.post, **body) for _ in range(10)]
        stream = pool.submit(server.stream, **body)
        before = len(server.log.read_text())
        time.sleep(0.5)  # they are in hand: together they take many seconds
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.log.read_text(), "it has heard")
        late: list[Future] = []

        def is_refused() -> bool:
            """Those that come before all replicas have heard may still be let in, and wait with the others."""
            late.append(pool.submit(server.post, prompt="face", seed=1))
            time.sleep(0.1)
            return any(future.done() and future.result()[0] == 503 for future in late)

        wait_until(is_refused, "new requests are refused", 10)
        assert not all(future.done() for future in running)
        assert [images_of(future.result()) for future in running] == [alone] * 10
        completed = [event for name, event in stream.result() if name == "image_generation.completed"]
        assert [base64.b64decode(event["b64_json"]) for event in completed] == alone
        refused = [body["error"]["code"] for status, body in (future.result() for future in late) if status == 503]
        assert set(refused) == {"draining"}
    assert server.process.wait(timeout=60) == 0
    log = server.log.read_text()[before:]
    assert log.rstrip().endswith("stopped")
    assert "Traceback" not in log
