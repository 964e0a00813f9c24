"""The page in a real browser: images, the address, the gallery, and what can be done with a picture."""

from __future__ import annotations

import io
import json
import re
import shlex
import urllib.parse
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence
from playwright.sync_api import Browser, Page, Route, expect

from support.browser import (
    DONE,
    GENERATIONS,
    OBSERVE,
    Watch,
    browser,
    choose,
    generate,
    page,
    site,
    unfold,
    visit,
    watch,
)
from support.page_server import K, Site, page_server, painted

__all__ = ["browser", "page", "site", "visit", "watch"]  # fixtures


def saved(page: Page, button: str) -> tuple[str, bytes]:
    """Name and bytes of what a button saves."""
    with page.expect_download() as download:
        page.locator(button).first.click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_a_visitor_is_met_by_an_image_and_the_classes(visit: Callable[..., Page], site: Site):
    page = visit()
    expect(page.locator(DONE)).to_have_count(1)
    expect(page.locator(".tile")).to_have_count(12)
    expect(page.locator(".tile img")).to_have_count(12)  # samples, made one after the other
    assert page.evaluate("() => scrollY") == 0
    assert page.locator(".run .picture").evaluate("(image) => image.getBoundingClientRect().bottom < innerHeight")
    page.get_by_role("button", name="fruit", exact=True).click()
    expect(page.locator(DONE)).to_have_count(2)
    expect(page.locator(".run h3").first).to_have_text("fruit")
    made = len(site.engine.asked)
    page.reload()
    expect(page.locator(".tile img")).to_have_count(12)
    expect(page.locator(DONE)).to_have_count(2)
    assert len(site.engine.asked) == made  # nothing is made twice


def test_samples_of_a_thousand_classes_are_made_when_they_are_seen(
    visit: Callable[..., Page], site: Site, watch: Watch
):
    watch.allowed.append("status of 404")  # a browser asks for an icon beside a style sheet
    names = [{"id": i, "object": "class", "name": f"thing {i}, object {i}"} for i in range(1000)]
    page = visit("page/style.css")
    page.route("**/v1/classes?*", lambda route: route.fulfill(json=found(names, route.request.url)))
    page.route(GENERATIONS, lambda route: route.continue_(post_data=with_known_class(route)))
    page.goto(f"{site.url}/")
    expect(page.locator(".tile")).to_have_count(1000)
    page.locator(".tile").last.scroll_into_view_if_needed()
    expect(page.locator(".tile").last.locator("img")).to_be_visible()
    assert page.locator(".tile img").count() < 100
    choose(page, "object 777", names[777]["name"])


def found(names: list[dict[str, Any]], url: str) -> dict[str, Any]:
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    matching = [one for one in names if query.get("query", [""])[0] in one["name"]]
    return {"data": matching[: int(query["limit"][0])], "total": len(matching)}


def with_known_class(route: Route) -> str:
    return json.dumps({**route.request.post_data_json, "prompt": "face"})


def test_an_image_arrives_coarse_to_fine_and_can_be_gone_through(page: Page):
    choose(page, "hea", "heart")
    page.evaluate(OBSERVE)
    (body,) = generate(page)
    assert body["prompt"] == "heart"
    assert body["preview_scales"] == list(range(1, K))
    picture = page.locator(".run .picture").first
    seen = [int(scale) for scale in page.evaluate("() => window.seen")["data-scale"]]
    assert seen == list(range(1, K))
    assert picture.get_attribute("data-scale") == str(K)
    makers = (
        page.locator(".run").first.locator(".scales span").evaluate_all("(all) => all.map((one) => one.dataset.maker)")
    )
    assert makers == ["drafter"] * 5 + ["refiner"] * 2

    box = picture.bounding_box()
    for place, scale in ((0.05, 1), (0.5, 4), (0.95, K)):
        page.mouse.move(box["x"] + place * box["width"], box["y"] + 30)
        expect(picture).to_have_attribute("data-scale", str(scale))
    page.mouse.move(0, 0)
    slider = page.get_by_role("slider", name=re.compile("Coarse to fine: heart")).first
    slider.press("ArrowLeft")
    expect(picture).to_have_attribute("data-scale", str(K - 1))
    expect(slider).to_have_attribute("aria-valuetext", f"scale {K - 1} of {K}, refiner")
    expect(page.locator(".run .times").first).to_contain_text("First preview seen after")
    expect(page.locator("#status")).to_contain_text("1 image in")


