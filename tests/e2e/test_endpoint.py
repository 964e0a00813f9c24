"""A running `tandem serve` as its clients see it: the unmodified OpenAI client, many at once, and ones that leave."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import select
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import openai
import pytest
import torch
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from PIL import Image

from support.ports import listening_addresses
from support.runs import wait_until
from support.served import Served, processes
from tandem.images import read_provenance
from tandem.zoo import EMBEDDED_SAMPLING
from tandem_workers.dataset.shards import ShardRows
from tandem_workers.models.decode_settings import DecodeSettings
from tandem_workers.models.model_set import resolve_models
from tandem_workers.stages.drafter import Drafter
from tandem_workers.stages.refiner import Refiner

BATCH, K, CLASSES = 8, 7, 12


@pytest.fixture(scope="module")
def client(served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=120) as client:
        yield client


def pixels_of(b64_json: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(b64_json))) as image:
        return np.asarray(image.convert("RGB"))


def files(answer: tuple[int, dict[str, Any]]) -> list[str]:
    """The images of an answer, which has to be one."""
    status, body = answer
    assert status == 200, body
    return [image["b64_json"] for image in body["data"]]


def test_the_openai_client_gets_images_that_say_how_they_were_made(client):
    answer = client.images.generate(
        model="tandem-embedded", prompt="face", n=2, size="auto", response_format="b64_json", extra_body={"seed": 5}
    )
    assert len(answer.data) == 2 and answer.created > 0
    assert (answer.size, answer.output_format, answer.background) == ("64x64", "png", "opaque")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (1, 310, 311)
    for index, image in enumerate(answer.data):
        assert pixels_of(image.b64_json).shape == (64, 64, 3)
        about = read_provenance(base64.b64decode(image.b64_json))
        assert (about.seed, about.index, about.class_name, about.draft_steps) == (5, index, "face", 5)
    assert answer.data[0].b64_json != answer.data[1].b64_json


def test_answers_and_events_are_of_the_types_of_the_openai_client(served):
    """Its client does not check them, others may. Of sizes it knows none below 1024 pixels."""
    body = {"prompt": "face", "seed": 5}
    sized = {"size": "1024x1024"}
    ImagesResponse.model_validate(served.post(**body)[1] | sized, strict=True)
    types = {"partial_image": ImageGenPartialImageEvent, "completed": ImageGenCompletedEvent}
    for name, event in served.stream(**body):
        types[name.rpartition(".")[2]].model_validate(event | sized, strict=True)


def test_the_openai_client_gets_partial_images_while_the_image_is_made(client):
    longest = 0.0
    for _ in range(3):  # a busy machine may wake this process only when all is there
        arrived, events = [], []
        for event in client.images.generate(prompt="face", n=1, stream=True, partial_images=3, extra_body={"seed": 5}):
            arrived.append(time.monotonic())
            events.append(event)
        longest = max(longest, arrived[-1] - arrived[0])
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 3 + ["completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    assert len({pixels_of(event.b64_json).tobytes() for event in events}) == 4
    assert events[-1].usage.total_tokens == 156
    assert longest > 0.01  # the refiner works in between: nobody has kept the first back


def test_the_settings_of_code_go_in_and_come_back(client):
    settings = {
        "seed": 7,
        "draft_steps": 2,
        "cfg": 1.5,
        "top_k": 100,
        "top_p": 0.8,
        "temperatures": [1.1, 0.9],
        "deterministic": True,
    }
    answer = client.images.generate(prompt="3", extra_body=settings)
    found = answer.model_extra["tandem"]
    assert {name: found[name] for name in settings} == settings
    assert found["label"] == 3
    assert set(found["seconds"]) == {"wait", "draft", "refine", "decode", "encode", "total"}


@pytest.mark.parametrize("codec", ["png", "jpeg", "webp"])
def test_every_format_is_what_it_says(client, codec):
    answer = client.images.generate(prompt="face", output_format=codec, output_compression=50, extra_body={"seed": 5})
    data = base64.b64decode(answer.data[0].b64_json)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == (codec.upper(), (64, 64))
    assert read_provenance(data).seed == 5


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"prompt": "unicorn"}, "prompt"),
        ({"prompt": "face", "n": 11}, "n"),
        ({"prompt": "face", "size": "1024x1024"}, "size"),
        ({"prompt": "face", "model": "gpt-image-1"}, "model"),
        ({"prompt": "face", "extra_body": {"draft_steps": 8}}, "draft_steps"),
        ({"prompt": "face", "stream": True, "extra_body": {"cfg": -1}}, "cfg"),
    ],
)
def test_the_openai_client_raises_its_own_errors(client, wrong, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**wrong)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert f"{param}: expected" in caught.value.message


def test_links_without_a_store_give_anyone_the_images(served, client):
    settings = {"seed": 5, "deterministic": True}
    made = client.images.generate(prompt="face", n=2, response_format="url", extra_body=settings)
    answers = [urllib.request.urlopen(image.url, timeout=30) for image in made.data]
    assert [answer.headers["Content-Type"] for answer in answers] == ["image/png"] * 2
    found = [base64.b64encode(answer.read()).decode() for answer in answers]
    assert found == files(served.post(prompt="face", n=2, **settings))
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(made.data[0].url.replace("/files/", "/files/A"), timeout=30)
    assert caught.value.code == 404


def test_the_azure_client_is_answered(served):
    with openai.AzureOpenAI(azure_endpoint=served.url, api_version="2024-02-01", api_key="any", max_retries=0) as azure:
        answer = azure.images.generate(model="tandem-embedded", prompt="face", extra_body={"seed": 5})
    assert pixels_of(answer.data[0].b64_json).shape == (64, 64, 3)


def test_the_openai_client_lists_the_models(client):
    (model,) = client.models.list()
    assert (model.id, model.owned_by) == ("tandem-embedded", "tandem")
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


@pytest.mark.parametrize("n", [1, 8, 10])
def test_deterministic_images_are_the_pixels_of_a_job_with_the_same_seed(served, n):
    """Image i is the job's with index i: same batch, padded in the same way."""
    answer = files(served.post(prompt="4", n=n, seed=11, deterministic=True))
    threads = torch.get_num_threads()
    models = resolve_models("embedded", "embedded", "embedded", False)
    settings = DecodeSettings(11, 5, EMBEDDED_SAMPLING, BATCH, "float32", threads=1)
    shard = ShardRows(shard=0, index=np.arange(n), label=np.full(n, 4, np.int32))
    expected = Refiner(models, settings).load()(Drafter(models, settings).load()(shard)).pixels
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(np.stack([pixels_of(image) for image in answer]), expected)


