"""What users do in MLflow's UI after a study, in a real browser."""

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

from overnight.config.compose import study_location
from overnight.report import publish
from overnight.study.snapshot import StudyView, view
from support.chrome import PATIENCE_MS, Tab, shoot


@pytest.fixture(scope="module")
def address(finished_home: Path) -> Iterator[str]:
    """Return the page that `overnight ui` prints; it is served during the tests."""
    command = [sys.executable, "-m", "overnight", "ui", f"home={finished_home}", "--no-browser", "--port", "5077"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        page = next(line.strip() for line in process.stdout if line.startswith("http"))  # after what it is doing
        assert page.startswith("http://127.0.0.1:"), page
        family = psutil.Process(process.pid).children(recursive=True)
        yield page
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive, "no process of MLflow is left"


@pytest.fixture(scope="module")
def sentence(finished_home: Path) -> str:
    """Return the sentence of the study's report, which is in its run."""
    found, _ = view(study_location([f"home={finished_home}"]))
    assert found is not None
    report, _, trouble = publish.publish_report(found, found.plan.settings.location)
    assert trouble is None
    return report.sentence


@pytest.fixture
def page(address: str, tab: Tab) -> Iterator[Any]:
    with tab(address.partition("/#")[0]) as opened:
        yield opened


def row(page: Any, name: str) -> Any:
    """Return a run's row in the pinned container of the grid, which has the checkbox and the name."""
    return page.locator(".ag-pinned-left-cols-container [role=row]").filter(
        has=page.get_by_role("link", name=name, exact=True)
    )


def names_in_order(page: Any) -> list[str]:
    """Return the names of the runs in the table, from top to bottom."""
    cells = page.locator(".ag-pinned-left-cols-container [role=row] a")
    tops = {link.inner_text(): link.bounding_box()["y"] for link in cells.all()}
    return sorted((n for n in tops if re.fullmatch(r"trial-\d{4}|digits-mlp", n)), key=tops.__getitem__)


def head(page: Any, column: str) -> Any:
    return page.locator(f".ag-header-cell[col-id='{column}']")


def values_of(finished: StudyView) -> dict[str, float]:
    return {f"trial-{r.number:04d}": r.objective for r in finished.records}  # type: ignore[misc]


def in_order(values: dict[str, float], names: list[str], best_first: bool = True) -> bool:
    shown = [values[n] for n in names if n in values]
    return shown == sorted(values.values(), reverse=best_first)


def default_table(address: str, finished: StudyView) -> str:
    """Return the address of the table without a saved view."""
    host = address.partition("/#")[0]
    return f"{host}/#/experiments/{finished.experiment_id}/runs?workflowType=machine_learning"


def test_the_study_is_found_among_the_experiments(page: Any, address: str, finished: StudyView) -> None:
    from playwright.sync_api import expect

    host = address.partition("/#")[0]
    page.goto(f"{host}/#/experiments?workflowType=machine_learning", wait_until="domcontentloaded")
    link = page.get_by_role("link", name=finished.name, exact=True)
    expect(link).to_be_visible(timeout=PATIENCE_MS)
    shoot(page, "mlflow-find")
    assert f"/experiments/{finished.experiment_id}" in (link.get_attribute("href") or "")


def test_the_page_of_the_ui_command_shows_the_trials_best_first_and_the_searched_parameters(
    page: Any, address: str, finished: StudyView
) -> None:
    from playwright.sync_api import expect

    page.goto(address, wait_until="domcontentloaded")
    expect(row(page, "trial-0000")).to_be_visible(timeout=PATIENCE_MS)
    assert "workflowType=machine_learning" in page.url, "not MLflow's view for language models"
    assert sorted(names_in_order(page)) == sorted(values_of(finished)), "the study's own run is not among its trials"
    assert in_order(values_of(finished), names_in_order(page))
    for column in ("metrics.`objective`", "params.`model.activation`", "params.`model.hidden_sizes.0`"):
        expect(head(page, column)).to_be_visible()
    shoot(page, "mlflow")
    head(page, "metrics.`objective`").click()
    page.wait_for_function("location.hash.includes('orderByAsc=true')")
    page.wait_for_timeout(1000)
    assert in_order(values_of(finished), names_in_order(page), best_first=False)
    shoot(page, "mlflow-sort")


def test_three_trials_are_compared(page: Any, address: str) -> None:
    from playwright.sync_api import expect

    page.goto(address, wait_until="domcontentloaded")
    expect(row(page, "trial-0000")).to_be_visible(timeout=PATIENCE_MS)
    chosen = names_in_order(page)[:3]
    for name in chosen:
        box = row(page, name).locator("input.ag-checkbox-input")
        box.check()
        expect(box).to_be_checked()
    page.get_by_test_id("runs-compare-button").click()
    page.wait_for_url("**/compare-runs?**")
    names = page.get_by_role("row", name="Run Name:")
    for name in chosen:
        expect(names.get_by_role("cell", name=name, exact=True)).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text("log10_optimizer.lr").first).to_be_attached()
    shoot(page, "mlflow-compare")


