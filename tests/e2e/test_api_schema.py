"""The server and its own OpenAPI document: every answer is one that the document declares, whatever is asked."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from schemathesis import Case

from support.served import Served

IMAGES = "/v1/images/generations"
IMAGE_STREAM = f"{IMAGES}/stream"
EDIT_STREAM = "/v1/images/edits/stream"
NAMES = ("face", "Flag", "11", " 0 ")


def document_of(served: Served) -> dict[str, Any]:
    """The server's document, with the events of streams in the way that schemathesis knows: it takes the schema of a
    text/event-stream for that of one event, as OpenAPI 3.2 has it in `itemSchema`."""
    document: dict[str, Any] = requests.get(f"{served.url}/openapi.json", timeout=60).json()
    for path, kind in ((IMAGE_STREAM, "ImageStreamEvent"), (EDIT_STREAM, "EditStreamEvent")):
        names = document["components"]["schemas"][kind]["discriminator"]["mapping"]
        content = {
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": f"#/components/schemas/{kind}"},
        }
        event = {
            "type": "object",
            "required": ["event", "data"],
            "properties": {"event": {"enum": list(names)}, "data": {"type": "string", **content}},
        }
        document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"] = {"itemSchema": event}
    return document


def test_whatever_is_asked_the_answer_is_declared_and_no_fault(served, tmp_path):
    """All default checks but `positive_data_acceptance`, which takes every string for a prompt: the document cannot
    list a thousand class names, nor say which settings go only together. Such requests are the 400 that it declares;
    the next test names classes."""
    document, report = tmp_path / "openapi.json", tmp_path / "requests.har"
    document.write_text(json.dumps(document_of(served)))
    tool = Path(sys.executable).with_name("schemathesis")
    bounds = ["--max-examples", "40", "--seed", "1", "--request-timeout", "60", "--continue-on-failure"]
    checks = ["--exclude-checks", "positive_data_acceptance"]
    command = [str(tool), "run", str(document), "--url", served.url, *checks, *bounds, "--report-har-path", str(report)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:]
    asked, named = Counter(), Counter()
    for entry in json.loads(report.read_text())["log"]["entries"]:
        path = entry["request"]["url"].removeprefix(served.url).partition("?")[0]
        asked[path, entry["response"]["status"]] += 1
        named[sum(header["name"].lower() == "x-request-id" for header in entry["response"]["headers"])] += 1
    for path in (IMAGES, IMAGE_STREAM):
        assert asked[path, 200] >= 20 and asked[path, 400] >= 100  # valid and wrong ones, both
        assert asked[path, 405] >= 1
    assert asked["/v1/images/edits", 400] >= 100 and asked["/v1/images/variations", 400] >= 20
    assert {path for path, status in asked if status == 200} >= {"/v1/models", "/v1/classes", "/healthz", "/readyz"}
    assert set(named) == {1}  # not one by Ray Serve and another by us
    assert not [status for _, status in asked if status >= 500]


def whole(value: Any) -> Any:
    if isinstance(value, list):
        return [whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def allowed(body: dict[str, Any], name: str, stream: bool) -> dict[str, Any]:
    """The request with what the document leaves open decided: a class, and settings that go together.

    Whole numbers are written as such: for JSON Schema 1.0 is an integer too, and the server refuses it.
    """
    body = {key: whole(value) for key, value in body.items()} | {"prompt": name}
    body.pop("model", None)
    if body.get("response_format") == "url":
        del body["response_format"]
    if not stream:
        body.pop("preview_scales", None)
    elif body.get("preview_scales") is not None:
        body.pop("partial_images", None)
    return body


def test_what_the_document_allows_is_answered_with_images(served):
    schema = schemathesis.openapi.from_dict(document_of(served))
    operations = st.one_of(*(schema[path]["POST"].as_strategy() for path in (IMAGES, IMAGE_STREAM)))
    made = Counter()

    @examples(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # a failure is not made smaller: each try costs a second
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations, name=st.sampled_from(NAMES))
    def check(case: Case, name: str) -> None:
        stream = case.operation.path == IMAGE_STREAM
        case.body = body = allowed(case.body, name, stream)
        answer = requests.request(**case.as_transport_kwargs(base_url=served.url), timeout=60)
        assert answer.status_code == 200, answer.text
        case.validate_response(answer)
        if stream:
            events = [json.loads(block.split("\ndata: ")[1]) for block in answer.text.strip().split("\n\n")]
            images = [event for event in events if event["type"] == "image_generation.completed"]
        else:
            images = answer.json()["data"]
        assert len(images) == (body.get("n") or 1)
        for image in images:
            with Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) as opened:
                assert opened.size == (64, 64) and opened.format.lower() == (body.get("output_format") or "png")
        made["streams" if stream else "answers"] += 1

    check()
    assert min(made["streams"], made["answers"]) >= 5
