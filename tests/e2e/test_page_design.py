"""The page at many sizes, in light, dark and forced colours, by keyboard, and its comparisons of N."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from support.browser import (
    CONTRASTS,
    DONE,
    GENERATIONS,
    Watch,
    browser,
    check_axe,
    generate,
    page,
    site,
    unfold,
    visit,
    watch,
)
from support.page_server import DRAFT_STEPS, K, Site, page_server
from tandem.checkpoints.fine_tuning import FineTuned

__all__ = ["browser", "page", "site", "visit", "watch"]  # fixtures

# the last one: 1366 x 625 at 200 % zoom
SIZES = {"phone": (320, 568), "tablet": (768, 900), "laptop": (1366, 625), "wide": (1920, 1000), "zoomed": (683, 312)}
OUTSIDE = """() => ["generate", "bar"].filter((id) => {
  const {top, bottom, left, right} = document.getElementById(id).getBoundingClientRect();
  return top < 0 || left < 0 || bottom > innerHeight || right > innerWidth;
})"""


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_generate_is_in_the_window_and_nothing_overflows(page: Page, size: tuple[int, int]):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.locator("#settings").evaluate("(settings) => { settings.open = true; }")
    unfold(page)
    for button in page.locator("#form .info").all():
        button.click()
        expect(page.locator(f"#{button.get_attribute('aria-controls')}")).to_be_visible()
    for share in (0, 0.5, 1):
        page.evaluate("(share) => scrollTo(0, share * document.body.scrollHeight)", share)
        assert page.evaluate(OUTSIDE) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
    page.locator(".run .open").first.click()
    assert page.locator("#lightbox").evaluate("(box) => box.scrollWidth <= box.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_legible_and_axe_finds_nothing(page: Page, scheme: str):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    expect(page.locator("#generate")).to_have_css("transition-duration", "0s")
    page.locator("#compare").select_option(str(K))
    unfold(page)
    generate(page)
    page.locator("#count").fill("")
    page.locator("#generate").click()
    expect(page.locator("#count-error")).to_have_text("Expected a number.")
    check_axe(page)
    faint = [(round(ratio, 2), text) for ratio, text in page.evaluate(CONTRASTS) if ratio < 4.5]
    assert faint == []
    page.locator(".run .open").first.click()
    check_axe(page)


def test_tracks_of_sliders_are_seen_in_forced_colours(page: Page):
    page.emulate_media(forced_colors="active")
    track = "(slider) => getComputedStyle(slider, '::-webkit-slider-runnable-track').backgroundColor"
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert page.locator("#draft-steps").evaluate(track) != ground


def test_every_n_in_one_row_says_faster_only_where_it_holds(page: Page, site: Site):
    took = {n: 0.1 + 0.1 * n for n in range(K + 1)} | {6: 0.8}  # N = 6 is as slow as the drafter alone

    def time(route: Route) -> None:
        if route.request.post_data_json.get("stream"):
            route.continue_()
            return
        body = route.fetch().json()
        body["tandem"]["seconds"]["total"] = took[body["tandem"]["draft_steps"]]
        route.fulfill(json=body)

    page.route(GENERATIONS, time)
    page.locator("#seed").fill("3")
    page.locator("#compare").select_option("all")
    page.locator("#rounds").fill("3")
    before = len(site.engine.asked)
    bodies = generate(page)
    assert [body["draft_steps"] for body in bodies] == list(range(K + 1))
    assert {body["seed"] for body in bodies} == {3}
    mine = [one for one in site.engine.asked[before:] if one.seed == 3]  # not the tiles' samples
    timed = [one.draft_steps for one in mine if not one.preview_scales]
    rounds = [*range(K + 1)], [*range(K, -1, -1)], [*range(K + 1)]
    assert timed == [n for one in rounds for n in one]  # in turn, every second round backwards
    row = page.locator(".run").first
    captions = row.locator("figcaption").all_inner_texts()
    assert len(captions) == K + 1
    assert "refiner alone" in captions[0]
    assert re.search(r"\d\.\d × faster", captions[0])
    assert "× faster" in captions[DRAFT_STEPS]
    assert "no sure difference" in captions[6]
    assert "faster" not in captions[K]
    expect(row.locator(".method")).to_contain_text("Medians of 3 rounds in turn")
    tops = {round(frame.bounding_box()["y"]) for frame in row.locator(".frame").all()}
    assert len(tops) == 1
    box = row.locator(".frame").first.bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + 20)  # all go along
    scales = row.locator(".picture").evaluate_all("(all) => all.map((one) => one.dataset.scale)")
    assert scales == ["1"] * (K + 1)


def test_two_settings_are_compared_under_a_slider(page: Page):
    page.locator("#compare").select_option(str(K))
    page.locator("#rounds").fill("1")
    left, right = generate(page)
    assert (left.pop("draft_steps"), right.pop("draft_steps")) == (DRAFT_STEPS, K)
    assert left == right  # the seed above all
    expect(page.locator(".method").first).to_contain_text("Too few to call one faster.")
    slider = page.get_by_role("slider", name="Reveal: N = 5 on the left, drafter alone on the right")
    slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "51 % N = 5, 49 % drafter alone")
    page.locator("#draft-steps").fill(str(K))
    page.locator("#generate").click()
    expect(page.locator("#compare-error")).to_contain_text("would be the same")


def test_what_is_faster_is_said_with_care(page: Page):
    say = "async ([times, base]) => (await import('/page/timing.js')).verdict(times, base)"
    cases = {
        "1.4 × faster": ([0.5, 0.52, 0.51], [0.71, 0.73, 0.75]),
        "1.3 × slower": ([0.71, 0.69, 0.75], [0.5, 0.52, 0.51]),
        "no sure difference": ([0.5, 0.52, 0.80], [0.71, 0.73, 0.75]),  # one round says otherwise
        "": ([0.1, 0.1], [0.9, 0.9]),  # too few
    }
    for said, (times, base) in cases.items():
        assert page.evaluate(say, [times, base]) == said


def test_it_works_by_keyboard_alone(page: Page):
    keys, focus = page.keyboard, page.locator(":focus")
    page.locator("#class-input").focus()
    keys.type("fl")
    expect(page.locator("#class-list [aria-selected=true]")).to_have_text("flag")
    keys.press("Enter")
    expect(focus).to_have_value("flag")
    keys.press("Tab")
    expect(focus).to_have_text("flag")  # one stop for all tiles, at the chosen one
    keys.press("ArrowRight")
    expect(focus).to_have_text("mammal")
    keys.press("Enter")
    expect(page.locator(DONE)).to_have_count(2)
    expect(page.locator(".run h3").first).to_have_text("mammal")
    stops = []
    for _ in range(40):
        keys.press("Tab")
        if focus.count() == 0:
            break
        stops.append(focus.get_attribute("id") or focus.get_attribute("class"))
    assert {"draft-steps", "info", "seed", "dice", "count", "compare", "open", "scrub", "save", "generate"} <= set(
        stops
    )


def test_names_of_buttons_are_their_own(page: Page):
    generate(page)
    names = page.locator("button:visible, .actions summary:visible").evaluate_all(
        "(all) => all.map((one) => one.ariaLabel ?? one.textContent.trim())"
    )
    assert len(names) == len(set(names))
    assert "" not in names


def test_models_that_need_no_guidance_are_marked(browser):
    tuned = {"drafter": FineTuned(distilled_cfg=3.0), "refiner": FineTuned(guidance_free=True)}
    with page_server(fine_tuned=tuned) as site:
        page = browser.new_page()
        page.goto(f"{site.url}/")
        expect(page.locator("#guidance-free")).to_have_text("needs none")
        unfold(page)
        expect(page.locator("#guidance-note")).to_contain_text("The drafter has learned guidance of 3")
        page.context.close()


def test_the_page_is_light(visit: Callable[..., Page], site: Site, watch: Watch, measured: Callable[[str], None]):
    watch.allowed.append("status of 404")  # a browser asks for an icon beside JSON
    answers: list[Any] = []
    page = visit("v1/models")
    page.on("response", lambda answer: answers.append(answer))
    page.goto(f"{site.url}/")
    expect(page.locator(DONE)).to_have_count(1)
    first_ms = page.evaluate("""() => performance.getEntriesByType("resource")
      .find((one) => one.name.endsWith("/generations")).responseEnd""")
    own = [answer for answer in answers if "/page/" in answer.url or answer.url == f"{site.url}/"]
    sizes = {answer.url: len(answer.body()) for answer in own}
    total = sum(sizes.values())
    measured(
        f"page: {total / 1024:.0f} KiB in {len(sizes)} files, first image {first_ms:.0f} ms after the start of loading"
    )
    assert total < 160 * 1024
