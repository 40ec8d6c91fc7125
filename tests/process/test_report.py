"""The report of studies of every kind, also without a result."""

from __future__ import annotations

import dataclasses
import io
import random
import re
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from overnight.cli import starter
from overnight.cli.main import cli
from overnight.config.settings import WarmStart
from overnight.report import advice, page, report
from overnight.report.caveats import find_caveats
from overnight.search.build_plan import build_plan
from overnight.search.plan import random_point
from overnight.search.record import TrialRecord, ranked
from overnight.study.snapshot import StudyView
from overnight.tracking import store, summary
from support.planted_study import BEST_LR, DEGENERATE, SPACE, planned, record, search_records, view_of


def text_of(view: StudyView, width: int = 100) -> str:
    out = io.StringIO()
    report.print_report(report.build_report(view), Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(records, id=name, marks=[pytest.mark.long] * (name not in ("an empty study", "one trial")))
        for name, records in DEGENERATE.items()
    ],
)
def test_a_study_without_a_result_has_a_report(records: list[TrialRecord]) -> None:
    view = view_of(records)
    text, html = text_of(view), page.page(report.build_report(view))
    complete = [r for r in records if r.state == "complete"]
    assert ("there is no result" in text) == (not complete)
    assert "Caveats" in text
    assert "Every trial has the same value" in text or len(complete) < 2
    assert ("All 3 trials failed" in text) == bool(records and all(r.state == "failed" for r in records))
    assert "()" not in text
    assert html.count("<h2>") >= 2


@pytest.mark.long
def test_an_optimum_outside_the_range_is_reported_and_found_by_the_next_command() -> None:
    study, records = planned(), search_records(planned())
    best = ranked(records, study.settings)[0]
    (line,) = [d for d in report.build_report(view_of(records)).caveats if d.startswith("optimizer.lr")]
    assert "upper end of its range, 0.01" in line
    command = shlex.split(advice.next_command(study, records, best))
    assert command[:2] == ["overnight", "tune"]
    following = build_plan(command[2:])
    assert following.name == "digits-mlp-2"
    assert following.settings.study.trials == 40
    lr = following.space.names()["optimizer.lr"]
    assert lr._contains(BEST_LR)  # type: ignore[attr-defined]
    assert following.settings.study.warm_start_from == WarmStart(study="digits-mlp"), (
        "the next search starts from the winner"
    )
    found = ranked(search_records(following, 10, seed=1), study.settings)[0]
    assert (found.objective or 0) > (best.objective or 0), "a quarter of the trials finds a better value there"


def test_a_winner_without_the_keys_that_were_searched_is_followed_by_the_same_search() -> None:
    """The baseline of a study that adds keys, which it has no values for."""
    sweeps = ["+model.kind=slow,fast", "+model.rate=tag(log,interval(0.1,0.8))"]
    plan = build_plan(["search=none", *sweeps, "model._target_=user_networks.Plain"])
    command = shlex.split(advice.next_command(plan, [], record(0, {}, 0.9)))
    assert {p.key: p.describe() for p in build_plan(command[2:]).space.parameters} == {
        p.key: p.describe() for p in plan.space.parameters
    }


def test_the_next_command_does_not_repeat_a_deadline() -> None:
    study = planned(
        "study.until=2999-01-01T07:00", "study.hours=8", "terminator=regret_bound", "study.patience=9", "scheduler=none"
    )
    records = search_records(study)
    best = ranked(records, study.settings)[0]
    command = shlex.split(advice.next_command(study, records, best))
    assert not any("until" in word for word in command)
    following = build_plan(command[2:]).settings
    assert (following.study.hours, following.study.patience) == (8, 9)
    assert following.terminator == study.settings.terminator
    trained = advice.train_command(study, best)
    assert not any(word in trained for word in ("hours", "until", "patience", "terminator"))


@pytest.mark.parametrize(
    "scheduler",
    [
        ("scheduler=halving", "scheduler.min_epochs=2"),
        ("scheduler=hyperband", "scheduler.reduction_factor=4"),
        ("scheduler=median", "scheduler.warmup_epochs=3"),
        ("scheduler=none",),
    ],
)
def test_the_next_command_names_the_scheduler_whose_keys_it_sets(scheduler: tuple[str, ...]) -> None:
    study = planned(*scheduler, "study.budget=50")
    records = search_records(study, 10)
    best = ranked(records, study.settings)[0]
    following = build_plan(shlex.split(advice.next_command(study, records, best))[2:]).settings
    assert (following.scheduler, following.study.budget) == (study.settings.scheduler, 50)
    trained = advice.train_command(study, best)
    assert not any(word in trained for word in ("scheduler", "budget"))


@pytest.mark.long
def test_the_terminal_and_the_page_show_what_a_deadline_cut() -> None:
    notes = ["study.until=07:00 ended the search: 40 of 500 trials are done", "study.until=07:00 cut the test set"]
    records = search_records(planned())
    view = dataclasses.replace(view_of(records, confirmed=True), launch={"ended_by": "deadline", "notes": notes})
    some = tuple(
        r for r in view.confirmation.records if r.confirms.trial in (0, ranked(records, planned().settings)[0].number)
    )
    view = dataclasses.replace(view, confirmation=dataclasses.replace(view.confirmation, records=some))
    text, html = text_of(view), page.page(report.build_report(view))
    for words in ("What was cut short", *notes, "not trained"):
        assert words in text
        assert words in html


