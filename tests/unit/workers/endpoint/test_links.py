"""Links to images that the server itself answers: signed, expiring, valid at every ingress, within bounds of memory."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import time
from dataclasses import replace
from typing import Any

import pytest

from support.fake_engine import ABOUT, PATH, SAMPLING, FakeEngine, client, make_gateway
from tandem_workers.endpoint.gateway import Gateway, GatewaySettings
from tandem_workers.endpoint.keys import digest
from tandem_workers.endpoint.links import LinkedFiles, Signer
from tandem_workers.requests.api_errors import ApiError
from tandem_workers.requests.messages import ImageRequest, Pictures

KEY = "a-key-of-some-length"
REQUEST = ImageRequest(
    4, 2**53 - 1, 3, 2, replace(SAMPLING, temperatures=(1.0, 0.5), refiner_cfg=0.5), "jpeg", 80, True
)
SIGNER = Signer(b"s" * 32, 600)


def links_of(api: Any, headers: dict[str, str] | None = None, **body: Any) -> list[str]:
    answer = api.post(PATH, json={"prompt": "dog", "response_format": "url", **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    return [image["url"] for image in answer.json()["data"]]


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_links_give_the_images_without_a_key_and_without_making_them_again():
    engine = FakeEngine()
    api = client(make_gateway(engine, key_digests=(digest(KEY),)))
    urls = links_of(api, {"authorization": f"Bearer {KEY}"}, n=2, seed=5, output_format="webp")
    for index, url in enumerate(urls):
        assert url.startswith("http://testserver/files/") and url.endswith(".webp")
        answer = api.get(url)
        assert (answer.status_code, answer.content) == (200, f"4/5/{index}".encode())
        assert answer.headers["content-type"] == "image/webp"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"].startswith("private, max-age=3")
    assert len(engine.asked) == 1


def test_a_link_of_a_stream_gives_the_image_too():
    api = client(make_gateway(FakeEngine()))
    body = {"prompt": "dog", "seed": 5, "stream": True, "response_format": "url", "partial_images": 0}
    event = json.loads(api.post(PATH, json=body).text.split("data: ")[1])
    assert api.get(event["url"]).content == b"4/5/0"


def test_another_ingress_of_the_same_server_makes_the_image_again_and_once():
    settings = GatewaySettings(lenient=True)
    first = client(Gateway(FakeEngine(), ABOUT, settings))
    urls = links_of(first, n=3, seed=7, size="32x24", cfg=2, temperatures=[0.5, 1], deterministic=True)
    engine = FakeEngine()
    other = Gateway(engine, ABOUT, pickle.loads(pickle.dumps(settings)))  # as Ray hands it to a replica
    assert [client(other).get(url).content for url in urls] == [f"4/7/{i}".encode() for i in range(3)]
    (request,) = engine.asked
    assert (request.n, request.size, request.deterministic) == (3, (32, 24), True)
    assert (request.sampling.cfg, request.sampling.temperatures) == (2.0, (0.5, 1.0))
    assert other.admission.in_flight == 0


def test_a_link_that_makes_images_counts_as_a_request():
    settings = GatewaySettings(max_images=3)
    urls = links_of(client(Gateway(FakeEngine(), ABOUT, settings)), n=2)
    engine = FakeEngine()
    full = Gateway(engine, ABOUT, settings)
    with full.admission.admit(2):
        answer = client(full).get(urls[0])
    assert error_of(answer, 429)["code"] == "queue_full" and answer.headers["retry-after"]
    full.admission.draining = True
    error_of(client(full).get(urls[0]), 503)
    assert engine.asked == []


def forged(name: str) -> list[str]:
    """Names that this server has not made, all near to one that it has."""
    payload, signature, extension = name.split(".")
    values = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    later = base64.urlsafe_b64encode(json.dumps([values[0] + 9999, *values[1:]]).encode()).rstrip(b"=").decode()
    other = Signer(b"t" * 32, 600).name(REQUEST, 0)
    ends = [f"{payload}.{end}.{extension}" for end in ("", signature[:-1], f"{signature}=", signature.swapcase())]
    parts = [payload, f"{payload}.{signature}", f"{payload}.{signature}.exe", f"{name}.{extension}", f"{name}x"]
    return ["x", "a.b.png", f"{later}.{signature}.{extension}", other, "é" * 40, "A" * 5000, *ends, *parts]


def test_a_link_that_this_server_has_not_signed_makes_nothing():
    engine = FakeEngine()
    gateway = make_gateway(engine)
    api = client(gateway)
    name = links_of(api)[0].rpartition("/")[2]
    engine.asked.clear()
    for wrong in forged(name):
        assert api.get(f"/files/{wrong}").status_code in (404, 410), wrong
        with pytest.raises(ApiError):
            gateway.linked.signer.read(wrong)
    assert engine.asked == []
    assert api.get("/files/").status_code == 404 and api.post(f"/files/{name}").status_code == 405


def test_a_link_expires(monkeypatch):
    api = client(make_gateway(FakeEngine(), link_seconds=60))
    (url,) = links_of(api)
    now = time.time()
    monkeypatch.setattr("tandem_workers.endpoint.links.time.time", lambda: now + 50)
    assert api.get(url).status_code == 200
    monkeypatch.setattr("tandem_workers.endpoint.links.time.time", lambda: now + 61)
    assert error_of(api.get(url), 410)["code"] == "link_expired"


@pytest.mark.parametrize("request_", [REQUEST, replace(REQUEST, size=(640, 480)), ImageRequest(0, 0, 1, 0, SAMPLING)])
def test_a_name_holds_the_whole_request(request_):
    link = SIGNER.read(SIGNER.name(request_, 2))
    assert (link.request, link.index) == (request_, 2)
    assert hash(link.request) == hash(request_)


def test_a_secret_is_random_for_each_deployment_and_never_shown():
    first, second = GatewaySettings(), GatewaySettings()
    assert first.link_secret != second.link_secret and len(first.link_secret) == 32
    gateway = make_gateway(FakeEngine())
    for shown in (repr(gateway.settings), repr(gateway), repr(gateway.linked.signer)):
        assert "secret" not in shown.replace("secrets", "")
    assert client(Gateway(FakeEngine(), ABOUT, second)).get(links_of(client(gateway))[0]).status_code == 404


@pytest.mark.parametrize(
    ("headers", "settings", "base"),
    [
        ({}, {}, "http://testserver"),
        ({"host": "images.example.org:8443"}, {}, "http://images.example.org:8443"),
        ({"host": "[::1]:8000"}, {}, "http://[::1]:8000"),
        ({"x-forwarded-proto": "https"}, {}, "https://testserver"),
        ({"x-forwarded-proto": "https, http"}, {}, "https://testserver"),
        ({"x-forwarded-proto": "javascript"}, {}, "http://testserver"),
        ({"x-forwarded-host": "evil.example"}, {}, "http://testserver"),
        ({"host": "a b"}, {"public_url": "https://a.example/images"}, "https://a.example/images"),
    ],
)
def test_a_link_begins_with_the_address_by_which_the_client_asked(headers, settings, base):
    (url,) = links_of(client(make_gateway(FakeEngine(), **settings)), headers)
    assert url.startswith(f"{base}/files/")


@pytest.mark.parametrize("host", ["evil.example/x", "user@evil.example", 'a"b', "", "a:b"])
def test_a_host_that_is_no_name_gets_no_link(host):
    engine = FakeEngine()
    body = {"prompt": "dog", "response_format": "url"}
    assert error_of(client(make_gateway(engine)).post(PATH, json=body, headers={"host": host}), 400)["message"]
    assert engine.asked == []


def test_the_name_of_the_server_is_checked_for_links_too():
    api = client(make_gateway(FakeEngine(), allowed_hosts=("testserver",)))
    (url,) = links_of(api)
    assert error_of(api.get(url, headers={"host": "evil.example"}), 400)["code"] == "host_not_allowed"


class Making:
    """Makes files when it is told to, and counts how often it was asked."""

    def __init__(self, size: int = 10):
        self.size, self.asked, self.go = size, 0, asyncio.Event()

    async def __call__(self, request: ImageRequest) -> Pictures:
        self.asked += 1
        await self.go.wait()
        return Pictures([bytes([i]) * self.size for i in range(request.n)])

    def files(self, most_bytes: int) -> LinkedFiles:
        return LinkedFiles(SIGNER, self, lambda work: work, most_bytes)


def test_links_of_one_request_that_come_together_make_it_once():
    async def run() -> tuple[list[bytes], int]:
        making = Making()
        files = making.files(1000)
        wanted = [SIGNER.read(SIGNER.name(REQUEST, index)) for index in (0, 1, 2, 1)]
        tasks = [asyncio.create_task(files.file(link)) for link in wanted]
        await asyncio.sleep(0)
        tasks[0].cancel()  # whoever makes them leaves: the next one does it
        await asyncio.sleep(0)
        making.go.set()
        found = await asyncio.gather(*tasks[1:])
        assert not files.making
        return found, making.asked

    assert asyncio.run(run()) == ([b"\x01" * 10, b"\x02" * 10, b"\x01" * 10], 2)


def test_kept_files_are_bounded_and_those_used_last_stay():
    async def run() -> None:
        making = Making(size=100)
        making.go.set()
        files = making.files(650)
        others = [replace(REQUEST, seed=seed) for seed in range(40)]
        for other in others:
            files.links(other, [b"x" * 100] * 3, "http://host")
            assert await files.file(SIGNER.read(SIGNER.name(others[0], 1)))
            assert files.kept_bytes == sum(map(len, files.kept.values())) <= 650
        assert making.asked == 0  # the first stayed, as it was used all the time
        assert await files.file(SIGNER.read(SIGNER.name(others[3], 2))) == b"\x02" * 100
        assert making.asked == 1 and files.kept_bytes <= 650
        big = Making(size=1000)
        big.go.set()
        assert (
            len(await big.files(650).file(SIGNER.read(SIGNER.name(REQUEST, 2)))) == 1000
        )  # larger than all that is kept

    asyncio.run(run())