def test_a_deterministic_request_has_the_same_bytes_at_any_load(served):
    ask = partial(served.post, prompt="face", n=3, seed=5, deterministic=True)
    alone = files(ask())
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(served.post, prompt=str(i % CLASSES), n=1 + i % 4, draft_steps=i % 8) for i in range(12)]
        crowded = [pool.submit(ask) for _ in range(3)]
        assert all(other.result()[0] == 200 for other in others)
    assert [files(one.result()) for one in crowded] == [alone] * 3


def test_different_requests_at_once_each_get_their_own_images(served):
    """Mixed N, classes, guidance and counts. In a shared batch, rounding may rarely draw another token."""
    asked = [
        {"prompt": str(i % CLASSES), "seed": 100 + i, "n": 1 + i % 3, "draft_steps": i % (K + 1), "cfg": (i % 4) * 1.5}
        for i in range(24)
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda body: served.post(**body), asked))
    same = []
    for body, answer in zip(asked, together, strict=True):
        images = files(answer)
        found = answer[1]["tandem"]
        assert (found["seed"], found["draft_steps"], found["cfg"]) == (body["seed"], body["draft_steps"], body["cfg"])
        assert len(images) == body["n"]
        for index, image in enumerate(images):
            about = read_provenance(base64.b64decode(image))
            assert (about.seed, about.index, about.label) == (body["seed"], index, int(body["prompt"]))
        for image, alone in zip(images, files(served.post(**body)), strict=True):
            difference = np.abs(pixels_of(image).astype(int) - pixels_of(alone).astype(int))
            same.append(difference.max() <= 2)
    assert np.mean(same) > 0.9