@pytest.mark.long
def test_the_train_command_composes_to_the_configuration_of_the_winner() -> None:
    for lines in (SPACE, ("study.trials=9", "optimizer=sgd", "data.batch_size=64", "trainer.max_epochs=7")):
        study = build_plan(lines)
        rng = random.Random(3)
        values = random_point(study, rng)
        trial = record(0, {}, 0.9, config=study.config(values))
        trial = dataclasses.replace(trial, params={k: v for k, v in values.items() if not isinstance(v, list)})
        command = shlex.split(advice.train_command(study, trial))
        assert build_plan(command[2:], searching=False).config({}) == trial.config


def test_the_commands_for_a_network_of_a_user_name_its_config_folder(tmp_path: Path) -> None:
    starter.write(tmp_path)
    study = build_plan(["model=mine", "data=mine"], tmp_path / "conf")
    values = random_point(study, random.Random(0))
    trial = dataclasses.replace(
        record(0, {}, 0.9), values=values, params=dict(values, **{"model.hidden_sizes.length": 0})
    )
    for line, searching in (
        (advice.train_command(study, trial), False),
        (advice.next_command(study, [trial], trial), True),
    ):
        words = shlex.split(line)
        assert words[2:4] == ["--config-dir", str(tmp_path / "conf")]
        made = build_plan(words[4:], words[3], searching=searching)
        assert made.choices["model"] == "mine"
        assert searching or made.config({}) == study.config(values)
    sys.path.remove(str(tmp_path))


def test_the_page_loads_nothing_and_every_chart_has_a_caption() -> None:
    view = view_of(search_records(planned()), confirmed=True)
    html = page.page(report.build_report(view))
    links = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"|url\(([^)]*)\)|@import', html)
    assert all((a or b).strip("'\"").startswith(("#", "data:")) for a, b in links)
    assert "<script" not in html
    titles = re.findall(r"<figure><h3>([^<]*)</h3>", html)
    assert titles == [
        "Learning curves on new seeds", "The search", "Parameter importance", "Slices",
        "The two most important parameters", "All parameters at once",
    ]  # fmt: skip
    words = re.findall(r'<div role="img" aria-label="([^"]*)"><svg', html)
    assert len(words) == len(titles)
    assert all(len(w) > 40 for w in words)
    assert "prefers-color-scheme: dark" in html
    assert "#010101" not in html, "every placeholder colour is replaced"


@pytest.mark.long
def test_the_cost_lists_time_memory_saved_time_and_reasons_of_failure() -> None:
    records = [
        dataclasses.replace(r, peak_bytes=r.number << 28) for r in search_records(planned("scheduler=median"), 5)
    ]
    records += [record(5, records[0].params, 0.5, "pruned"), record(6, records[0].params, None, "failed")]
    lines = report.cost_lines(report.build_report(view_of(records, "scheduler=median")))
    assert lines == [
        "7 trials (5 complete, 1 pruned, 1 failed): 15 s of training",
        "10 s from start to end, without pauses",  # the first epoch begins half a second before its trial starts
        "largest memory of a trial: 1.00 GiB (trial-0004)",
        "1 trial was pruned, which saved about 8 s of training",
        "1 failed: diverged",
    ]


@pytest.mark.long
def test_a_tie_names_the_faster_one_and_a_rare_choice_is_named() -> None:
    records = [
        record(i, {"optimizer.lr": 0.001 * (i + 1), "model.activation": "relu"}, 0.9 - i / 100) for i in range(30)
    ]
    view = view_of(records, confirmed=True)
    caveats = report.build_report(view).caveats
    assert any("model.activation: rarely tried: tanh (0), gelu (0)" in d for d in caveats)
    equal = [dataclasses.replace(r, objective=0.9 + 0.01 * (r.number % 3)) for r in view.confirmation.records]
    tied = report.build_report(
        dataclasses.replace(view, confirmation=dataclasses.replace(view.confirmation, records=tuple(equal)))
    )
    assert any("are not distinguishable" in d and "trains faster" in d for d in find_caveats(tied.finding, records))


def test_the_report_command_prints_a_report_writes_its_page_and_publishes_it_in_mlflow(finished_home: Path) -> None:
    done = CliRunner().invoke(cli, ["report", f"home={finished_home}"])
    assert done.exit_code == 0, done.output
    for words in ("is the best so far", "Command to train it again", "Cost", "Next search", "6 trials"):
        assert words in done.output
    path = finished_home / "reports" / "digits-mlp.html"
    assert path.read_text().startswith("<!doctype html>")
    client = store.open_client(build_plan([f"home={finished_home}"]).settings.location)
    (experiment,) = [e for e in client.search_experiments() if e.name == "digits-mlp"]
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`overnight.role` = 'study'")
    assert "digits-mlp.html" in {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert "is the best so far" in parent.data.tags["overnight.report"]


@pytest.mark.long
def test_a_report_that_mlflow_does_not_show_exits_with_1(finished_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(summary, "open_client", fail)
    done = CliRunner().invoke(cli, ["report", f"home={finished_home}"])
    assert done.exit_code == 1
    assert "MLflow does not show the report (OSError: no network); the same command tries again" in done.output


def test_a_report_without_a_study_is_a_mistake(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", f"home={tmp_path}"])
    assert done.exit_code == 2
    assert "there is no study in" in done.output
