"""A real browser on the page: fixtures, and what is observed in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from support.page_server import Site, page_server
from support.programs import need

GENERATIONS = "**/v1/images/generations"
DONE = ".run[data-state=done]"
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

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}

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
def browser() -> Iterator[Browser]:
    """One Chromium for the file."""
    program = need("chromium", "/usr/bin/chromium")
    expect.set_options(timeout=MADE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def site() -> Iterator[Site]:
    """A server of its own, as a test changes what it does."""
    with page_server() as site:
        yield site


@pytest.fixture
def watch(site: Site) -> Watch:
    return Watch(site.url)


@pytest.fixture
def visit(browser: Browser, site: Site, watch: Watch) -> Iterator[Callable[..., Page]]:
    """Opens addresses of the server, each in a browser that was never there; options are those of its window."""
    pages: list[Page] = []

    def visit(path: str = "", **options: Any) -> Page:
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
        page.set_default_timeout(MADE_MS)
        watch.follow(page)
        page.goto(f"{site.url}/{path}")
        pages.append(page)
        return page

    yield visit
    for page in pages:
        page.unroute_all(behavior="ignoreErrors")  # a handler may still wait for an answer that nobody reads
        page.context.close()
    assert watch.problems == []


@pytest.fixture
def page(visit: Callable[..., Page]) -> Page:
    """The page after the image that it makes for a new visitor."""
    page = visit()
    expect(page.locator(DONE)).to_have_count(1, timeout=MADE_MS)
    return page


def choose(page: Page, typed: str, name: str) -> None:
    page.locator("#class-input").focus()
    page.keyboard.type(typed)
    expect(page.locator("#class-list [aria-selected=true]")).to_have_text(name)
    page.keyboard.press("Enter")
    expect(page.locator("#class-input")).to_have_value(name)
    expect(page.locator("#class-list")).to_be_hidden()


def generate(page: Page) -> list[dict[str, Any]]:
    """Press the button and wait for another run; the bodies of its streamed requests."""
    bodies: list[dict[str, Any]] = []
    done = page.locator(DONE)
    before = done.count()

    def note(request: Any) -> None:
        if request.method == "POST" and request.post_data_json.get("stream"):
            bodies.append(request.post_data_json)

    page.on("request", note)
    page.locator("#generate").click()
    expect(done).to_have_count(before + 1, timeout=MADE_MS)
    page.remove_listener("request", note)
    return bodies


def check_axe(page: Page) -> None:
    """No violation of WCAG A and AA that axe can find."""
    page.emulate_media(reduced_motion="reduce")
    page.evaluate("() => Promise.all(document.getAnimations().map((one) => one.finished.catch(() => 0)))")
    found = Axe().run(page, options=RULES).response["violations"]
    assert [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found] == []


def unfold(page: Page) -> None:
    """Open what is folded away in the settings."""
    for fold in page.locator("#form details").all():
        fold.evaluate("(fold) => { fold.open = true; }")
