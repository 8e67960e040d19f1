"""The report in a real browser: what a person does with it, and what it never does."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from study_cases import NASTY, OBJECTIVES, synthetic

from search.analysis.front import front
from search.analysis.report import render_report
from search.analysis.standing import standings
from search.records import ObjectiveInfo, StudyRecord

STUDY = synthetic(200)


@cache
def page_of_study() -> str:
    """The report of `STUDY`, written once."""
    return render_report(STUDY)


POINT = """([plot, kind]) => {
    const place = document.getElementById(plot), layout = place._fullLayout;
    const trace = place.data.find((each) => each.meta === kind), box = place.getBoundingClientRect();
    place.scrollIntoView({ block: "center" });
    const now = place.getBoundingClientRect();
    return [now.left + layout.xaxis._offset + layout.xaxis.d2p(trace.x[0]),
            now.top + layout.yaxis._offset + layout.yaxis.d2p(trace.y[0]), trace.customdata[0]];
}"""
"""Where the first point of a kind stands on the screen, and its trial."""

SELECTED = """(plot) => document.getElementById(plot).data.filter((trace) => trace.customdata).flatMap((trace) =>
    trace.customdata.filter((_, point) => !trace.selectedpoints || trace.selectedpoints.includes(point)))"""
"""The trials that a scatter plot shows at full strength."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def open_report(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open a study's report; at the end, no error and no request but for the file itself may have happened."""
    contexts, messages, requests = [], [], []

    def opener(study: StudyRecord, *, width: int = 1300, **options: Any) -> Any:
        file = tmp_path / f"report-{len(contexts)}.html"
        text = page_of_study() if study is STUDY else render_report(study)
        file.write_text(text, encoding="utf-8", newline="\n")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.on("popup", lambda popup: requests.append(popup.url))
        page.goto(file.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'", timeout=60_000)
        return page

    yield opener
    for context in contexts:
        context.close()
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def keep_picture(page: Any, name: str) -> None:
    """Save the whole page where `PARETOBERT_SCREENSHOTS` says, if it does."""
    if folder := os.environ.get("PARETOBERT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / name, full_page=True)


def test_hover_gives_the_plan_and_a_click_the_layers(open_report: Callable[..., Any]) -> None:
    page = open_report(STUDY)
    keep_picture(page, "report-light.png")
    x, y, trial = page.evaluate(POINT, ["scatter-1", "front"])
    page.mouse.move(x, y)
    page.wait_for_function("document.querySelector('#scatter-1 .hoverlayer').textContent.includes('heads')")
    assert f"trial {trial} " in page.locator("#scatter-1 .hoverlayer").text_content()
    page.mouse.click(x, y)
    panel = page.locator("#panel")
    assert panel.locator("h2").text_content() == f"Trial {trial}"
    record = next(each for each in STUDY.records if each.trial == trial)
    shown = panel.locator(".share span").all_text_contents()
    plan = [f"{h} of 12" for h in record.plan.heads], [f"{n} of 1536" for n in record.plan.neurons]
    assert shown == [text for pair in zip(*plan, strict=True) for text in pair]
    assert f"on the front with probability {standings(STUDY)[trial].probability:.2f}" in panel.text_content()
    assert page.evaluate("document.getElementById('scatter-3').data.at(-1).x.length") == 1  # ringed in every plot
    page.keyboard.press("Escape")
    assert not panel.is_visible()


def test_brushing_an_axis_narrows_plots_and_table_and_can_be_undone(open_report: Callable[..., Any]) -> None:
    page = open_report(STUDY)
    everything = page.evaluate(SELECTED, "scatter-0")
    page.locator("#only-front").uncheck()
    box = page.locator("rect.zone").first
    box.scroll_into_view_if_needed()
    frame = box.bounding_box()
    middle = frame["x"] + frame["width"] / 2
    page.mouse.move(middle, frame["y"])
    page.mouse.down()
    page.mouse.move(middle, frame["y"] + 30)
    page.mouse.move(middle, frame["y"] + frame["height"] / 4)
    page.mouse.up()
    page.wait_for_function("document.getElementById('brushed').textContent.includes('trials pass')")
    kept = page.evaluate(SELECTED, "scatter-0")
    candidates = [r for r in STUDY.complete if r.feasible]
    values = [r.values["accuracy"] for r in candidates]
    # The brush reaches over a quarter of the zone, which is 6 pixels longer than the axis at either end.
    high, low = max(values), min(values)
    down_to = high - (frame["height"] / 4 - 6) / (frame["height"] - 12) * (high - low)
    expected = {r.trial for r in candidates if r.values["accuracy"] >= down_to}
    assert set(kept) - {r.trial for r in STUDY.complete if not r.feasible} == expected
    assert 0 < len(expected) < len(candidates)
    assert page.locator("#brushed").text_content() == f"{len(expected)} of {len(candidates)} trials pass."
    assert page.locator("#table tbody tr").count() == min(len(expected), 50)
    page.locator("#clear").click()
    assert page.evaluate(SELECTED, "scatter-0") == everything
    assert not page.locator("#clear").is_visible()


def test_the_table_sorts_both_ways_and_lists_more(open_report: Callable[..., Any]) -> None:
    page = open_report(STUDY)
    page.get_by_role("button", name="latency_ms", exact=True).click()
    place = 1 + page.locator("#table th").all_text_contents().index("latency_ms")
    cells = page.locator(f"#table tbody tr td:nth-child({place})")
    numbers = [float(cell) for cell in cells.all_text_contents()]
    assert numbers == sorted(numbers)
    assert len(numbers) == len({record.trial for record in front(STUDY)} | {0})
    assert page.locator("th[aria-sort=ascending]").text_content() == "latency_ms"
    page.get_by_role("button", name="latency_ms", exact=True).click()
    numbers = [float(cell) for cell in cells.all_text_contents()]
    assert numbers == sorted(numbers, reverse=True)
    page.locator("#only-front").uncheck()
    assert page.locator("#table tbody tr").count() == 50
    page.locator("#more").click()
    assert page.locator("#table tbody tr").count() == len(STUDY.complete)
    page.locator("#table tbody tr").nth(3).click()
    assert page.locator("#panel").is_visible()


def test_kinds_can_be_hidden_and_shown(open_report: Callable[..., Any]) -> None:
    page = open_report(STUDY)
    seen = "document.getElementById('scatter-0').data.find((trace) => trace.meta === 'infeasible').visible"
    assert page.evaluate(seen) is False
    page.get_by_role("button", name="infeasible").click()
    assert page.evaluate(seen) is True


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_switch(scheme: str, open_report: Callable[..., Any]) -> None:
    page = open_report(STUDY, color_scheme=scheme)
    if scheme == "dark":
        keep_picture(page, "report-dark.png")
    look = "[getComputedStyle(document.body).backgroundColor, document.getElementById('scatter-0').layout.font.color]"
    dark, light = ["rgb(16, 19, 24)", "rgb(231, 234, 239)"], ["rgb(246, 247, 249)", "rgb(27, 32, 40)"]
    first, second = (dark, light) if scheme == "dark" else (light, dark)
    assert page.evaluate(look) == first
    page.locator("#theme").click()
    assert page.evaluate(look) == second


def test_a_phone_scrolls_in_one_direction_only(open_report: Callable[..., Any]) -> None:
    long = replace(STUDY, name="x" * 200)
    for study in (STUDY, long):
        page = open_report(study, width=375, has_touch=True, is_mobile=True)
        keep_picture(page, "report-phone.png")
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        plots = page.evaluate("[...document.querySelectorAll('.plot')].map((each) => each.getBoundingClientRect().x)")
        assert len(set(plots)) == 1  # one column


def test_no_button_offers_to_send_the_data_away(open_report: Callable[..., Any]) -> None:
    page = open_report(STUDY)
    titles = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map((each) => each.dataset.title)")
    assert "Download plot as a PNG" in titles
    assert not [title for title in titles if "hare" in title or "loud" in title or "tudio" in title]


def test_names_that_would_break_a_page_are_only_text(open_report: Callable[..., Any]) -> None:
    objectives = (OBJECTIVES[0], ObjectiveInfo(NASTY, "", "minimize"), ObjectiveInfo("y" * 200, "", "minimize"))
    study = synthetic(60, objectives=objectives, name=NASTY)
    records = tuple(replace(r, ratios={NASTY + n: v for n, v in r.ratios.items()}) for r in study.records)
    page = open_report(replace(study, records=records))
    assert page.locator("h1").text_content() == NASTY
    x, y, _trial = page.evaluate(POINT, ["scatter-0", "front"])
    page.mouse.move(x, y)
    page.wait_for_function("document.querySelector('#scatter-0 .hoverlayer').textContent.includes('heads')")
    assert NASTY[:39] + "…" in page.locator("#scatter-0 .hoverlayer").text_content()
    page.mouse.click(x, y)
    assert page.evaluate("window.broken") is None
    assert page.locator("img").count() == 0
    assert page.evaluate("document.scripts.length") == 3


@pytest.mark.parametrize("trials", [0, 1, 2])
def test_a_study_that_has_hardly_begun_opens_too(trials: int, open_report: Callable[..., Any]) -> None:
    page = open_report(synthetic(trials))
    assert page.locator("#table tbody tr").count() == trials
