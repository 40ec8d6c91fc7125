"""The page of the report in a real browser, at desktop and phone widths, of studies with and without a result."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from overnight.protocol import Progress
from overnight.report import page as pages
from overnight.report import report
from overnight.study.snapshot import StudyView
from support.chrome import Tab, shoot
from support.planted_study import DEGENERATE, planned, record, search_records, view_of

PHONE = {"width": 390, "height": 844, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


def good() -> StudyView:
    found = [dataclasses.replace(r, peak_bytes=400 << 20) for r in search_records(planned())]
    params = found[0].params
    return view_of([*found, record(40, params, 0.4, "pruned"), record(41, params, None, "failed")], confirmed=True)


def paused() -> StudyView:
    """A search whose trials were paused after 1, 2, 4 and 8 of 16 epochs."""
    overrides = ("scheduler=halving", "trainer.max_epochs=16", "study.trials=null")
    found = []
    for r in search_records(planned(*overrides), 62):
        epochs = next(16 // 2**i for i in range(5) if r.number < 2 ** (i + 1) or i == 4)
        history = tuple(
            Progress(r.number, e, {"val/accuracy": (r.objective or 0) - 0.3 / (e + 1)}, 1e9 + e, 0.5)
            for e in range(epochs)
        )
        state = "complete" if epochs == 16 else "pruned"
        found.append(dataclasses.replace(r, history=history, state=state, until=epochs))
    return view_of(found, *overrides, confirmed=True)


MOST_DEGENERATE = ("an empty study", "all failed", "a constant objective")
STUDIES: dict[str, StudyView] = {
    "a good one": good(),
    "a paused one": paused(),
    **{name: view_of(DEGENERATE[name]) for name in MOST_DEGENERATE},
}


@functools.cache
def html_of(name: str) -> str:
    return pages.page(report.build_report(STUDIES[name]))


def written(name: str, folder: Path) -> str:
    """Write a study's page and return its address."""
    (folder / "report.html").write_text(html_of(name), encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_fits_a_phone_and_sends_no_requests(name: str, tab: Tab, tmp_path: Path) -> None:
    address = written(name, tmp_path)
    with tab(address, **PHONE) as page:
        page.goto(address)
        assert page.locator(".answer").is_visible()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= PHONE["width"], "the page does not scroll horizontally"
        cut = page.evaluate(
            "[...document.querySelectorAll('p, li, pre, figure, h1, h2, h3')]"
            ".filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))"
        )
        assert cut == [], "and nothing is cut off"
        smallest = page.evaluate(
            "Math.min(...[...document.querySelectorAll('main *')].filter(e => e.childNodes.length && "
            "!e.closest('svg')).map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        assert smallest >= 12
        shoot(page, f"report-phone-{name.replace(' ', '-')}", 0, full=True)


def test_every_picture_has_an_alternative_text(tab: Tab, tmp_path: Path) -> None:
    address = written("a good one", tmp_path)
    with tab(address) as page:
        page.goto(address)
        pictures = page.get_by_role("img")
        assert pictures.count() == page.locator("figure svg").count() == 6
        for i in range(pictures.count()):
            assert len(pictures.nth(i).get_attribute("aria-label") or "") > 40
        assert page.locator("svg text, svg g").count() > 0
        shoot(page, "report-desk", 0)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
        shoot(page, "report-desk-dark", 0)


def test_the_page_shows_the_cost(tab: Tab, tmp_path: Path) -> None:
    address = written("a good one", tmp_path)
    with tab(address) as page:
        page.goto(address)
        text: Any = page.locator("main").inner_text()
        for words in (
            "of training",
            "of a trial: 0.39 GiB",
            "training each to the end would take 820",
            "1 failed: diverged",
        ):
            assert words in text


def test_the_page_shows_what_each_rung_cost(tab: Tab, tmp_path: Path) -> None:
    address = written("a paused one", tmp_path)
    with tab(address) as page:
        page.goto(address)
        rows = page.locator("tr", has=page.locator("td[data-name='after epoch']")).all_inner_texts()
        assert [row.split()[:3] for row in rows] == [
            ["1", "62", "16"], ["2", "16", "8"], ["4", "8", "4"], ["8", "4", "2"], ["16", "2", "16"],
        ]  # fmt: skip
        page.emulate_media(color_scheme="dark")
        shoot(page, "report-rungs-dark", 0, full=True)


def test_a_study_without_a_result_says_so(tab: Tab, tmp_path: Path) -> None:
    address = written("an empty study", tmp_path)
    with tab(address) as page:
        page.goto(address)
        assert "there is no result" in page.locator(".answer").inner_text()