def test_a_link_is_followed_and_the_address_keeps_all(visit: Callable[..., Page], site: Site):
    page = visit("?prompt=fruit&seed=5")
    expect(page.locator(DONE)).to_have_count(1)
    assert (site.engine.asked[0].label, site.engine.asked[0].seed) == (7, 5)
    unfold(page)
    page.locator("#draft-steps").fill("2")
    page.locator("#refiner-own").check()
    page.locator("#refiner-cfg").fill("1.5")
    page.locator("#cfg-schedule").select_option("off-after")
    page.locator("#cfg-off").fill("4")
    (body,) = generate(page)
    expected = {
        "draft_steps": 2,
        "cfg": 3,
        "cfg_schedule": "off-after:4",
        "refiner_cfg": 1.5,
        "seed": 5,
        "prompt": "fruit",
    }
    assert {name: body[name] for name in expected} == expected
    page.reload()
    expect(page.locator(DONE)).to_have_count(2)
    expect(page.locator("#draft-steps")).to_have_value("2")
    expect(page.locator("#cfg-off")).to_have_value("4")
    expect(page.locator("#refiner-cfg")).to_have_value("1.5")
    page.go_back()
    expect(page.locator("#draft-steps")).to_have_value("5")
    unfold(page)
    page.locator("#cfg-schedule").select_option("own")
    page.locator("#cfg-strengths").fill("0,0.5,1,1.5,2,0,0")
    expect(page.locator("#refiner-row")).to_be_hidden()
    (own,) = generate(page)
    assert own["cfg_schedule"] == "0,0.5,1,1.5,2,0,0" and own["cfg"] is None and own["refiner_cfg"] is None
    expect(page.locator(".run").first).to_contain_text("cfg 0,0.5,1,1.5,2,0,0")
    page.locator("#cfg-schedule").select_option("linear")
    page.locator("#seed").fill("")
    (drawn,) = generate(page)
    assert f"seed={drawn['seed']}" in page.url
    page.reload()
    expect(page.locator("#seed")).to_have_value("")  # drawn again next time, though the address has it
    page.locator("#use-seed").click()
    expect(page.locator("#seed")).to_have_value(str(drawn["seed"]))
    assert len(site.engine.asked) >= 3


def test_every_class_can_be_made_whatever_it_is_called(browser: Browser):
    names = ("y" * 300, "two\nlines", "twin", "twin", "3", "<img src=x onerror=alert(1)>", "a, b")
    with page_server(names) as odd:
        page = browser.new_page()
        page.on("dialog", lambda dialog: (_ for _ in ()).throw(AssertionError(dialog.message)))
        page.goto(f"{odd.url}/")
        expect(page.locator(DONE)).to_have_count(1)
        for label in range(len(names)):
            page.locator(".tile").nth(label).click()
            expect(page.locator(DONE)).to_have_count(label + 2)
            expect(page.locator("#generate")).to_have_attribute("aria-disabled", "false")
        expect(page.locator(".tile img")).to_have_count(len(names))
        streamed = [request.label for request in odd.engine.asked if request.preview_scales]
        assert streamed == [0, *range(len(names))]
        assert page.locator("#results h3").nth(1).inner_text() == names[5]
        page.reload()
        expect(page.locator(".tile[aria-pressed=true]")).to_have_attribute("data-label", "6")
        page.context.close()


