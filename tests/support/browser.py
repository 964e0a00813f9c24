"""A real browser on the page: fixtures, and what is observed in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from support.programs import need

GENERATIONS = "**/v1/images/generations"
MADE_MS = 60_000  # a server that has just started is slow
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Every value that `src` and `data-scale` of a picture had: also those that were never painted.
OBSERVE = """() => {
  window.seen = {src: [], "data-scale": []};
  new MutationObserver((records) => {
    for (const {target, attributeName, oldValue} of records)
      if (target.matches("img.picture") && oldValue !== null) window.seen[attributeName].push(oldValue);
  }).observe(document.querySelector("#results"), {
    subtree: true, attributes: true, attributeOldValue: true, attributeFilter: ["src", "data-scale"],
  });
}"""

# WCAG contrast of what has text of its own, is seen and not disabled: [[ratio, text], ..]
CONTRASTS = r"""() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
  };
  const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const weights = [0.2126, 0.7152, 0.0722, 0];
  const luminance = (color) => rgba(color).reduce((sum, part, i) => sum + linear(part) * weights[i], 0);
  const ground = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return rgba(color)[3] === 1 ? color : ground(element.parentElement);
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const isSeen = (element) => element.checkVisibility() && !element.matches(":disabled, option");
  return [...document.querySelectorAll("body *")].filter((one) => isSeen(one) && hasText(one)).map((element) => {
    const both = [getComputedStyle(element).color, ground(element)].map(luminance);
    return [(Math.max(...both) + 0.05) / (Math.min(...both) + 0.05), element.textContent.trim()];
  });
}"""


@dataclass
class Watch:
    """What no test may see: errors in the console, and requests to another server."""

    origin: str
    allowed: list[str] = field(default_factory=list)  # parts of messages that a test means to cause
    problems: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        page.on("console", lambda message: message.type in ("error", "warning") and self.note(message.text))
        page.on("pageerror", lambda error: self.note(str(error)))
        page.on("request", lambda request: self.check(request.url))

    def check(self, url: str) -> None:
        if not url.startswith((f"{self.origin}/", "data:", "blob:")):
            self.problems.append(f"a request to {url}")

    def note(self, text: str) -> None:
        if not any(part in text for part in self.allowed):
            self.problems.append(text)


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """One Chromium for the file."""
    program = need("chromium", "/usr/bin/chromium")
    request.getfixturevalue("served")  # before the event loop of playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def watch(served: Any) -> Watch:
    return Watch(served.url)


@pytest.fixture
def page(browser: Browser, served: Any, watch: Watch) -> Iterator[Page]:
    """The page as it is when the server has told what it offers."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    watch.follow(page)
    open_page(page, served.url)
    yield page
    page.context.close()
    assert watch.problems == []


def open_page(page: Page, url: str) -> None:
    page.goto(f"{url}/")
    expect(page.locator("#class-input")).not_to_have_value("")


def choose(page: Page, typed: str, name: str) -> None:
    page.locator("#class-input").focus()
    page.keyboard.type(typed)
    expect(page.locator("#class-list [aria-selected=true]")).to_have_text(name)
    page.keyboard.press("Enter")
    expect(page.locator("#class-input")).to_have_value(name)
    expect(page.locator("#class-list")).to_be_hidden()


def generate(page: Page, cards: int = 1) -> list[dict[str, Any]]:
    """Press the button and wait for so many new cards; the bodies of the requests."""
    bodies: list[dict[str, Any]] = []
    done = page.locator(".card[data-state=done]")
    before = done.count()

    def note(request: Any) -> None:
        if request.method == "POST":
            bodies.append(request.post_data_json)

    page.on("request", note)
    page.locator("#generate").click()
    expect(done).to_have_count(before + cards, timeout=MADE_MS)
    page.remove_listener("request", note)
    return bodies
