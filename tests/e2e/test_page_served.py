"""The page before the real server: images come through Ray Serve, scale by scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import expect, sync_playwright

from support.browser import ARGS, DONE, MADE_MS
from support.programs import need


def test_an_image_of_the_embedded_model_arrives(served: Any, measured: Callable[[str], None]):
    program = need("chromium", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGS)
        page = browser.new_page()
        page.goto(f"{served.url}/?prompt=heart&seed=5")
        expect(page.locator(DONE)).to_have_count(1, timeout=MADE_MS)
        expect(page.locator(".run .picture")).to_have_attribute("data-previews", "6")
        expect(page.locator(".run h3")).to_have_text("heart")
        first_ms = page.evaluate("""() => performance.getEntriesByType("resource")
          .find((one) => one.name.endsWith("/generations")).responseEnd""")
        measured(f"page: the first image came {first_ms:.0f} ms after the start of loading")
        browser.close()
