"""Listing, deleting and exporting studies, marking trials, and resuming with another scheduler or version."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from overnight import api
from overnight.cli import manage
from overnight.cli.main import cli
from overnight.config.compose import study_location
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.report.live import NullScreen
from overnight.search.attributes import EXCLUDED
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.study.open import open_study
from overnight.study.snapshot import StudyView, view
from overnight.study.storage.database import dispose, open_storage
from overnight.study.storage.home import local_path
from overnight.study.storage.lock import StudyInUse, lock_study
from overnight.tracking import summary
from overnight.tracking.store import open_client
from support import planted_study
from support.commands import SMALL
from support.mlflow_store import assert_equal, client_of
from support.paths import copied_home

LINE = ("study.trials=5", "trainer.max_epochs=2", "pictures.when=never", "preflight=never", "scheduler=none",
        "sampler.startup_trials=2", "slots=2")  # fmt: skip


@pytest.fixture(scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """The home of a complete study for tests that mark trials."""
    home = tmp_path_factory.mktemp("own")
    shutil.copy(empty_store, home / "mlflow.db")
    result = api.run(build_plan([f"home={home}", *LINE]), screen=NullScreen())
    assert (result.stop_reason, result.mlflow_error) == ("complete", None)
    return home


def location_of(home: Path) -> StudyLocation:
    return study_location([f"home={home}"])


def view_of(home: Path, name: str | None = None) -> StudyView:
    found, _ = view(location_of(home), name)
    assert found is not None
    return found


def command(*line: str) -> str:
    """Run an overnight command in this process and return its output."""
    done = CliRunner().invoke(cli, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


# List -----------------------------------------------------------------------------------------------------------------


def test_a_study_is_listed_with_its_best_trial_and_its_size(finished_home: Path, finished: StudyView) -> None:
    best = finished.best
    assert best is not None
    (listed,) = json.loads(command("list", f"home={finished_home}", "--json"))["studies"]
    assert (listed["study"], listed["state"], listed["budget"]) == ("digits-mlp", "complete", 6)
    assert listed["best"] == {"trial": best.number, "objective": best.objective, "params": best.params}
    assert listed["seconds"] == pytest.approx(sum(e.seconds for r in finished.records for e in r.history))
    weights = next((finished_home / "checkpoints" / "digits-mlp").rglob("weights.ckpt")).stat().st_size
    assert weights < listed["bytes"] < 100 * weights
    shown = command("list", f"home={finished_home}").splitlines()
    assert shown[0].split() == ["study", "state", "trials", "best", "training", "size"]
    assert shown[1].startswith("digits-mlp  complete  6 of 6")


def test_an_empty_home_has_no_studies(tmp_path: Path) -> None:
    assert command("list", f"home={tmp_path}").startswith("no studies in ")
    assert not list(tmp_path.iterdir()), "list creates nothing"


@pytest.mark.parametrize("name", ["trials.csv", "trials.parquet"])
def test_export_writes_one_row_for_each_trial(finished: StudyView, tmp_path: Path, name: str) -> None:
    assert manage.export(finished, tmp_path / name) == 6
    frame = pd.read_csv(tmp_path / name) if name.endswith("csv") else pd.read_parquet(tmp_path / name)
    assert list(frame["number"]) == list(range(6))
    for record, (_, row) in zip(finished.records, frame.iterrows(), strict=True):
        assert row["state"] == record.state
        assert row["objective"] == record.objective
        assert row["epochs"] == len(record.history)
        last = record.history[-1].metrics
        assert {n: row[f"metrics.{n}"] for n in last} == last
        assert {k: row[f"params.{k}"] for k in record.params} == record.params
        assert all(pd.isna(row[c]) for c in frame if c.startswith("params.") and c[7:] not in record.params)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_trial_that_was_resumed_is_exported_with_its_first_start(finished: StudyView, tmp_path: Path) -> None:
    first, *_ = finished.records
    began_at = first.history[0].at - first.history[0].seconds
    resumed = dataclasses.replace(first, started_at=first.history[-1].at)
    manage.export(dataclasses.replace(finished, records=(resumed,)), tmp_path / "trials.csv")
    (start,) = pd.to_datetime(pd.read_csv(tmp_path / "trials.csv")["started_at"])
    assert start.timestamp() == pytest.approx(began_at, abs=1e-3)


def test_export_needs_a_known_suffix_and_a_writable_path(finished: StudyView, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"FILE: must end in .csv or .parquet, got '.*trials.xls'; rename it"):
        manage.export(finished, tmp_path / "trials.xls")
    with pytest.raises(ConfigError, match=r"FILE: must be a file that can be written, .* there is no folder .*nowhere"):
        manage.export(finished, tmp_path / "nowhere" / "trials.csv")
    folder = tmp_path / "out.csv"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"^FILE: must be a file that can be written, got .*Is a directory"):
        manage.export(finished, folder)
    assert list(tmp_path.iterdir()) == [folder], "no temporary file stays"


# Mark -----------------------------------------------------------------------------------------------------------------


def test_a_trial_that_is_marked_bad_is_ignored_until_it_is_marked_good(own_home: Path) -> None:
    before = view_of(own_home)
    best = before.best
    assert best is not None
    ref = f"digits-mlp/{best.number}"
    output = command("mark", ref, "bad", "--why", "it saw the labels", f"home={own_home}")
    assert f"trial-{best.number:04d} failed (marked bad: it saw the labels)" in output
    after = view_of(own_home)
    assert after.best is not None
    assert after.best.number != best.number
    assert after.state == "complete", "a mark does not change the budget"
    bad = after.records[best.number]
    assert (bad.state, bad.reason, bad.notes) == ("failed", "marked bad", ("marked bad: it saw the labels",))
    assert (bad.params, bad.history, bad.objective) == (best.params, best.history, best.objective)
    run = client_of(own_home).get_run(_run_of(own_home, best.number))
    assert (run.info.status, run.data.tags["overnight.reason"]) == ("FAILED", "marked bad")
    assert run.data.tags["overnight.notes"] == "marked bad: it saw the labels"
    parent = client_of(own_home).get_run(after.parent_run_id)
    assert parent.data.metrics["best/objective"] == pytest.approx(after.best.objective, rel=1e-6)
    assert parent.data.tags["overnight.best"] == f"trial-{after.best.number:04d}"

    command("mark", ref, "good", f"home={own_home}")
    again = view_of(own_home)
    assert again.records == before.records
    assert_equal(own_home, again)
    assert "overnight.notes" not in client_of(own_home).get_run(run.info.run_id).data.tags


def test_a_study_whose_trials_are_all_marked_bad_has_neither_winner_nor_best_trial(
    own_home: Path, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(own_home, tmp_path / "home"))
    before, client = view_of(home), client_of(home)
    assert before.best is not None
    best, run_id = f"trial-{before.best.number:04d}", str(before.parent_run_id)
    client.set_tag(run_id, "overnight.winner", best)  # as if it was confirmed
    refs = [f"digits-mlp/{record.number}" for record in before.records if record.state == "complete"]
    for verdict, shown in (("bad", None), ("good", best)):
        command("mark", *refs, verdict, f"home={home}")
        run_tags = client.get_run(run_id).data.tags
        assert (run_tags.get("overnight.best"), run_tags.get("overnight.winner")) == (shown, None), verdict


def test_the_reason_of_an_exclusion_is_shown_with_it_and_escaped_on_the_page(own_home: Path) -> None:
    best = view_of(own_home).best
    assert best is not None
    ref, home = f"digits-mlp/{best.number}", f"home={own_home}"
    command("mark", ref, "bad", "--why", "saw <b>the\n labels</b>", home)
    line = f"trial-{best.number:04d}: marked bad: saw <b>the labels</b>"
    assert f"\n  {line}\n" in command("status", home)
    assert f"{line}\n" in command("logs", ref, home)
    assert f"Ignored: {line}" in " ".join(command("report", "digits-mlp", home).split())
    page = view_of(own_home).plan.paths.report.read_text()
    assert f"<li>Ignored: {line.replace('<', '&lt;').replace('>', '&gt;')}</li>" in page
    command("mark", ref, "good", home)
    assert "marked bad" not in command("status", home)


def test_a_mark_that_mlflow_does_not_show_exits_with_1(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = view_of(own_home).best.number  # type: ignore[union-attr]
    line = ("mark", f"digits-mlp/{number}", "bad", f"home={own_home}")
    with monkeypatch.context() as patched:
        patched.setattr(summary, "open_client", _fail)
        done = CliRunner().invoke(cli, line)
    assert done.exit_code == 1
    assert "MLflow does not show it yet (OSError: no network); the next start updates it" in done.output
    command(*line[:2], "good", line[-1])


def _fail(_: StudyLocation) -> None:
    raise OSError("no network")


def _run_of(home: Path, number: int) -> str:
    (run,) = client_of(home).search_runs(["1"], f"tags.`overnight.trial` = '{number}'")
    return str(run.info.run_id)


@pytest.mark.long
def test_the_sampler_treats_a_trial_that_is_marked_bad_as_failed(own_home: Path, tmp_path: Path) -> None:
    number = view_of(own_home).best.number  # type: ignore[union-attr]
    suggested, states = {}, {}
    for how in ("as it is", "marked", "failed"):
        home = tmp_path / how
        home.mkdir()
        shutil.copy(own_home / "optuna.db", home / "optuna.db")
        if how == "failed":
            with closing(sqlite3.connect(home / "optuna.db")) as store, store:
                gone = "trial_id IN (SELECT trial_id FROM trials WHERE number = ?)"
                store.execute(f"UPDATE trials SET state = 'FAIL' WHERE {gone}", [number])
                store.execute(f"DELETE FROM trial_values WHERE {gone}", [number])
        elif how == "marked":
            storage = open_storage(location_of(home))
            storage.set_study_user_attr(storage.get_all_studies()[0]._study_id, EXCLUDED, {str(number): ""})
            dispose(storage)
        session, _ = open_study(build_plan([f"home={home}", *LINE, "study.trials=6"]))
        states[how] = [t.state for t in session.trials()]
        assignment = session.queue.ask()
        assert assignment is not None
        suggested[how] = assignment.values
        session.close()
    assert states["marked"] == states["failed"] != states["as it is"]
    assert suggested["marked"] == suggested["failed"] != suggested["as it is"]


def test_every_trial_that_cannot_be_marked_is_reported_at_once(own_home: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        manage.mark(location_of(own_home), "digits-mlp", [0, 99], bad=False)
    assert refused.value.problems == [
        "digits-mlp/0: must be marked bad before it is marked good, got complete; leave it",
        "digits-mlp/99: must be one of its trials, 0 to 4",
    ]
    release = lock_study(location_of(own_home), "digits-mlp")
    try:
        with pytest.raises(StudyInUse, match="overnight stop digits-mlp"):
            manage.mark(location_of(own_home), "digits-mlp", [0], bad=True)
    finally:
        release()


def test_a_trial_that_cannot_be_marked_bad_yet_is_refused_with_the_time_when_it_can_be() -> None:
    record = planted_study.record
    at_rung = record(0, {}, 0.5, "paused", until=5, max_epochs=20)
    states = [at_rung, *(record(n, {}, None, state) for n, state in enumerate(("paused", "waiting", "failed"), 1))]
    pruned = record(4, {}, 0.5, "pruned", until=5, max_epochs=20)
    assert [line.partition("got ")[2] for line in manage._unmarkable("s", [*states, pruned], range(5), bad=True)] == [
        "paused at a rung; mark it once the search has ended, which leaves it pruned",
        "paused; mark it once it has ended",
        "waiting; mark it once it has ended",
        "failed; leave it",
    ]


# Delete ---------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_delete_removes_everything_of_one_study_and_nothing_of_another(
    tune: Callable[..., api.Result], home: Path
) -> None:
    searched = ("study.confirm.top=1", "study.confirm.seeds=1")
    tune(*LINE, "study.name=gone", *searched, "study.trials=2")
    tune(*LINE, "study.name=gone-too", "study.trials=1")
    tune(*LINE, "study.name=gone", *searched, "study.trials=3", "model.dropout=0,0.5", extend=True)
    location, kept = location_of(home), view_of(home, "gone-too")
    found = manage.footprint(location, "gone")
    assert set(found.optuna_studies) == {"gone", "gone~2", "gone.confirm"} | {
        n for n in found.optuna_studies if "confirm~" in n
    }
    assert found.versions >= 1, "a new winner makes a new version"
    before = sorted(p for p in home.rglob("*") if p.is_file())
    assert "nothing was deleted" in command("delete", "gone", "--dry-run", f"home={home}")
    assert {p for p in before if p.suffix not in (".db-wal", ".db-shm")} <= set(home.rglob("*"))
    refused = CliRunner().invoke(cli, ["delete", "gone", f"home={home}"])
    assert (refused.exit_code, refused.output.splitlines()[-1]) == (
        2, "--yes: must be given without a terminal; nothing was deleted",
    )  # fmt: skip

    release = lock_study(location, "gone")
    with pytest.raises(StudyInUse):
        manage.delete(location, found)
    release()

    assert "gone is deleted" in command("delete", "gone", "--yes", f"home={home}")
    assert manage.list_studies(location)[0].name == "gone-too"
    assert not [p for p in home.rglob("*") if {"gone", "gone.confirm", "best_gone", "gone.lock"} & {p.name, p.stem}]
    with closing(sqlite3.connect(home / "optuna.db")) as store:
        assert [n for (n,) in store.execute("SELECT study_name FROM studies")] == ["gone-too"]
    with closing(sqlite3.connect(home / "mlflow.db")) as store:
        assert "gone" not in [n for (n,) in store.execute("SELECT name FROM experiments")], "not even marked as deleted"
        (runs,) = store.execute("SELECT count(*) FROM runs").fetchone()
        left = [store.execute(f"SELECT count(*) FROM {t}").fetchone() for t in ("registered_models", "logged_models")]
    assert left == [(0,), (0,)]
    assert runs == 1 + len(kept.records), "the neighbour's and its parent"
    assert view_of(home, "gone-too").records == kept.records
    with pytest.raises(ConfigError, match=r"study: must be a study in .*, got 'gone'; there are: gone-too"):
        manage.footprint(location, "gone")


# Resume ---------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_study_is_resumed_with_another_pruner(tune: Callable[..., api.Result], home: Path) -> None:
    strict = ("scheduler=median", "scheduler.startup_trials=0", "scheduler.warmup_epochs=0", "trainer.max_epochs=4")
    line = ("slots=1", "optimizer.lr=tag(log,interval(1e-5,1e-1))", "study.confirm.seeds=0")
    first = tune(*SMALL, *line, *strict, "study.trials=6")
    assert any(r.state == "pruned" for r in first.records)
    second = tune(*line, "trainer.max_epochs=4", "scheduler=none", "study.trials=9")
    assert [r.state for r in second.records[:6]] == [r.state for r in first.records]
    assert {r.state for r in second.records[6:]} == {"complete"}
    assert view_of(home).plan.settings.scheduler.name == "none"


# Other versions -------------------------------------------------------------------------------------------------------


def _change_stored_plan(home: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the stored plan with `change`, as if another version had written it."""
    with closing(sqlite3.connect(home / "optuna.db")) as store, store:
        (text,) = store.execute("SELECT value_json FROM study_user_attributes WHERE key = 'overnight.plan'").fetchone()
        data = json.loads(text)
        change(data)
        store.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE key = 'overnight.plan'", [json.dumps(data)]
        )


