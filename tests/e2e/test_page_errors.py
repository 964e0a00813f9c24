"""What the page says and keeps when a request fails, waits or is cancelled."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

from playwright.sync_api import Page, Route, expect

from support.browser import DONE, GENERATIONS, Watch, browser, generate, page, site, unfold, visit, watch
from support.page_server import Site, page_server, painted
from tandem_workers.endpoint.keys import digest

__all__ = ["browser", "page", "site", "visit", "watch"]  # fixtures

LAPTOP = {"width": 1366, "height": 625}
KEY = "open-sesame-open-sesame"
IN_WINDOW = """(element) => {
  const {top, bottom, left, right} = element.getBoundingClientRect();
  return top >= 0 && left >= 0 && bottom <= innerHeight && right <= innerWidth;
}"""


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
    expect(page.locator(".run")).to_have_count(1)  # the first one
    page.unroute(GENERATIONS)
    generate(page)
    expect(page.locator("[aria-invalid]")).to_have_count(0)


def be_busy(route: Route) -> None:
    error = {"message": "expected at most 8 images in flight", "param": None}
    route.fulfill(status=429, headers={"Retry-After": "2"}, json={"error": error})


def test_a_busy_server_is_asked_again_by_itself(page: Page, watch: Watch):
    expect(page.locator(".tile img")).to_have_count(12)  # their samples are made: what is asked for now is the image
    watch.allowed.append("status of 429")
    page.set_viewport_size(LAPTOP)
    page.evaluate("() => scrollTo(0, document.body.scrollHeight)")
    page.route(GENERATIONS, be_busy, times=1)
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("The server is busy. Trying again in 2 seconds")
    assert page.locator("#status").evaluate(IN_WINDOW)
    assert page.locator("#retry").evaluate(IN_WINDOW)
    expect(page.locator("#announcer")).to_have_text("The server is busy. Trying again in 2 seconds.")
    expect(page.locator("#status")).to_contain_text("in 1 second")
    expect(page.locator("#announcer")).to_have_text("The server is busy. Trying again in 2 seconds.")  # said once
    expect(page.locator(DONE)).to_have_count(2)
    expect(page.locator("#alert")).to_be_empty()


def test_a_busy_server_is_not_asked_for_the_first_image_again(visit: Callable[..., Page], site: Site, watch: Watch):
    watch.allowed.append("status of 4")  # 429; and 404, as a browser asks for an icon beside a style sheet
    refused: list[Route] = []
    page = visit("page/style.css")
    page.route(GENERATIONS, lambda route: (refused.append(route), be_busy(route)))
    page.goto(f"{site.url}/")
    expect(page.locator("#status")).to_contain_text("The server is busy just now.")
    expect(page.locator("#retry")).to_be_hidden()
    expect(page.locator(".run")).to_have_count(0)
    assert len(refused) <= 2  # that image, and one sample


def test_a_lost_connection_is_shown_in_the_window(page: Page, watch: Watch):
    watch.allowed.append("net::ERR_FAILED")
    page.set_viewport_size(LAPTOP)
    page.route(GENERATIONS, lambda route: route.abort())
    page.locator("#generate").click()
    expect(page.locator("#alert")).to_have_text("The server cannot be reached.")
    for part in ("#alert", "#retry", "#generate"):
        assert page.locator(part).evaluate(IN_WINDOW)
    page.unroute(GENERATIONS)
    page.locator("#retry").click()
    expect(page.locator(DONE)).to_have_count(2)


def test_an_image_that_fails_on_the_way_says_so(page: Page, site: Site):
    data = base64.b64encode(painted(site.engine.asked[0], 0, 1)).decode()
    preview = {"type": "image_generation.partial_image", "b64_json": data, "output_format": "png", "image_index": 0}
    events = [
        {**preview, "scale": 1, "num_scales": 7, "made_by": "drafter"},
        {"error": {"message": "not made within 9 s"}},
    ]
    body = "".join(f"event: any\r\ndata: {json.dumps(event)}\r\n\r\n" for event in events)
    page.route(GENERATIONS, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.locator("#generate").click()
    expect(page.locator(".run[data-state=error] .problem")).to_have_text("Not made within 9 s.")
    expect(page.locator("#alert")).to_have_text("Not made within 9 s.")


def test_a_key_is_asked_for_in_words_and_stays_in_the_tab(browser):
    with page_server(key_digests=(digest(KEY),)) as site:
        page = browser.new_page()
        page.goto(f"{site.url}/")
        expect(page.get_by_role("heading", name="This server asks for a key")).to_be_visible()
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_contain_text("xpected Bearer and a known API key")
        assert site.engine.asked == []
        page.locator("#key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator(DONE)).to_have_count(1)
        expect(page.locator("#key-prompt")).to_be_hidden()
        page.locator(".run .open").click()
        command = page.locator("#lightbox-code").text_content() or ""
        assert '-H "Authorization: Bearer $TANDEM_API_KEY"' in command
        assert "sesame" not in page.content()
        assert "sesame" not in page.evaluate("() => JSON.stringify(localStorage) + document.cookie + location")
        page.context.close()


def test_a_run_is_cancelled(page: Page, site: Site):
    site.engine.hang = True
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("Waiting")
    page.locator("#cancel").click()
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.locator("#cancel")).to_be_hidden()
    expect(page.locator("#generate")).to_be_focused()
    expect(page.locator(".run")).to_have_count(1)
    site.engine.hang = False
    unfold(page)
    generate(page)
