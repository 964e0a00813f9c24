"""The page in a real browser, against the real server with the embedded model."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import urllib.parse
import urllib.request
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from support.browser import CONTRASTS, GENERATIONS, MADE_MS, OBSERVE, browser, choose, generate, page, watch

__all__ = ["browser", "page", "watch"]  # fixtures


NUM_SCALES = 7


def picture_bytes(page: Page, nth: int = 0) -> bytes:
    address = page.locator(".card img.picture").nth(nth).get_attribute("src") or ""
    return base64.b64decode(address.partition(",")[2])


def test_an_image_arrives_coarse_to_fine(page: Page):
    choose(page, "hea", "heart")
    page.evaluate(OBSERVE)
    (body,) = generate(page)
    assert body["prompt"] == "heart"
    assert body["preview_scales"] == list(range(1, NUM_SCALES))

    picture = page.locator(".card img.picture")
    seen = page.evaluate("() => window.seen")
    scales = [int(scale) for scale in seen["data-scale"]]
    assert len(scales) >= 3
    assert scales == sorted(scales)
    assert picture.get_attribute("data-scale") == str(NUM_SCALES)
    assert picture.get_attribute("data-previews") == str(len(scales))
    addresses = [*seen["src"], picture.get_attribute("src")]
    assert len(set(addresses)) == len(scales) + 1

    size = picture.evaluate(
        "async (image) => { await image.decode(); return [image.naturalWidth, image.naturalHeight]; }"
    )
    assert size == [64, 64]
    assert Image.open(io.BytesIO(picture_bytes(page))).size == (64, 64)
    makers = page.locator(".strip [data-maker]").evaluate_all("(cells) => cells.map((cell) => cell.dataset.maker)")
    assert makers == ["drafter"] * 5 + ["refiner"] * 2
    assert page.locator(".times dt").all_inner_texts() == ["wait", "draft", "refine", "decode", "encode", "total"]
    expect(page.locator(".first")).to_have_text(re.compile(r"First preview seen after \d"))
    expect(page.locator("#status")).to_contain_text("1 image in")


def test_another_number_of_draft_steps_is_asked_for(page: Page):
    steps = page.locator("#draft-steps")
    (first,) = generate(page)
    assert first["draft_steps"] == 5
    told = {
        "2": "N = 2: drafter makes scales 1–2, refiner 3–7",
        "0": "N = 0: refiner alone",
        "7": "N = 7: drafter alone",
        "1": "N = 1: drafter makes scale 1, refiner 2–7",
    }
    for value, text in told.items():
        steps.fill(value)
        expect(page.locator("#draft-steps-text")).to_have_text(text)
        expect(steps).to_have_attribute("aria-valuetext", text)
    (second,) = generate(page)
    assert second["draft_steps"] == 1
    assert page.locator(".card").count() == 2  # the earlier one stays, below
    assert page.locator(".card .split b").all_inner_texts() == ["N = 1", "N = 5"]


def test_an_empty_seed_is_drawn_shown_and_used_again(page: Page):
    expect(page.locator("#seed")).to_have_value("")
    (first,) = generate(page)
    expect(page.locator(".card .settings")).to_contain_text(f"seed {first['seed']}")
    page.locator("#use-seed").click()
    expect(page.locator("#seed")).to_have_value(str(first["seed"]))
    (second,) = generate(page)
    assert second == first
    page.locator("#dice").click()
    expect(page.locator("#seed")).not_to_have_value(str(first["seed"]))
    page.locator(".card .reuse").last.click()
    expect(page.locator("#seed")).to_have_value(str(first["seed"]))


def test_the_command_makes_the_same_image_again(page: Page, served: Any):
    page.locator("#count").fill("2")
    page.locator("#seed").fill("17")
    page.locator("summary").click()
    page.locator("#deterministic").check()
    (body,) = generate(page, cards=2)
    assert body["n"] == 2
    assert picture_bytes(page, 0) != picture_bytes(page, 1)

    command = shlex.split(page.locator(".curl code").nth(1).inner_text())
    assert command[:3] == ["curl", "-sS", f"{served.url}/v1/images/generations"]
    sent = json.loads(command[command.index("-d") + 1])
    assert (sent["prompt"], sent["seed"], sent["n"]) == ("face", 17, 2)
    assert ".data[1].b64_json" in command
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(command[2], json.dumps(sent).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        again = json.load(response)
    assert base64.b64decode(again["data"][1]["b64_json"]) == picture_bytes(page, 1)


def test_two_settings_are_compared_under_a_slider(page: Page):
    page.locator("#seed").fill("8")
    page.locator("#compare").check()
    expect(page.locator("#compare-steps")).to_have_value(str(NUM_SCALES))
    left, right = generate(page)
    assert (left.pop("draft_steps"), right.pop("draft_steps")) == (5, NUM_SCALES)
    assert left == right  # the seed above all
    assert picture_bytes(page, 0) != picture_bytes(page, 1)

    slider = page.get_by_role("slider", name="Reveal: N = 5 on the left, drafter alone on the right")
    top = page.locator(".card img.picture").first
    half = top.evaluate("(image) => getComputedStyle(image).clipPath")
    slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "51 % N = 5, 49 % drafter alone")
    assert top.evaluate("(image) => getComputedStyle(image).clipPath") != half
    box = page.locator(".frame").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + 20)
    expect(slider).to_have_value("25")

    page.locator("#draft-steps").fill(str(NUM_SCALES))
    page.locator("#generate").click()
    expect(page.locator("#compare-steps-error")).to_contain_text("would be the same")


def test_it_works_by_keyboard_alone(page: Page):
    keys, focus = page.keyboard, page.locator(":focus")
    for _ in range(3):
        keys.press("Tab")
        if focus.count() and focus.get_attribute("id") == "class-input":
            break
    keys.type("fl")
    expect(page.locator("#class-list [aria-selected=true]")).to_have_text("flag")
    keys.press("Escape")
    expect(page.locator("#class-list")).to_be_hidden()
    keys.press("ArrowDown")  # all classes
    first = page.locator("#class-list li").first
    expect(first).to_have_attribute("aria-selected", "true")
    keys.press("ArrowUp")  # round to the last
    last = page.locator("#class-list li").last
    expect(last).to_have_attribute("aria-selected", "true")
    expect(focus).to_have_attribute("aria-activedescendant", last.get_attribute("id"))
    name = last.inner_text()
    keys.press("Enter")
    expect(focus).to_have_value(name)

    keys.press("Tab")
    expect(focus).to_have_attribute("id", "draft-steps")
    keys.press("ArrowRight")
    with page.expect_request(GENERATIONS) as sent:
        keys.press("Enter")
    assert sent.value.post_data_json["draft_steps"] == 6
    assert sent.value.post_data_json["prompt"] == name
    expect(page.locator(".card[data-state=done]")).to_have_count(1, timeout=MADE_MS)

    stops = []
    for _ in range(30):
        keys.press("Tab")
        if focus.count() == 0:
            break
        assert focus.evaluate("(element) => getComputedStyle(element).outlineStyle") != "none"
        stops.append(focus.get_attribute("id") or focus.get_attribute("class"))
    assert {"seed", "dice", "count", "cfg", "compare", "generate", "copy"} <= set(stops)


def test_a_thousand_classes_are_searched(page: Page, served: Any):
    names = [f"thing {i}, object {i}" for i in range(1000)]

    def answer(route: Route) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(route.request.url).query).get("query", [""])[0]
        found = [{"id": i, "object": "class", "name": name} for i, name in enumerate(names) if query in name]
        route.fulfill(json={"object": "list", "data": found[:100], "total": len(found)})

    page.route("**/v1/classes?*", answer)
    page.reload()
    expect(page.locator("#class-input")).to_have_value(names[0])
    page.locator("#class-input").click()
    expect(page.locator("#class-note")).to_have_text("100 of 1,000 classes: type to narrow")
    choose(page, "object 777", names[777])
    page.locator("#class-input").fill("nothing of the kind")
    expect(page.locator("#class-note")).to_have_text("No class matches.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_is_legible(page: Page, scheme: str):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (min(int(part) for part in re.findall(r"\d+", ground)) > 127) == (scheme == "light")
    assert page.locator("#generate").evaluate("(button) => getComputedStyle(button).transitionDuration") == "0s"
    page.locator("#compare").check()
    page.locator("summary").click()
    generate(page)
    page.locator("#seed").fill("")
    page.locator("#count").fill("")
    page.locator("#generate").click()
    expect(page.locator("#count-error")).to_have_text("Expected a number.")
    for width in (1280, 800, 360):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    faint = [(round(ratio, 2), text) for ratio, text in page.evaluate(CONTRASTS) if ratio < 4.5]
    assert faint == []


@pytest.mark.skipif("TANDEM_SCREENSHOT" not in os.environ, reason="TANDEM_SCREENSHOT names no file")
def test_a_picture_of_the_page_is_taken(page: Page):
    for name, seed, compared in (("fruit", 8, False), ("building", 3, True)):
        choose(page, name, name)
        page.locator("#seed").fill(str(seed))
        page.locator("#compare").set_checked(compared)
        generate(page)
    page.locator("h1").click()  # no button has the focus or the mouse
    image = Image.open(io.BytesIO(page.screenshot(full_page=True, animations="disabled")))
    image.convert("RGB").save(os.environ["TANDEM_SCREENSHOT"])