def test_a_stream_of_several_images_has_all_previews_and_the_images_of_the_seed(served):
    body = {"prompt": "face", "n": 3, "seed": 5, "deterministic": True}
    scales = [1, 3, 5, 6]
    events = served.stream(**body, preview_scales=scales)
    previews = [event for name, event in events if name == "image_generation.partial_image"]
    assert sorted((event["image_index"], event["scale"]) for event in previews) == [
        (image, scale) for image in range(3) for scale in scales
    ]
    assert {event["scale"]: event["made_by"] for event in previews} == dict.fromkeys((1, 3, 5), "drafter") | {
        6: "refiner"
    }
    completed = [event["b64_json"] for name, event in events if name == "image_generation.completed"]
    assert completed == files(served.post(**body))


def metrics(served: Served) -> dict[str, float]:
    """What the server counts, at the address that it has printed: sums over processes and tags."""
    address = re.search(r"http://\S+/metrics", served.log.read_text())
    assert address is not None
    with urllib.request.urlopen(address[0], timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    sums: dict[str, float] = {}
    for line in lines:
        if found := re.match(r"(ray_tandem_serve_\w+)\{.*\} (\S+)$", line):
            sums[found[1]] = sums.get(found[1], 0.0) + float(found[2])
    return sums


def test_what_the_server_counts_is_at_the_address_that_it_prints(served):
    files(served.post(prompt="face", n=3))
    served.stream(prompt="face", n=1)
    named = {
        "requests_total",
        "images_total",
        "request_seconds_count",
        "first_preview_seconds_count",
        "images_in_flight",
        "batches_total",
        "rows_total",
        "busy_seconds_total",
        "waited_seconds_total",
        "batch_size_count",
        "batch_seconds_count",
        "waiting_images",
        "padded_rows_total",
    }
    wait_until(lambda: {f"ray_tandem_serve_{name}" for name in named} <= set(metrics(served)), "all are counted")
    before = metrics(served)["ray_tandem_serve_images_total"]
    files(served.post(prompt="face", n=2))
    wait_until(lambda: metrics(served)["ray_tandem_serve_images_total"] >= before + 2, "two more images are counted")


def test_the_ray_of_a_server_on_loopback_listens_there_too(served):
    """Its metrics included. Only replicas have a port for gRPC on all networks: Ray Serve has no setting for it."""
    found = processes(served)
    replicas = [pid for pid, command in found.items() if command.startswith("ray::ServeReplica")]
    addresses = listening_addresses(found.keys() - set(replicas))
    assert addresses and addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert "metrics for Prometheus: http://127.0.0.1:" in served.log.read_text()
    assert listening_addresses(replicas) <= {"::ffff:127.0.0.1", "::"}


def send(served: Served, **body: Any) -> socket.socket:
    """A request on a connection whose answer nobody has read."""
    data = json.dumps(body).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    connection = socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=30)
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
    return connection


def test_requests_beyond_the_queue_are_refused_at_once_with_a_time_to_retry(served):
    """60 requests of ten images, of which 384 fit in: the others do not wait for them."""
    connections = [send(served, prompt="face", n=10, deterministic=True) for _ in range(60)]
    wait_until(lambda: len(select.select(connections, [], [], 0)[0]) >= 20, "twenty are answered", 20)
    answers = [http.client.HTTPResponse(connection) for connection in select.select(connections, [], [], 0)[0]]
    for answer in answers:
        answer.begin()
    refused = [answer for answer in answers if answer.status == 429]
    assert len(refused) >= 15
    for answer in refused:
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert json.load(answer)["error"]["code"] == "queue_full"
    for connection in connections:
        connection.close()
    wait_until(lambda: served.post(prompt="face")[0] == 200, "there is room again", 30)


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_take_their_images_with_them(served, stream):
    """Ten clients with ten images each: most of these are never made."""
    before = metrics(served)
    connections = [send(served, prompt="face", n=10, stream=stream, deterministic=True) for _ in range(10)]
    time.sleep(0.3)  # they are under way by now, and far from done
    for connection in connections:
        connection.close()
    files(served.post(prompt="face", n=1, seed=1, deterministic=True))

    def counted(name: str) -> float:
        name = f"ray_tandem_serve_{name}"
        return metrics(served).get(name, 0.0) - before.get(name, 0.0)

    wait_until(lambda: counted("requests_total") >= 11, "all requests have come to an end", 60)
    wait_until(lambda: metrics(served)["ray_tandem_serve_images_in_flight"] == 0, "nothing is in flight", 60)
    wait_until(lambda: counted("images_total") >= 1, "the image of the one that stayed is counted", 60)
    assert counted("images_total") < 50
