"""A study that begins with the best trials of another: a planted problem, its report, and the command it suggests."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from overnight import api
from overnight.config.compose import study_location
from overnight.config.problems import ConfigError
from overnight.report import report
from overnight.report.live import NullScreen
from overnight.report.report import Report
from overnight.search.build_plan import build_plan
from overnight.search.record import ranked
from overnight.study import warm_start
from overnight.study.open import open_study
from overnight.study.snapshot import StudyView, view
from support.commands import start

# The best learning rate, 0.05, is above the upper bound.
PLANTED = (
    "model._target_=user_networks.Planted", "~model.hidden_sizes", "~model.activation", "~model.dropout",
    "~model.batch_norm", "search=none", "+model.lr=tag(log,interval(1e-4,1e-2))", "+model.twist=true,false",
    "+model.noise=interval(0,1)", "study.name=planted", "study.trials=16", "study.confirm.seeds=0",
    "trainer.max_epochs=1", "scheduler=none", "sampler.startup_trials=6", "seed=2", "slots=1",
    "pictures.when=never", "preflight=never",
)  # fmt: skip
NARROWER = "+model.lr=tag(log,interval(1e-3,1e-2))"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> StudyView:
    home = tmp_path_factory.mktemp("planted")
    shutil.copy(empty_store, home / "mlflow.db")
    assert api.run(build_plan([f"home={home}", *PLANTED]), screen=NullScreen()).stop_reason == "complete"
    return view_of(home, "planted")


@pytest.fixture(scope="module")
def planted_report(planted: StudyView) -> Report:
    return report.build_report(planted)


def view_of(home: Path, name: str) -> StudyView:
    found, _ = view(study_location([f"home={home}"]), name)
    assert found is not None
    return found


def line(planted: StudyView, name: str, *overrides: str) -> list[str]:
    """Return the overrides of a study that starts from the planted one. `overrides` replace those of PLANTED."""
    given = (*overrides, f"study.name={name}")
    keys = {o.partition("=")[0] for o in given}
    kept = [o for o in PLANTED if o.partition("=")[0] not in keys]
    warm = [] if "study.warm_start_from" in keys else ["study.warm_start_from=planted"]
    return [f"home={planted.plan.settings.home}", *kept, *given, *warm]


@pytest.mark.long
def test_the_report_names_the_bound_to_widen_and_ranks_a_useless_parameter_last(
    planted_report: Report,
) -> None:
    (line,) = [d for d in planted_report.caveats if d.startswith("model.lr")]
    assert "upper end of its range, 0.01" in line
    assert [i.key for i in planted_report.importances.certain] == ["model.lr"]
    assert "model.noise" in [i.key for i in planted_report.importances.uncertain]


@pytest.mark.long
def test_the_suggested_command_runs_from_the_finding_and_improves_on_it(
    planted: StudyView, planted_report: Report
) -> None:
    assert planted_report.next_command is not None
    words = shlex.split(planted_report.next_command)
    assert words[0] == "overnight"
    assert "study.warm_start_from=planted" in words
    with start(*words[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert "best trials are in this space and run first: trial-" in printed
    after = view_of(Path(planted.plan.settings.home), "planted-2")
    assert planted.best is not None
    assert after.best is not None
    assert after.records[1].params["model.lr"] == planted.best.params["model.lr"], "the finding runs first"
    assert (after.best.objective or 0) > (planted.best.objective or 0)
    assert after.best.params["model.lr"] > 0.01


@pytest.mark.long
def test_the_best_trials_in_the_new_space_run_first_each_once_even_if_the_study_is_opened_again(
    planted: StudyView,
) -> None:
    made, (message,) = warm_start.resolve(build_plan(line(planted, "twice", NARROWER)))
    inside = [r for r in ranked(planted.records, planted.plan.settings) if r.params.get("model.lr", 0) >= 1e-3]
    assert [t["model.lr"] for t in made.warm_start] == [r.params["model.lr"] for r in inside[:5]]
    assert message.endswith(", ".join(f"trial-{r.number:04d}" for r in inside[:5]))
    for _ in range(2):
        session, _ = open_study(made)
        waiting = [r.values for r in session.records()]
        session.close()
        assert waiting[1:] == list(made.warm_start)
    again, messages = warm_start.resolve(build_plan(line(planted, "twice", NARROWER)))
    assert (again.warm_start, messages) == (made.warm_start, []), "the trials of the first start are kept"


@pytest.mark.long
def test_a_key_that_is_no_longer_searched_must_have_the_trials_value(planted: StudyView) -> None:
    three = "study.warm_start_from={study:planted,top:3}"
    made, _ = warm_start.resolve(build_plan(line(planted, "fixed", "+model.twist=true", three)))
    twisted = [r for r in ranked(planted.records, planted.plan.settings) if r.params.get("model.twist")]
    assert [t["model.lr"] for t in made.warm_start] == [r.params["model.lr"] for r in twisted[:3]]
    made, (message,) = warm_start.resolve(build_plan(line(planted, "none", "+model.lr=tag(log,interval(0.1,1))")))
    assert made.warm_start == ()
    assert "none of planted's 16 complete trials is in this space" in message


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("planned", "must be one of planted.*got planned; did you mean planted?"),
        ("mine", "must be another study, got mine; take a new study.name"),
        ("train", "must be a study with a search, got train"),
        ("{study:planted,top:0}", "top: must be at least 1, got 0"),
        ("[planted]", "must be a mapping"),
    ],
)
def test_a_wrong_warm_start_is_reported_with_its_remedy(planted: StudyView, value: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        warm_start.resolve(build_plan(line(planted, "mine", f"study.warm_start_from={value}")))
    (reported,) = error.value.problems
    assert re.search(f"study.warm_start_from.*{problem}", reported), reported


def test_a_home_without_studies_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is none.*run that one first"):
        warm_start.resolve(build_plan([f"home={tmp_path}", "study.warm_start_from=planted"]))