@pytest.fixture
def old_home(own_home: Path, tmp_path: Path) -> Path:
    """A copy of the optuna.db of a study."""
    home = tmp_path / "old"
    home.mkdir()
    shutil.copy(own_home / "optuna.db", home / "optuna.db")
    return home


def test_a_plan_that_cannot_be_read_is_reported_with_a_remedy_and_can_be_deleted(
    old_home: Path, overnight: Callable[..., Any]
) -> None:
    def newer(data: dict[str, Any]) -> None:
        data["settings"]["study"]["dreams"] = 3
        data["settings"]["sampler"]["name"] = "oracle"

    _change_stored_plan(old_home, newer)
    done = overnight("status", f"home={old_home}")
    assert (done.returncode, done.stdout) == (2, "")
    first, *rest = done.stderr.splitlines()
    assert first.startswith("study: digits-mlp was made by another version of overnight")
    assert "`overnight delete digits-mlp`" in first
    assert [line.split(":")[0].strip() for line in rest] == ["study.dreams", "sampler.name"]
    with pytest.raises(ConfigError, match="was made by another version of overnight"):
        open_study(build_plan([f"home={old_home}", *LINE]))
    shown = CliRunner().invoke(cli, ["list", f"home={old_home}"])
    assert shown.exit_code == 0
    assert "digits-mlp  unreadable" in shown.output
    command("delete", "digits-mlp", "--yes", f"home={old_home}")
    assert manage.list_studies(location_of(old_home)) == []