def test_the_lightbox_goes_through_the_gallery_by_arrow_keys(page: Page, site: Site):
    page.locator("#count").fill("3")
    page.locator("#seed").fill("17")
    (body,) = generate(page)
    assert body["n"] == 3
    assert page.locator(".run").first.locator(".timing").count() == 1  # one set of times a request
    page.locator(".run .open").first.click()
    place = page.locator("#lightbox-place")
    expect(place).to_have_text("1 of 4")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    expect(place).to_have_text("3 of 4")
    expect(page.locator("#lightbox-facts")).to_contain_text("3 of 3")
    page.keyboard.press("ArrowLeft")
    expect(place).to_have_text("2 of 4")
    request = next(one for one in site.engine.asked if one.seed == 17)
    name, data = saved(page, "#lightbox-save")
    assert (name, data) == ("face-17-1-N5.png", painted(request, 1, K))

    name, data = saved(page, "#lightbox-gif")
    assert name == "face-17-1-N5.gif"
    frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]
    assert len(frames) == K
    assert frames[0].size == (256, 256)
    for scale, frame in enumerate(frames, 1):
        right = Image.open(io.BytesIO(painted(request, 1, scale))).convert("RGB")
        off = [
            abs(a - b)
            for a, b in zip(frame.resize((8, 8), 4).tobytes(), right.resize((8, 8), 4).tobytes(), strict=True)
        ]
        assert sum(off) / len(off) < 4

    page.locator("#lightbox summary").click()
    command = shlex.split(page.locator("#lightbox-code").inner_text())
    assert command[:3] == ["curl", "-sS", f"{site.url}/v1/images/generations"]
    sent = json.loads(command[command.index("-d") + 1])
    assert (sent["prompt"], sent["seed"], sent["n"], sent["draft_steps"]) == ("face", 17, 3, 5)
    assert ".data[1].b64_json" in command
    page.keyboard.press("Escape")
    expect(page.locator("#lightbox")).to_be_hidden()


def test_pictures_links_and_programs_are_copied(page: Page, site: Site):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#seed").fill("5")
    generate(page)
    page.locator(".run .open").first.click()
    read = "() => navigator.clipboard.readText()"
    page.locator("#lightbox-link").click()
    expect(page.locator("#lightbox-link")).to_have_text("Link copied")
    assert page.evaluate(read) == f"{site.url}/?prompt=face&seed=5"
    page.locator("#lightbox summary").click()
    page.locator("#lightbox-python").click()
    expect(page.locator("#announcer")).to_have_text("Copied")
    program = page.evaluate(read)
    compile(program, "copied", "exec")
    assert 'prompt="face"' in program
    assert '"seed": 5' in program
    page.locator("#lightbox-copy").click()
    expect(page.locator("#lightbox-copy")).to_have_text("Copied")
    types = "() => navigator.clipboard.read().then((items) => items[0].types)"
    assert page.evaluate(types) == ["image/png"]


def test_all_images_are_saved_as_one_zip(page: Page):
    page.locator("#count").fill("2")
    page.locator("#seed").fill("17")
    generate(page)
    name, data = saved(page, "#save-all")
    assert name == "tandem-3-images.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        files = archive.namelist()
        assert files[:2] == ["face-17-0-N5.png", "face-17-1-N5.png"]
        assert Image.open(io.BytesIO(archive.read(files[1]))).size == (64, 64)
        assert [one["seed"] for one in json.loads(archive.read("settings.json"))][:2] == [17, 17]
    assert saved(page, ".run .save")[0] == "tandem-2-images.zip"


def test_the_gallery_is_bounded_and_can_be_emptied(page: Page):
    count = """async () => {
      const store = await import("/page/store.js");
      const [run] = await store.keptRuns();
      for (let i = 0; i < 62; i += 1) { const { id, ...copy } = run; await store.keepRun(copy); }
      return (await store.keptRuns()).length;
    }"""
    assert page.evaluate(count) == 60
    page.reload()
    expect(page.locator(DONE)).to_have_count(60)
    page.locator(".run .menu summary").first.click()
    page.locator(".run .remove").first.click()
    expect(page.locator(DONE)).to_have_count(59)
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#clear").click()
    expect(page.locator("#empty")).to_be_visible()
    assert page.evaluate("async () => (await (await import('/page/store.js')).keptRuns()).length") == 0
