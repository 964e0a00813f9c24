"""Requests as clients of other image servers send them: what they get here, strictly and with `--lenient`.

The requests are those that the named source makes. docs/API.md has the table that is checked here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from support.fake_engine import FakeEngine, client, make_gateway
from support.sources import ROOT
from tandem_workers.endpoint.keys import digest

KEY = "a-key-of-some-length"
CLIENTS = json.loads((Path(__file__).parents[3] / "data" / "image_clients.json").read_text())
TABLE = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", (ROOT / "docs" / "API.md").read_text(), re.M)


@pytest.fixture(scope="module", params=["strict", "lenient"])
def mode(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def api(mode) -> TestClient:
    return client(make_gateway(FakeEngine(), key_digests=(digest(KEY),), lenient=mode == "lenient"))


def ask(api: TestClient, one: dict[str, Any]) -> Any:
    headers = {name: value.replace("KEY", KEY) for name, value in one.get("headers", {}).items()}
    return api.post(one["path"], json=one["body"], headers=headers or {"authorization": f"Bearer {KEY}"})


def outcome(answer: Any) -> str:
    """An answer as the table has it: the status and the fields that are refused, or what is answered and noted."""
    body = answer.json()
    if answer.status_code != 200:
        fields = dict.fromkeys(re.findall(r"(?:^|; )(\w+): ", body["error"]["message"]))
        return f"{answer.status_code}: {', '.join(f'`{name}`' for name in fields)}"
    (kind,) = body["data"][0]
    noted = dict.fromkeys(note["param"] for note in body["tandem"].get("lenient", ()))
    return f"`{kind}`; notes: {', '.join(f'`{name}`' for name in noted)}" if noted else f"`{kind}`"


@pytest.mark.parametrize("one", CLIENTS, ids=lambda one: one["client"])
def test_a_client_gets_what_the_documents_say(mode, api, one):
    rows = {row[0]: row[1:] for row in TABLE}
    fields, *outcomes = rows[one["client"]]
    assert fields == one["fields"]
    assert outcome(ask(api, one)) == outcomes[mode == "lenient"]


@pytest.mark.parametrize("one", CLIENTS, ids=lambda one: one["client"])
def test_a_lenient_server_answers_with_what_the_client_reads(mode, api, one):
    answer = ask(api, one)
    if mode == "strict":
        assert answer.status_code in (400, 404)
        return
    assert answer.json()["data"][0][one["reads"]]
    asked = one["body"].get("size", f"{one['body'].get('width')}x{one['body'].get('height')}")
    assert answer.json()["size"] == (asked if "size" in one["body"] and asked != "auto" else answer.json()["size"])
    assert answer.json()["tandem"]["class_name"] == "dog"


def test_the_table_has_no_other_clients():
    start = [row[0] for row in TABLE].index("Client")
    assert [row[0] for row in TABLE[start + 1 :]] == [one["client"] for one in CLIENTS]


@pytest.fixture
def openai_clients(api) -> dict[str, Any]:
    """The real client as it is, in its three forms, on this application."""
    common = {"http_client": api, "max_retries": 0}
    return {
        "openai": openai.OpenAI(base_url="http://testserver/v1", api_key=KEY, **common),
        "azure v1": openai.OpenAI(base_url="http://testserver/openai/v1", api_key=KEY, **common),
        "azure": openai.AzureOpenAI(
            azure_endpoint="http://testserver", api_version="2024-02-01", api_key=KEY, **common
        ),
    }


@pytest.mark.parametrize("name", ["openai", "azure v1", "azure"])
def test_the_openai_client_and_those_for_azure_are_answered(mode, api, openai_clients, name):
    asked = openai_clients[name]
    made = asked.images.generate(model="tandem-test", prompt="dog", response_format="url", extra_body={"seed": 5})
    link = api.get(made.data[0].url)  # without a key
    assert (link.status_code, link.content, link.headers["content-type"]) == (200, b"4/5/0", "image/png")
    if mode == "strict":
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
            asked.images.generate(model="dall-e-3", prompt="dog")
        assert caught.value.code == "model_not_found"
    else:
        assert asked.images.generate(model="dall-e-3", prompt="dog").data[0].url
    with pytest.raises(openai.AuthenticationError):
        asked.with_options(api_key="another-key-of-some-length").images.generate(model="tandem-test", prompt="dog")
