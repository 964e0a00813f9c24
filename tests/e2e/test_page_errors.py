"""What the page says and keeps when a request fails, waits or is cancelled."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from support.browser import GENERATIONS, MADE_MS, Watch, browser, generate, page, watch

__all__ = ["browser", "page", "watch"]  # fixtures


def refuse(page: Page, status: int, headers: dict[str, str] | None = None, **error: str | None) -> None:
    body = json.dumps({"error": {"type": "invalid_request_error", "param": None, "code": None, **error}})
    page.route(GENERATIONS, lambda route: route.fulfill(status=status, headers=headers or {}, body=body))


def test_errors_are_shown_next_to_their_controls(page: Page, watch: Watch):
    watch.allowed.append("status of 400")
    wrong = {"#class-input": "unicorn", "#seed": "-1", "#count": "99"}
    for control, value in wrong.items():
        right = page.locator(control).input_value()
        page.locator(control).fill(value)
        page.locator("#generate").click()
        expect(page.locator(f"{control}-error")).to_contain_text(value)
        expect(page.locator(control)).to_have_attribute("aria-invalid", "true")
        expect(page.locator(control)).to_be_focused()
        page.locator(control).fill(right)
        expect(page.locator(f"{control}-error")).to_be_empty()

    def spoil(route: Route) -> None:
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "top_p": 1.5}))

    page.route(GENERATIONS, spoil)
    page.locator("#generate").click()
    expect(page.locator("#top-p-error")).to_be_visible()  # in what was folded away
    expect(page.locator("#top-p-error")).to_contain_text("1.5")
    assert page.locator(".card").count() == 0
    page.unroute(GENERATIONS)
    generate(page)
    expect(page.locator("[aria-invalid]")).to_have_count(0)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(page: Page, watch: Watch, status: int):
    watch.allowed.append(f"status of {status}")
    refuse(page, status, {"Retry-After": "3"}, message="expected at most 8 images in flight")
    page.locator("#generate").click()
    expect(page.locator("#alert")).to_contain_text("xpected at most 8 images in flight. Try again in 3 s.")
    page.unroute(GENERATIONS)
    page.locator("#retry").click()
    expect(page.locator(".card[data-state=done]")).to_have_count(1, timeout=MADE_MS)
    expect(page.locator("#alert")).to_be_empty()


def test_a_lost_connection_is_shown(page: Page, watch: Watch):
    watch.allowed.append("net::ERR_FAILED")
    page.route(GENERATIONS, lambda route: route.abort())
    page.locator("#generate").click()
    expect(page.locator("#alert")).to_have_text("The server cannot be reached.")
    expect(page.locator("#retry")).to_be_visible()


def test_an_image_that_fails_on_the_way_says_so(page: Page):
    png = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(png, "PNG")
    data = base64.b64encode(png.getvalue()).decode()
    preview = {"type": "image_generation.partial_image", "b64_json": data, "output_format": "png", "image_index": 0}
    events = [
        {**preview, "scale": 1, "num_scales": 7, "made_by": "drafter"},
        {"error": {"message": "not made within 9 s"}},
    ]
    body = "".join(f"event: any\r\ndata: {json.dumps(event)}\r\n\r\n" for event in events)
    page.route(GENERATIONS, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.locator("#generate").click()
    expect(page.locator(".card[data-state=error] .problem")).to_have_text("Not made within 9 s.")
    expect(page.locator("#alert")).to_have_text("Not made within 9 s.")


def test_a_key_is_asked_for_and_stays_in_the_tab(page: Page, watch: Watch):
    watch.allowed.append("status of 401")
    denied = json.dumps({"error": {"message": "expected a known API key", "param": None}})

    def guard(route: Route) -> None:
        known = route.request.headers.get("authorization") == "Bearer open-sesame"
        route.continue_() if known else route.fulfill(status=401, body=denied)

    page.route(GENERATIONS, guard)
    expect(page.locator("#key")).to_be_hidden()
    page.locator("#generate").click()
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#key-error")).to_have_text("Expected a known API key.")
    page.keyboard.type("open-sesame")
    page.keyboard.press("Enter")
    expect(page.locator(".card[data-state=done]")).to_have_count(1, timeout=MADE_MS)
    command = page.locator(".curl code").inner_text()
    assert '-H "Authorization: Bearer $TANDEM_API_KEY"' in command
    assert "sesame" not in page.content()
    assert page.evaluate("() => [localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]


def test_a_run_is_cancelled(page: Page):
    page.route(GENERATIONS, lambda route: None)  # never answered
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("Waiting")
    page.locator("#cancel").click()
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.locator("#cancel")).to_be_hidden()
    expect(page.locator("#generate")).to_be_focused()
    assert page.locator(".card").count() == 0
    page.unroute(GENERATIONS)
    generate(page)