@pytest.mark.parametrize("broken", [{}, {"settings": {}}, {"settings": None, "space": 3}])
def test_a_broken_plan_is_never_a_traceback(broken: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Plan.from_json(broken)


# Move and copy --------------------------------------------------------------------------------------------------------


@pytest.fixture
def a_home(finished_home: Path, tmp_path: Path) -> Path:
    """A copy of the home of a finished study, which was opened once."""
    home = copied_home(finished_home, tmp_path / "a home")
    view_of(home)
    return home


def test_deleting_a_study_in_a_copied_home_leaves_the_original_as_it_was(a_home: Path, tmp_path: Path) -> None:
    def files() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in a_home.rglob("*") if p.is_file() and p.suffix not in (".db-wal", ".db-shm")}

    before, copied = files(), tmp_path / "copied"
    shutil.copytree(a_home, copied)
    assert "digits-mlp is deleted" in command("delete", "digits-mlp", "--yes", f"home={copied}")
    assert files() == before
    assert not [p for p in (copied / "artifacts").rglob("*") if p.is_file()]


def test_artifacts_outside_of_the_home_stay_when_a_study_is_deleted(a_home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(a_home / "artifacts", outside)
    with closing(sqlite3.connect(a_home / "mlflow.db")) as store, store:
        inside = (a_home / "artifacts").as_uri()
        store.execute("UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)", (inside, outside.as_uri()))
    before = sorted(outside.rglob("*"))
    printed = command("delete", "digits-mlp", "--yes", f"home={a_home}")
    assert "folders of artifacts are outside of home and stay, such as " in printed
    assert sorted(outside.rglob("*")) == before


def test_a_moved_home_has_all_artifacts_and_the_old_place_stays_empty(a_home: Path, tmp_path: Path) -> None:
    moved = a_home.rename(tmp_path / "moved")
    assert "digits-mlp: no problems" in command("doctor", f"home={moved}")
    assert not a_home.exists()
    client = open_client(location_of(moved))
    (experiment,) = (e for e in client.search_experiments() if e.name == "digits-mlp")
    for run in client.search_runs([experiment.experiment_id]):
        assert (local_path(run.info.artifact_uri) or tmp_path / "none").is_relative_to(moved)
        assert "config.yaml" in {file.path for file in client.list_artifacts(run.info.run_id)}


@pytest.mark.long
def test_an_experiment_that_was_renamed_in_mlflow_is_found_by_its_runs(a_home: Path) -> None:
    client = open_client(location_of(a_home))
    experiment = client.get_experiment_by_name("digits-mlp")
    client.rename_experiment(experiment.experiment_id, "my best study")
    assert command("doctor", f"home={a_home}").endswith("digits-mlp: no problems\n")
    before = view_of(a_home)
    manage.mark(location_of(a_home), "digits-mlp", [0], True)
    assert [e.name for e in client.search_experiments()] == ["my best study", "Default"], "there is no second one"
    assert client.search_runs([experiment.experiment_id], "tags.`overnight.reason` = 'marked bad'")
    assert "digits-mlp is deleted" in command("delete", "digits-mlp", "--yes", f"home={a_home}")
    assert [e.name for e in client.search_experiments()] == ["Default"]
    assert len(before.records) > 0
