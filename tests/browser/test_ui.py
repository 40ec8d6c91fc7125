"""What people do in MLflow's UI after a study, in a real browser."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from chrome import PATIENCE_MS, Tab, shoot

from overnight.study import StudyView


@pytest.fixture(scope="module")
def address(finished_home: Path) -> Iterator[str]:
    """The page that `overnight ui` names, served until the tests are through."""
    command = [sys.executable, "-m", "overnight", "ui", f"home={finished_home}", "--no-browser", "--port", "5077"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        page = process.stdout.readline().strip()
        assert page.startswith("http://127.0.0.1:"), page
        family = psutil.Process(process.pid).children(recursive=True)
        yield page
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive, "overnight ui leaves none of MLflow's processes behind"


@pytest.fixture
def page(address: str, tab: Tab) -> Iterator[Any]:
    with tab(address.partition("/#")[0]) as opened:
        yield opened


def row(page: Any, name: str) -> Any:
    """A run's row: the grid draws one in several containers, and the pinned one has the checkbox and the name."""
    return page.locator(".ag-pinned-left-cols-container [role=row]").filter(
        has=page.get_by_role("link", name=name, exact=True)
    )


def test_the_study_is_found_its_trials_lie_below_it_and_two_are_compared(
    page: Any, address: str, finished: StudyView
) -> None:
    from playwright.sync_api import expect

    page.goto(address, wait_until="domcontentloaded")
    parent = row(page, finished.name)
    expect(parent).to_be_visible(timeout=PATIENCE_MS)
    assert "workflowType=machine_learning" in page.url, "not MLflow's view for language models"
    parent.locator('[col-id="attributes.`Run Name`"] button').first.click()
    for record in finished.records:
        expect(row(page, f"trial-{record.number:04d}")).to_be_visible()
    shoot(page, "nested")
    chosen = ("trial-0001", "trial-0002")
    for name in chosen:
        box = row(page, name).locator("input.ag-checkbox-input")
        box.check()
        expect(box).to_be_checked()
    page.get_by_test_id("runs-compare-button").click()
    page.wait_for_url("**/compare-runs?**")
    names = page.get_by_role("row", name="Run Name:")
    for name in chosen:
        expect(names.get_by_role("cell", name=name, exact=True)).to_be_visible(timeout=PATIENCE_MS)
    shoot(page, "compare")


def test_the_parents_note_leads_to_its_trials_best_first(page: Any, address: str, finished: StudyView) -> None:
    from playwright.sync_api import expect

    host = address.partition("/#")[0]
    page.goto(
        f"{host}/#/experiments/{finished.experiment_id}/runs/{finished.parent_run_id}", wait_until="domcontentloaded"
    )
    link = page.get_by_role("link", name="its trials, best first")
    expect(link).to_be_visible(timeout=PATIENCE_MS)
    target = link.get_attribute("href")
    page.goto("about:blank")  # a change of the part after # alone does not load the page again
    page.goto(f"{host}/{target}", wait_until="domcontentloaded")
    expect(row(page, "trial-0000")).to_be_visible(timeout=PATIENCE_MS)
    names = page.locator(".ag-pinned-left-cols-container [role=row] a").all_inner_texts()
    shown = [n for n in names if re.fullmatch(r"trial-\d{4}", n)]
    values = {f"trial-{r.number:04d}": r.objective for r in finished.records}
    assert sorted(shown) == sorted(values)
    tops = {n: row(page, n).bounding_box()["y"] for n in shown}
    in_order = sorted(shown, key=tops.__getitem__)
    assert [values[n] for n in in_order] == sorted(values.values(), reverse=True)  # type: ignore[type-var]
    assert finished.name not in names
    shoot(page, "trials")


def test_the_studys_page_shows_what_its_winner_looks_like(page: Any, address: str, finished: StudyView) -> None:
    from playwright.sync_api import expect

    host = address.partition("/#")[0]
    run = f"{host}/#/experiments/{finished.experiment_id}/runs/{finished.parent_run_id}/artifacts"
    page.goto(run, wait_until="domcontentloaded")
    page.get_by_text("pictures", exact=True).click(timeout=PATIENCE_MS)
    page.get_by_text("weights.png", exact=True).click()
    picture = page.locator(".image-outer-container img, img[src^='blob:']").first
    expect(picture).to_be_visible(timeout=PATIENCE_MS)
    assert picture.evaluate("image => image.naturalWidth") > 300
    shoot(page, "pictures")


def test_the_server_answers_on_this_machine_alone(address: str) -> None:
    port = int(re.search(r":(\d+)/", address)[1])  # type: ignore[index]
    served = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert served == {"127.0.0.1"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
