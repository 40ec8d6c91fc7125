"""`overnight compare`: trials and studies side by side."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import CliRunner, Result

from overnight.cli import output
from overnight.cli.main import cli
from overnight.config.paths import StudyLocation
from overnight.report.compare import as_json, compared_item, rows, sparkline
from overnight.study.snapshot import StudyView
from overnight.tracking import local_server, store


def compared(home: Path, *refs: str) -> Result:
    return CliRunner().invoke(cli, ["compare", *refs, f"home={home}"])


def test_results_costs_and_differing_parameters_are_compared(finished_home: Path, finished: StudyView) -> None:
    done = compared(finished_home, "digits-mlp/0", "digits-mlp/trial-0001", "digits-mlp", "--json")
    assert done.exit_code == 0, done.output
    one, other, whole = json.loads(done.output)
    assert (one["name"], other["name"], whole["name"]) == ("digits-mlp/0", "digits-mlp/1", "digits-mlp")
    assert one["objective"] == finished.records[0].objective
    assert (one["seeds"], one["half_width"]) == (1, None)
    assert one["curve"] == [e.metrics["val/accuracy"] for e in finished.records[0].history]
    assert other["params"]["optimizer.lr"] == finished.records[1].params["optimizer.lr"]
    assert "data.batch_size" not in one["params"], "equal in all"
    assert whole["trials"] == 6
    assert whole["seconds"] > one["seconds"] > 0
    assert whole["objective"] == finished.best.objective
    text = compared(finished_home, "digits-mlp/0", "digits-mlp/1").output
    assert "val/accuracy" in text
    assert "batch_size" not in text


def test_the_url_of_mlflows_comparison_is_printed_while_a_server_shows_this_home(
    finished_home: Path, finished: StudyView, tmp_path: Path
) -> None:
    location, copied_from = finished.plan.settings.location, StudyLocation(str(tmp_path))
    with local_server.announced(copied_from, 5170):
        shutil.copy(copied_from.paths.ui_server, location.paths.ui_server)
        assert "http" not in compared(finished_home, "digits-mlp/0", "digits-mlp/1").output
    with local_server.announced(location, 5171):
        text = unquote(compared(finished_home, "digits-mlp/0", "digits-mlp/1").output)
    assert "in MLflow: http://127.0.0.1:5171/#/compare-runs" in text
    assert "http" not in compared(finished_home, "digits-mlp/0", "digits-mlp/1").output
    client = store.open_client(finished.plan.settings.location)
    runs = {
        r.data.tags["overnight.trial"]: r.info.run_id
        for r in client.search_runs([finished.experiment_id])
        if "overnight.trial" in r.data.tags
    }
    assert f'#/compare-runs?runs=["{runs["0"]}","{runs["1"]}"]&experiments=["{finished.experiment_id}"]' in text


def test_every_mistake_in_the_references_is_reported(finished_home: Path) -> None:
    done = compared(finished_home, "missing", "digits-mlp/99", "digits-mlp/first")
    assert done.exit_code == 2
    lines = done.output.splitlines()
    assert [line.split(":")[0] for line in lines] == ["missing", "digits-mlp/99", "digits-mlp/first"]
    assert "it has digits-mlp" in lines[0]
    assert "0 to 5" in lines[1]


def test_a_sparkline_spans_the_range_of_its_curve() -> None:
    assert sparkline([0.0, 0.4, 1.0]) == "▁▄█"
    assert sparkline([0.3] * 4) == "▁▁▁▁"
    assert len(sparkline(list(range(500)))) == 16
    assert sparkline([]) == ""
    assert sparkline([math.nan, 0.0, math.inf, 0.4, 1.0, math.nan]) == "▁▄█"


def test_a_trial_that_diverged_is_compared_without_the_values_that_are_not_finite(
    finished: StudyView, capsys: pytest.CaptureFixture[str]
) -> None:
    record = finished.records[0]
    last = replace(record.history[-1], metrics={"val/accuracy": math.nan})
    diverged = replace(record, state="failed", history=(*record.history[:-1], last))
    item = compared_item(replace(finished, records=(diverged, *finished.records[1:])), 0)
    item = replace(item, tests={"test/accuracy": math.nan})
    assert ("state", "failed") in rows([item])
    output.print_json(as_json([item]))
    (printed,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed["curve"] == [e.metrics["val/accuracy"] for e in record.history[:-1]]
    assert printed["test"] == {"test/accuracy": None}
