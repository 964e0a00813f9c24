"""The page's editor in a real browser: a picture is painted over with mouse, finger and keyboard, and drawn anew."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from support.browser import DONE, Watch, browser, check_axe, page, site, visit, watch
from support.page_server import NAMES, K, Site
from tandem_workers.requests.messages import ImageRequest

__all__ = ["browser", "page", "site", "visit", "watch"]  # fixtures


def picture(path: Path, width: int = 120, height: int = 80) -> Path:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def opened(page: Page, tmp_path: Path) -> Page:
    """The editor with a picture of 120 x 80 pixels."""
    open_file(page, picture(tmp_path / "garden.png"))
    return page


def open_file(page: Page, path: Path) -> None:
    page.get_by_role("button", name="Edit a picture").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.locator("#editor-file").set_input_files(path)
    expect(page.locator("#editor-sheet")).to_be_visible()


def drag(page: Page, *places: tuple[float, float]) -> None:
    """The mouse over the picture, through places given as shares of it."""
    box = page.locator("#editor-brush").bounding_box()
    assert box is not None
    for step, (x, y) in enumerate(places):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if step == 0:
            page.mouse.down()
    page.mouse.up()


def draw_anew(page: Page, site: Site) -> np.ndarray:
    """Press the button; the mask that the server was sent."""
    before = len(edits(site))
    page.locator("#editor-run").click()
    expect(page.locator("#editor-status")).to_contain_text("made, in")
    assert len(edits(site)) == before + 1
    edit = edits(site)[-1].edit
    assert edit is not None
    return edit.found.mask


def edits(site: Site) -> list[ImageRequest]:
    """What was asked for, without the samples of classes."""
    return [request for request in site.engine.asked if request.edit]


def choose_class(page: Page, name: str) -> None:
    page.locator("#editor-class").focus()
    page.keyboard.type(name)
    expect(page.locator("#editor-class-list [aria-selected=true]")).to_have_text(name)
    page.keyboard.press("Enter")


def test_brush_eraser_box_and_undo_paint_the_mask_that_is_sent(opened: Page, site: Site):
    page = opened
    expect(page.locator("#editor-undo")).to_be_disabled()
    drag(page, (0.25, 0.5), (0.75, 0.5))
    page.get_by_label("Eraser").check()
    drag(page, (0.5, 0.2), (0.5, 0.8))
    page.get_by_label("Box", exact=True).check()
    drag(page, (0.05, 0.05), (0.2, 0.2))
    drag(page, (0.6, 0.8), (0.9, 0.95))
    page.get_by_role("button", name="Undo").click()  # the second box
    choose_class(page, "fruit")
    mask = draw_anew(page, site)
    assert mask.shape == (80, 120)
    assert mask[40, 36] and mask[40, 84] and not mask[40, 60]  # the stroke, and where it was erased
    assert mask[10, 15] and not mask[20, 30] and not mask[70, 90]  # the box, and beyond it
    assert 0.05 < mask.mean() < 0.15
    request = edits(site)[-1]
    assert request.label == NAMES.index("fruit") and request.kept_scales == 0
    assert request.preview_scales == frozenset({1, 3, 6})


def test_results_stand_beside_the_picture_and_are_saved(opened: Page, site: Site):
    page = opened
    seen: list[str] = []
    page.expose_function("note", lambda alt: seen.append(alt))
    page.evaluate(
        """() => new MutationObserver(() => note(document.querySelector("#editor-results img")?.alt ?? "")).observe(
          document.querySelector("#editor-results"), {subtree: true, childList: true})"""
    )
    page.get_by_label("Box", exact=True).check()
    drag(page, (0.2, 0.2), (0.6, 0.8))
    page.locator("#editor-count").fill("2")
    draw_anew(page, site)
    assert any("after scale" in alt for alt in seen)  # previews came before
    assert edits(site)[-1].n == 2 and edits(site)[-1].label == len(NAMES)  # without a class
    results = page.locator("#editor-results .result")
    expect(results).to_have_count(2)
    slider = results.first.get_by_role("slider")
    expect(slider).to_have_attribute("aria-valuetext", "0 % before, 100 % after")
    slider.focus()
    page.keyboard.press("End")
    expect(slider).to_have_attribute("aria-valuetext", "100 % before, 0 % after")
    with page.expect_download() as download:
        results.first.get_by_role("button", name="Save").click()
    seed = edits(site)[-1].seed
    assert download.value.suggested_filename == f"garden_png-none-{seed}-0.png"
    assert Image.open(download.value.path()).size == (64, 64)  # as the painting engine makes them
    results.first.get_by_role("button", name="Go on with this").click()
    expect(page.locator("#editor-brush")).to_be_focused()
    expect(page.locator("#editor-undo")).to_be_disabled()


def test_the_keyboard_alone_paints_takes_back_and_draws(opened: Page, site: Site):
    page = opened
    page.locator("#editor-brush").focus()
    for key in ("ArrowLeft", "ArrowLeft", "Space", "ArrowRight", "ArrowRight", "ArrowDown", "Space", "ArrowUp"):
        page.keyboard.press(key)
    expect(page.locator("#editor-undo")).to_be_enabled()
    page.keyboard.press("Control+z")
    expect(page.locator("#editor-undo")).to_be_disabled()
    page.locator("#editor-run").press("Enter")
    expect(page.locator("#editor-alert")).to_have_text("Paint over what shall be drawn anew, or keep some scales.")
    page.locator("#editor-brush").focus()
    for key in ("Space", "ArrowRight", "ArrowRight", "Space"):
        page.keyboard.press(key)
    page.locator("#editor-run").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#editor-status")).to_contain_text("made, in")
    mask = edits(site)[-1].edit.found.mask
    assert mask[40, 65] and not mask[5].any()
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Box", exact=True).check()
    page.locator("#editor-brush").focus()
    for key in ("Space", "ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowUp", "Space"):
        page.keyboard.press(key)
    box = draw_anew(page, site)
    assert box.sum() > 0.9 * box.any(0).sum() * box.any(1).sum() > 20  # a rectangle
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_scales_that_are_kept_need_no_mask(opened: Page, site: Site):
    page = opened
    page.locator("#editor-keep").fill("4")
    expect(page.locator("#editor-keep-text")).to_have_text(f"the first 4 of {K} scales stay")
    assert draw_anew(page, site).all()
    assert edits(site)[-1].kept_scales == 4


def touch(page: Page, *places: tuple[float, float]) -> None:
    """A finger over the picture."""
    page.locator("#editor-brush").scroll_into_view_if_needed()
    box = page.locator("#editor-brush").bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    points = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in places]
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points[:1]})
    for point in points[1:]:
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_a_finger_paints_on_a_phone(visit: Callable[..., Page], site: Site, tmp_path: Path):
    page = visit(viewport={"width": 375, "height": 667}, has_touch=True, is_mobile=True)
    expect(page.locator(DONE)).to_have_count(1)
    open_file(page, picture(tmp_path / "garden.png"))
    for area in ("document.documentElement", "document.querySelector('#editor')"):
        assert page.evaluate(f"() => {area}.scrollWidth <= {area}.clientWidth")
    touch(page, (0.2, 0.5), (0.5, 0.5), (0.8, 0.5))
    mask = draw_anew(page, site)
    assert mask[40, 30] and mask[40, 60] and mask[40, 90] and not mask[5].any()


def test_pictures_come_from_the_gallery_the_lightbox_and_by_dropping(page: Page, site: Site, tmp_path: Path):
    page.locator(".run .menu summary").first.click()
    page.locator(".run .edit").first.click()
    expect(page.locator("#editor-picture")).to_have_attribute("alt", f"The picture to edit: {name_of(site)}")
    expect(page.locator("#editor-class")).to_have_value(NAMES[site.engine.asked[0].label])
    page.locator("#editor-close").click()
    page.locator(".run .open").first.click()
    page.locator("#lightbox-edit").click()
    expect(page.locator("#lightbox")).to_be_hidden()
    expect(page.locator("#editor")).to_be_visible()
    data = base64.b64encode(picture(tmp_path / "dropped.png").read_bytes()).decode()
    page.evaluate(
        """(data) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
          document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
        }""",
        data,
    )
    expect(page.locator("#editor-picture")).to_have_attribute("alt", "The picture to edit: dropped.png")


def name_of(site: Site) -> str:
    request = site.engine.asked[0]
    return f"{NAMES[request.label]}, seed {request.seed}, N = {request.draft_steps}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_editor(visit: Callable[..., Page], site: Site, tmp_path: Path, scheme: str):
    page = visit(color_scheme=scheme)
    expect(page.locator(DONE)).to_have_count(1)
    open_file(page, picture(tmp_path / "garden.png"))
    drag(page, (0.3, 0.3), (0.6, 0.6))
    draw_anew(page, site)
    page.get_by_role("button", name="What is kept?").click()
    check_axe(page)


def test_what_goes_wrong_is_said_in_the_editor(opened: Page, site: Site, watch: Watch, tmp_path: Path):
    page = opened
    watch.allowed += ["status of 400", "status of 503"]
    (tmp_path / "words.png").write_text("no picture")
    page.locator("#editor-file").set_input_files(tmp_path / "words.png")
    expect(page.locator("#editor-alert")).to_contain_text("Words.png is no picture")
    expect(page.locator("#editor-picture")).to_have_attribute("alt", "The picture to edit: garden.png")  # still
    page.locator("#editor-keep").fill("2")
    page.locator("#editor-class").fill("unicorn")
    page.locator("#editor-run").click()
    expect(page.locator("#editor-alert")).to_contain_text("Expected")
    choose_class(page, "none")
    site.engine.hang = True
    page.locator("#editor-run").click()
    page.locator("#editor-cancel").click()
    expect(page.locator("#editor-status")).to_have_text("Cancelled.")
    expect(page.locator("#editor-results .result")).to_have_count(0)
    expect(page.locator("#editor-run")).to_be_focused()
