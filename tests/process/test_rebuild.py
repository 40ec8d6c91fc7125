"""A study whose storage was deleted is noticed, and rebuilt from MLflow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from mlflow.entities import Metric

from overnight import api
from overnight.cli import manage
from overnight.cli.main import cli
from overnight.config.problems import ConfigError
from overnight.report.live import NullScreen
from overnight.search.build_plan import build_plan
from overnight.search.record import TrialRecord
from overnight.study.attributes import StoredAttributes, StudyAttributes
from overnight.study.create import restore
from overnight.study.lost import lost_studies
from overnight.study.open import open_study
from overnight.study.snapshot import StudyView, latest_studies, view
from overnight.study.storage.database import dispose
from overnight.study.storage.leased import open_for_work
from overnight.system.files import set_aside
from overnight.tracking import tags
from overnight.tracking.rebuild import _history, _without_tests, rebuild
from overnight.tracking.store import open_client
from support.commands import SMALL
from support.mlflow_store import assert_equal
from support.paths import copied_home


def command(*line: str) -> Result:
    return CliRunner().invoke(cli, line)


def view_of(home: Path, name: str | None = None) -> StudyView:
    found, _ = view(build_plan([f"home={home}"]).settings.location, name)
    assert found is not None
    return found


def lose_storage(home: Path) -> None:
    for file in home.glob("optuna.db*"):
        file.unlink()


def comparable(records: tuple[TrialRecord, ...]) -> list[TrialRecord]:
    """Leave out what MLflow does not have: durations of epochs, memory, and the exact end of a trial."""
    found = []
    for r in records:
        history = tuple(dataclasses.replace(e, seconds=0.0, at=round(e.at, 3)) for e in r.history)
        started_at = round(r.started_at, 3) if r.started_at else None
        found.append(dataclasses.replace(r, history=history, peak_bytes=None, ended_at=None, started_at=started_at))
    return found


@pytest.fixture
def without_storage(finished_home: Path, tmp_path: Path) -> Path:
    home = copied_home(finished_home, tmp_path / "home")
    lose_storage(home)
    return home


def test_every_command_reports_a_lost_study_and_none_replaces_it(without_storage: Path) -> None:
    home = f"home={without_storage}"
    line = "digits-mlp: the study storage lacks this study, of which MLflow has 6 trial(s); `overnight doctor "
    before = sorted(without_storage.rglob("*"))
    for words in (["status"], ["status", "digits-mlp"], ["list"], ["report"]):
        assert line in command(*words, home).output, words
    for words in (["list", "--json"], ["doctor", "typo", "digits-mlp"]):
        done = command(*words, home)
        assert (done.exit_code, done.stdout) == ((0, '{"studies": []}\n') if words[0] == "list" else (2, "")), words
        assert (line if words[0] == "list" else "study: must be one name, got typo, digits-mlp") in done.stderr
    with pytest.raises(ConfigError, match=r"^study.name: digits-mlp: the study storage lacks .*another study.name"):
        api.run(build_plan([home, *SMALL]), screen=NullScreen())
    checked = command("doctor", "--dry-run", home)
    assert checked.exit_code == 1
    assert checked.stdout == (
        "digits-mlp: study storage: lacks this study, of which MLflow has 6 trial(s) (not repaired: dry run)\n"
    )
    assert sorted(without_storage.rglob("*")) == before


def test_a_lost_study_is_rebuilt_with_its_configurations_curves_and_states(
    without_storage: Path, finished: StudyView
) -> None:
    repaired = command("doctor", f"home={without_storage}")
    assert (repaired.exit_code, repaired.stdout) == (
        0,
        "digits-mlp: study storage: lacks this study, of which MLflow has 6 trial(s) (6 trials rebuilt from MLflow)\n",
    )
    found = view_of(without_storage)
    assert comparable(found.records) == comparable(finished.records)
    assert (found.uid, found.plan.space, found.state) == (finished.uid, finished.plan.space, finished.state)
    assert (found.experiment_id, found.parent_run_id) == (finished.experiment_id, finished.parent_run_id)
    assert_equal(without_storage, found)
    assert command("doctor", f"home={without_storage}").output == "digits-mlp: no problems\n"
    weights = {r.number for r in found.records if found.plan.paths.checkpoint(r.number).exists()}
    assert weights == {r.number for r in finished.records if finished.plan.paths.checkpoint(r.number).exists()}


def test_the_first_run_of_a_trial_is_rebuilt_with_every_metric(without_storage: Path, finished: StudyView) -> None:
    location = build_plan([f"home={without_storage}"]).settings.location
    client = open_client(location)
    runs = [
        run
        for run in client.search_runs([finished.experiment_id], order_by=["attributes.start_time ASC"])
        if tags.TRIAL in run.data.tags
    ]
    second = client.create_run(finished.experiment_id, start_time=runs[0].info.end_time, tags=runs[0].data.tags)
    client.set_terminated(second.info.run_id, "FAILED")
    # A trial that was resumed after a pause logs after the end that the pause has written.
    client.log_metric(runs[0].info.run_id, "late", 0.5, timestamp=runs[0].info.end_time + 1000, step=1)
    (lost,) = lost_studies(location)
    rebuild(location, lost)
    record = view_of(without_storage).records[int(runs[0].data.tags[tags.TRIAL])]
    known = finished.records[record.number]
    assert (record.state, record.objective, record.params) == (known.state, known.objective, known.params)
    assert record.history[1].metrics == {**known.history[1].metrics, "late": 0.5}
    assert record.ended_at is not None
    assert record.ended_at >= max(e.at for e in record.history)


@pytest.mark.long
def test_a_kill_before_the_end_of_a_rebuild_leaves_no_study(tmp_path: Path) -> None:
    plan = build_plan([f"home={tmp_path}"])
    storage = open_for_work(plan.settings.location)

    def killed(_: StudyAttributes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(storage, plan, "uid", [], killed)
    assert latest_studies(storage) == {}
    restore(storage, plan, "uid", [], lambda study: study.set_exclusions({3: "why"}))
    assert StoredAttributes(latest_studies(storage)[plan.name].user_attrs).exclusions == {3: "why"}
    dispose(storage)


def test_scores_on_the_test_set_are_told_from_the_metrics_of_training() -> None:
    run = SimpleNamespace(info=SimpleNamespace(end_time=1000))
    early, late, latest = Metric("m", 0.1, 900, 0), Metric("m", 0.9, 1100, 0), Metric("m", 0.8, 1200, 0)
    resumed = Metric("m", 0.5, 1100, 7)
    curves, scores = _without_tests(
        run, {"test/acc": [early], "test/test/acc": [late], "test/f1": [latest, late], "once": [resumed]}
    )
    assert set(curves) == {"test/acc", "once"}
    assert scores == {"test/acc": 0.9, "test/f1": 0.8}, "the test set was asked twice"


@pytest.mark.parametrize(
    ("ends_s", "lasted_s"),
    [
        ([10, 20, 3630, 3640], [10, 10, 10, 10]),
        ([4, 4000], [4, 4]),
        ([10, 20, 49], [10, 10, 29]),
        ([1, 2, 11], [1, 1, 9]),
        ([900], [900]),
    ],
    ids=["pause at a rung", "pause after the first epoch", "slow epoch", "short epochs", "one epoch"],
)
def test_a_pause_of_a_rebuilt_trial_is_not_counted_as_training(ends_s: list[int], lasted_s: list[float]) -> None:
    curve = [Metric("m", 0.5, end * 1000, step) for step, end in enumerate(ends_s)]
    history = _history(0, {"m": curve}, 0.0, in_validations=False, folds=None)
    assert [e.seconds for e in history] == lasted_s


def test_a_study_without_a_plan_in_mlflow_is_still_lost(without_storage: Path) -> None:
    (plan,) = (without_storage / "artifacts").rglob("plan.json")
    plan.unlink()
    checked = command("doctor", f"home={without_storage}")
    assert checked.exit_code == 1
    assert "plan.json: must be readable on the study's run in MLflow to rebuild digits-mlp" in checked.output
    assert "(still wrong)" in checked.output


@pytest.mark.parametrize(
    ("group", "values"),
    [("storage", {"name": "postgres"}), ("storage", {"url": "sqlite:////x.db"}), ("tracking", {"uri": "sqlite:////m"})],
    ids=["PostgreSQL", "another file", "another home"],
)
def test_a_study_whose_trials_are_in_another_storage_is_not_a_lost_one(
    without_storage: Path, group: str, values: dict[str, str]
) -> None:
    (plan,) = (without_storage / "artifacts").rglob("plan.json")
    content = json.loads(plan.read_text())
    content["settings"][group] |= values
    plan.write_text(json.dumps(content))
    assert lost_studies(build_plan([f"home={without_storage}"]).settings.location) == []


def test_a_deleted_study_is_not_a_lost_one(finished_home: Path, tmp_path: Path) -> None:
    home = copied_home(finished_home, tmp_path / "home")
    assert command("delete", "digits-mlp", "--yes", f"home={home}").exit_code == 0
    assert command("list", f"home={home}").stdout == f"no studies in {home}; start one with `overnight tune`\n"


@pytest.mark.long
def test_confirmation_test_scores_marks_failures_and_pauses_are_rebuilt(
    tune: Callable[..., api.Result], home: Path
) -> None:
    lines = (
        "study.name=whole", "study.trials=4", "trainer.max_epochs=2", "scheduler=none", "slots=2",
        "study.confirm.seeds=2", "study.confirm.top=1", "optimizer.lr=0.01,1e30",
    )  # fmt: skip
    tune(*lines, "study.max_consecutive_failures=100")
    location = build_plan([f"home={home}"]).settings.location
    last = view_of(home, "whole").count("complete")
    assert last, "a trial is complete"
    best = view_of(home, "whole").best
    assert best is not None
    worst = next(r.number for r in view_of(home, "whole").records if r.state == "complete" and r.number != best.number)
    manage.mark(location, "whole", [worst], bad=True, why="wrong labels; all of them")
    before = view_of(home, "whole")
    lose_storage(home)
    assert command("doctor", f"home={home}").exit_code == 0
    found = view_of(home, "whole")
    assert comparable(found.records) == comparable(before.records)
    assert found.confirmation is not None
    assert before.confirmation is not None
    assert comparable(found.confirmation.records) == comparable(before.confirmation.records)
    assert found.confirmation.tests == before.confirmation.tests
    assert found.state == before.state == "complete"
    assert tune(*lines, "study.max_consecutive_failures=100").did_work is False


def test_checkpoints_that_no_study_knows_are_set_aside(home: Path) -> None:
    plan = build_plan([f"home={home}", "study.name=again"])
    for _ in range(2):
        plan.paths.checkpoint(0).mkdir(parents=True)
        (plan.paths.checkpoint(0) / "state.ckpt").write_text("of a lost study")
        session, _ = open_study(plan)
        session.close()
        lose_storage(home)
    assert not plan.paths.checkpoints.exists()
    elsewhere = home.with_name(f"{home.name}-elsewhere")
    elsewhere.mkdir()
    plan.paths.checkpoints.parent.rename(elsewhere / "checkpoints")
    plan.paths.checkpoints.parent.symlink_to(elsewhere / "checkpoints")
    plan.paths.checkpoints.mkdir()
    with pytest.raises(ConfigError, match="leads out of the home; move it away"):
        open_study(plan)
    kept = sorted(str(p.relative_to(home)) for p in home.rglob("state.ckpt"))
    assert kept == [f"set-aside/checkpoints-again-{n}/trial-0000/state.ckpt" for n in (1, 2)]
    assert not set_aside(home / "locks", home / "set-aside", home / "locks"), "it is outside of that folder"


def test_the_doctor_sets_checkpoints_of_unknown_trials_aside(finished_home: Path, tmp_path: Path) -> None:
    home = copied_home(finished_home, tmp_path / "home")
    unknown = home / "checkpoints" / "digits-mlp" / "trial-0099"
    unknown.mkdir()
    (unknown / "weights.ckpt").write_text("of another storage")
    assert "(moved to set-aside)" in command("doctor", f"home={home}").output
    assert not unknown.exists()
    assert (home / "set-aside" / "digits-mlp-trial-0099-1" / "weights.ckpt").read_text() == "of another storage"