def test_the_report_opens_on_the_studys_page(page: Any, address: str, finished: StudyView, sentence: str) -> None:
    from playwright.sync_api import expect

    page.goto(address, wait_until="domcontentloaded")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="result and report").first.click(timeout=PATIENCE_MS)
    page = opened.value
    expect(page.get_by_text(sentence).first).to_be_visible(timeout=PATIENCE_MS)  # in the note, and in a tag
    shoot(page, "mlflow-study")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text(f"{finished.name}.html", exact=True).first.click(timeout=PATIENCE_MS)
    answer = page.frame_locator("iframe").locator(".answer")
    expect(answer).to_have_text(sentence, timeout=PATIENCE_MS)
    shoot(page, "mlflow-report")


def test_the_runs_of_trials_are_below_the_run_of_their_study(page: Any, address: str, finished: StudyView) -> None:
    from playwright.sync_api import expect

    page.goto(default_table(address, finished), wait_until="domcontentloaded")
    parent = row(page, finished.name)
    expect(parent).to_be_visible(timeout=PATIENCE_MS)
    parent.locator('[col-id="attributes.`Run Name`"] button').first.click()
    for record in finished.records:
        expect(row(page, f"trial-{record.number:04d}")).to_be_visible()


def test_the_note_of_the_study_links_to_its_trials_best_first(page: Any, address: str, finished: StudyView) -> None:
    from playwright.sync_api import expect

    host = address.partition("/#")[0]
    page.goto(
        f"{host}/#/experiments/{finished.experiment_id}/runs/{finished.parent_run_id}", wait_until="domcontentloaded"
    )
    link = page.get_by_role("link", name="trials, best first")
    expect(link).to_be_visible(timeout=PATIENCE_MS)
    for words in ("failed trials", "confirmation runs"):
        expect(page.get_by_role("link", name=words)).to_be_visible()
    target = link.get_attribute("href")
    page.goto("about:blank")  # a change of the part after # alone does not load the page again
    page.goto(f"{host}/{target}", wait_until="domcontentloaded")
    expect(row(page, "trial-0000")).to_be_visible(timeout=PATIENCE_MS)
    assert sorted(names_in_order(page)) == sorted(values_of(finished))
    assert in_order(values_of(finished), names_in_order(page))


def test_the_page_of_the_study_shows_the_plots_of_its_winner(page: Any, address: str, finished: StudyView) -> None:
    from playwright.sync_api import expect

    host = address.partition("/#")[0]
    run = f"{host}/#/experiments/{finished.experiment_id}/runs/{finished.parent_run_id}/artifacts"
    page.goto(run, wait_until="domcontentloaded")
    page.get_by_text("pictures", exact=True).click(timeout=PATIENCE_MS)
    page.get_by_text("weights.png", exact=True).click()
    picture = page.locator(".image-outer-container img, img[src^='blob:']").first
    expect(picture).to_be_visible(timeout=PATIENCE_MS)
    assert picture.evaluate("image => image.naturalWidth") > 300
    shoot(page, "mlflow-pictures")


def test_the_server_listens_on_this_machine_only(address: str) -> None:
    port = int(re.search(r":(\d+)/", address)[1])  # type: ignore[index]
    served = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert served == {"127.0.0.1"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
