"""The confirmation on new seeds, in the whole system and from records alone."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from overnight import api, protocol
from overnight.config.problems import ConfigError
from overnight.protocol import Progress, TrialSpec
from overnight.report import confirm, finding, publish, report, winner_pictures
from overnight.report.live import NullScreen, ProgressSnapshot
from overnight.runner import trial_process
from overnight.runner.trial_spec import trial_spec
from overnight.search.build_plan import build_plan
from overnight.search.plan import CONFIRM_SUFFIX, Plan
from overnight.search.record import Confirms, TrialRecord
from overnight.study.snapshot import view
from overnight.system.signals import Signals
from overnight.tracking import store

SEARCHED = (
    "~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.batch_norm", "search=none",
    "study.name=small", "+model.lr=choice(0.1,0.03,0.003,0.0001)", "study.trials=6", "trainer.max_epochs=2",
    "scheduler=none", "study.confirm.top=2", "tracking.register=never",
)  # fmt: skip


def line(home: Path, network: str, seeds: int) -> list[str]:
    return [
        f"home={home}", *SEARCHED, f"model._target_=user_networks.{network}", f"+model.marker={home / 'tested'}",
        f"study.confirm.seeds={seeds}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[Path, api.Result]:
    home = tmp_path_factory.mktemp("confirmed")
    shutil.copy(empty_store, home / "mlflow.db")
    result = api.run(build_plan(line(home, "Tested", 3)), screen=NullScreen())
    assert (result.stop_reason, result.mlflow_error) == ("complete", None)
    return home, result


def runs_of(home: Path, role: str) -> list[Any]:
    client = store.open_client(build_plan([f"home={home}"]).settings.location)
    experiment = client.get_experiment_by_name("small")
    return list(client.search_runs([experiment.experiment_id], f"tags.`overnight.role` = '{role}'"))


@pytest.mark.long
def test_finalists_and_baseline_train_fully_on_the_same_new_seeds_outside_the_search(
    confirmed: tuple[Path, api.Result],
) -> None:
    home, result = confirmed
    (parent,), searched, runs = runs_of(home, "study"), runs_of(home, "trial"), runs_of(home, "confirmation")
    assert len(searched) == 6
    assert {r.data.tags["mlflow.parentRunId"] for r in runs} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["overnight.state"] == "complete"
    assert parent.data.metrics["best/objective"] == pytest.approx(result.best.objective, rel=1e-6), (
        "the search's own best, which no confirmation is"
    )
    by_trial: dict[str, set[str]] = {}
    for run in runs:
        by_trial.setdefault(run.data.tags["overnight.confirms"], set()).add(run.data.tags["overnight.seed"])
        assert "overnight.trial" not in run.data.tags
    assert len(by_trial) in (2, 3), "the baseline may be a finalist"
    assert "trial-0000" in by_trial
    seeds = next(iter(by_trial.values()))
    assert len(seeds) == 3
    assert all(s == seeds for s in by_trial.values())
    assert seeds.isdisjoint({str(result.plan.trial_seed(n)) for n in range(6)})
    found, names = view(result.plan.settings.location)
    assert names == ["small"]
    assert found is not None
    assert (found.state, len(found.records), found.confirmed) == ("complete", 6, len(runs))
    assert all(len(r.history) == 2 for r in found.confirmation.records)


@pytest.mark.long
def test_mean_and_interval_equal_those_of_the_runs_in_mlflow(confirmed: tuple[Path, api.Result]) -> None:
    home, result = confirmed
    (parent,) = runs_of(home, "study")
    values: dict[str, list[float]] = {}
    for run in runs_of(home, "confirmation"):
        values.setdefault(run.data.tags["overnight.confirms"], []).append(run.data.metrics["objective"])
    finalists = [f"trial-{f.trial.number:04d}" for f in result.finding.finalists]
    winner = max(finalists, key=lambda name: np.mean(values[name]))
    assert parent.data.tags["overnight.winner"] == winner
    half = stats.t.ppf(0.975, 2) * stats.sem(values[winner])  # no correction for two finalists
    assert parent.data.metrics["confirmed/mean"] == pytest.approx(np.mean(values[winner]))
    assert parent.data.metrics["confirmed/half_width"] == pytest.approx(half, rel=1e-4)
    sentence = parent.data.tags["overnight.report"]
    assert f"{np.mean(values[winner]):.2%} ± {100 * half:.2f} val/accuracy over 3 seeds" in sentence
    assert sentence in parent.data.tags["mlflow.note.content"]


@pytest.mark.long
def test_the_test_set_evaluates_only_winner_and_baseline_and_only_once(confirmed: tuple[Path, api.Result]) -> None:
    home, result = confirmed
    tested = {
        r.data.tags["overnight.confirms"] for r in runs_of(home, "confirmation") if "test/accuracy" in r.data.metrics
    }
    assert tested == {f"trial-{result.finding.winner.trial.number:04d}", "trial-0000"}
    assert not any("test/accuracy" in r.data.metrics for r in (*runs_of(home, "trial"), *runs_of(home, "study")))
    marks = (home / "tested").read_text()
    assert len(marks) == 3 * len(tested), "one batch of the test set for each network"
    again = api.run(build_plan(line(home, "Tested", 3)), screen=NullScreen())
    assert not again.did_work
    assert finding.summary_sentence(again.finding) == finding.summary_sentence(result.finding)
    assert (home / "tested").read_text() == marks
    assert len(list((home / "checkpoints" / f"small{CONFIRM_SUFFIX}").rglob("*.ckpt"))) == 1, (
        "the winner's, of one seed"
    )


@pytest.mark.long
def test_a_winner_that_the_search_did_not_draw_is_drawn_with_its_network_of_the_confirmation(
    confirmed: tuple[Path, api.Result],
) -> None:
    home, result = confirmed
    shutil.rmtree(home / "pictures")
    found, _ = view(result.plan.settings.location)
    assert found is not None
    assert winner_pictures.find(found) == []
    winner_pictures.draw_missing(found, result.plan.settings.pictures, 60)
    folder = winner_pictures.find_folder(found)
    number = result.finding.winner.trial.number
    assert folder == home / "pictures" / "small" / f"trial-{number:04d}"
    assert (folder / "in-words.md").read_text().startswith(f"# Pictures of small trial-{number:04d}-seed-1\n")
    assert "First weights" in [p.title for p in winner_pictures.find(found)]
    assert publish.publish_to_mlflow(found, found.plan.settings.location, result.finding) is None
    client = store.open_client(found.plan.settings.location)
    (parent,) = runs_of(home, "study")
    (trial,) = [r for r in runs_of(home, "trial") if r.data.tags["overnight.trial"] == str(number)]
    for run in (parent, trial):
        shown = {a.path: a.file_size for a in client.list_artifacts(run.info.run_id, "pictures")}
        assert shown["pictures/weights.png"] == (folder / "weights.png").stat().st_size


@pytest.mark.long
def test_an_interrupted_confirmation_is_resumed_and_has_the_same_result(
    home: Path, confirmed: tuple[Path, api.Result]
) -> None:
    class StopsAfterTwoConfirmations(NullScreen):
        def update(self, take_snapshot: Callable[[], ProgressSnapshot], force: bool = False) -> None:  # noqa: ARG002
            now = take_snapshot()
            if now.plan.name.endswith(CONFIRM_SUFFIX) and len(now.ended) == 2 and now.activity is None:
                signal.raise_signal(signal.SIGINT)

    with Signals() as signals:
        cut = api.run(build_plan(line(home, "Plain", 3)), screen=StopsAfterTwoConfirmations(), signals=signals)
    assert cut.stop_reason == "stopped"
    found, _ = view(cut.plan.settings.location)
    assert (found.state, len(found.records)) == ("paused", 6)
    assert 2 <= found.confirmed < found.confirmations
    whole = api.run(build_plan(line(home, "Plain", 3)), screen=NullScreen())
    assert whole.stop_reason == "complete"
    trained = [
        (r.confirms.trial, r.confirms.nth_seed) for r in view(whole.plan.settings.location)[0].confirmation.records
    ]
    assert len(trained) == len(set(trained)) == found.confirmations
    facts = [[(f.trial.number, f.values) for f in r.finding.finalists] for r in (whole, confirmed[1])]
    assert facts[0] == facts[1]
    assert "(no test set: Plain has no test_step)" in finding.summary_sentence(whole.finding)


@pytest.mark.long
def test_a_test_set_that_a_deadline_cut_is_evaluated_by_the_next_launch(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = build_plan([*line(home, "Tested", 2), "study.trials=3", "study.hours=1"])
    with monkeypatch.context() as patch:
        patch.setattr(confirm, "evaluate_on_test_set", lambda *_: False)
        first = api.run(plan, screen=NullScreen())
    assert (first.stop_reason, first.published) == ("limit", True)
    assert "cut the test set" in first.limit_notes[-1]
    again = api.run(plan, screen=NullScreen())
    assert (again.stop_reason, again.limit_notes) == ("complete", ())
    assert "test/accuracy" in runs_of(home, "confirmation")[0].data.metrics
    assert "on test" in finding.summary_sentence(again.finding)
    assert not api.run(plan, screen=NullScreen()).did_work, "now it is finished"


@pytest.mark.long
def test_a_network_that_crashes_on_the_test_set_loses_only_its_test(home: Path) -> None:
    result = api.run(build_plan([*line(home, "DiesTested", 2), "study.trials=3"]), screen=NullScreen())
    assert result.stop_reason == "complete"
    assert "(no test set: the test failed: its process was ended by signal 9)" in finding.summary_sentence(
        result.finding
    )


@pytest.mark.long
def test_every_seed_of_a_new_winner_is_tested_after_more_trials(home: Path) -> None:
    """The runs of former finalists still exist, and are better than the new winner on its worst seed."""
    lines = [
        *line(home, "Lucky", 3),
        "study.confirm.top=1",
        "seed=7",
    ]  # with this seed trial 1, and later trial 3, is first
    api.run(build_plan([*lines, "study.trials=2"]), screen=NullScreen())
    found = api.run(build_plan(lines), screen=NullScreen()).finding
    assert found.winner.trial.number > 1
    assert (found.winner.tests["test/accuracy"].n, found.winner.untested_reason) == (3, "")


@pytest.fixture
def slow_to_test(tmp_path: Path) -> TrialSpec:
    """Train a network that takes five seconds for the test set, in twelve batches."""
    lines = ["model._target_=user_networks.SlowlyTested", "data._target_=user_networks.Dripping", "study.trials=1"]
    study = build_plan([f"home={tmp_path}", *SEARCHED, *lines])
    spec = trial_spec(study, 0, study.config({}), 1, "cpu", folder=tmp_path / "s")
    trained, _ = trial_process.run_alone(spec, tmp_path / "log")
    assert trained.finished.outcome == "complete", trained.finished
    return dataclasses.replace(spec, test_only=True)


def test_a_test_that_makes_progress_is_not_ended(slow_to_test: TrialSpec, tmp_path: Path) -> None:
    _, messages = trial_process.run_alone(slow_to_test, tmp_path / "log", silence_s=4)
    assert [m.metrics.keys() for m in messages if isinstance(m, protocol.Tested)] == [{"test/accuracy"}]


def test_a_test_that_makes_progress_is_ended_at_the_deadline(slow_to_test: TrialSpec, tmp_path: Path) -> None:
    began = time.time()
    tested, messages = trial_process.run_alone(slow_to_test, tmp_path / "log", until=began + 2.5)
    assert time.time() - began < 5
    assert tested.finished.reason == "timed_out"
    assert not [m for m in messages if isinstance(m, protocol.Tested)]


# From records alone ---------------------------------------------------------------------------------------------------


@functools.cache
def small(*overrides: str) -> Plan:
    return build_plan([*SEARCHED, "model._target_=user_networks.Plain", "study.confirm.seeds=5", *overrides])


def record(number: int, value: float | None, state: str = "complete", **more: Any) -> TrialRecord:
    history = () if value is None else (Progress(number, 0, {"val/accuracy": value}, 1e9, 1.0),)
    params = more.pop("params", {"model.lr": 0.1 / (number + 1)})
    return TrialRecord(number, state, params, history, value, None, "", 1e9, 1e9 + 9, **more)  # type: ignore[arg-type]


def confirmations(values: dict[int, list[float]]) -> list[TrialRecord]:
    pairs = [(trial, n, v) for trial, vs in values.items() for n, v in enumerate(vs, 1)]
    return [record(i, v, confirms=Confirms(trial, n, 1000 + n)) for i, (trial, n, v) in enumerate(pairs)]


def table(records: list[TrialRecord], seen: list[TrialRecord]) -> list[tuple[str, ...]]:
    """Return the ranking of the report."""
    found = finding.from_records(small(), records, seen, {})
    return report.ranking(SimpleNamespace(finding=found, plan=small()))


def test_finalists_are_the_best_distinct_configurations_and_the_baseline() -> None:
    twin = {"model.lr": 0.05}
    records = [
        record(0, 0.5), record(1, 0.9, params=twin), record(2, 0.95, "pruned"), record(3, None, "failed"),
        record(4, 0.8, params=twin), record(5, 0.7),
    ]  # fmt: skip
    assert [f.number for f in confirm.finalists(small(), records)] == [1, 5]
    assert confirm.baseline(small(), records).number == 0
    assert confirm.confirmation_plan(small(), records).settings.study.trials == 5 * 3
    assert confirm.finalists(small("study.confirm.seeds=0"), records) == []
    assert confirm.finalists(small("study.confirm.seeds=null"), records) == [], "six trials are a try-out"


def test_by_default_a_confirmation_never_trains_more_than_the_search_did() -> None:
    assert build_plan(["study.trials=20"]).confirmation_trials == 20
    assert build_plan(["study.trials=19"]).confirmation_trials == 0
    assert build_plan(["study.trials=30", "search=none"]).confirmation_trials == 0, "nothing is searched"


def test_the_winner_is_the_best_on_new_seeds_not_the_best_of_the_search() -> None:
    records = [record(0, 0.8), record(1, 0.99), record(2, 0.98)]
    seen = confirmations({0: [0.80, 0.81, 0.79, 0.80, 0.82], 1: [0.95, 0.94, 0.96, 0.95, 0.94],
                          2: [0.97, 0.98, 0.97, 0.96, 0.97]})  # fmt: skip
    found = finding.from_records(small(), records, seen, {10: protocol.Tested(10, {"test/accuracy": 0.93})})
    assert found.winner.trial.number == 2
    assert found.search_best.number == 1
    assert finding.summary_sentence(found) == (
        "trial-0002 won: 97.00% ± 0.88 val/accuracy over 5 seeds, 93.00% on test (one seed only); the config you "
        "started from had 80.40% ± 1.42; second place (trial-0001) is worse."
    )


def test_equal_configurations_are_reported_as_not_distinguishable() -> None:
    records = [record(0, 0.9), record(1, 0.9)]
    found = finding.from_records(small(), records, confirmations({0: [0.9, 0.8, 0.85], 1: [0.8, 0.9, 0.85]}), {})
    assert "not distinguishably worse" in finding.summary_sentence(found)
    assert "that is the config you started from" in finding.summary_sentence(found)


def test_a_baseline_that_beats_the_finalists_wins_however_early_the_search_paused_it() -> None:
    records = [record(0, 0.5, "pruned"), record(1, 0.9)]
    seen = confirmations({0: [0.95, 0.95, 0.951, 0.95, 0.951], 1: [0.90, 0.91, 0.90, 0.90, 0.89]})
    found = finding.from_records(small(), records, seen, {})
    assert found.best is records[0]
    assert finding.summary_sentence(found) == (
        "trial-0000 won: 95.04% ± 0.07 val/accuracy over 5 seeds; that is the config you started from; second place "
        "(trial-0001) is worse."
    )
    assert [row[0] for row in table(records, seen)] == ["trial-0000 (baseline)", "trial-0001"]
    assert [row[2] for row in table(records, seen)] == ["first", "worse (p < 0.001)"]
    failed = [*seen[1:], record(99, None, "failed", confirms=Confirms(0, 1, 1001))]
    assert finding.from_records(small(), records, failed, {}).best is records[1], "it failed on a seed"


def test_a_better_second_place_that_failed_on_one_seed_is_reported() -> None:
    records = [record(0, 0.5), record(1, 0.99), record(2, 0.98)]
    seen = confirmations({0: [0.5] * 5, 1: [0.90, 0.901, 0.90, 0.90, 0.901], 2: [0.96, 0.961, 0.96, 0.96]})
    seen.append(record(99, None, "failed", confirms=Confirms(2, 5, 1005)))
    found = finding.from_records(small(), records, seen, {})
    assert finding.summary_sentence(found).endswith("; second place (trial-0002) was better, but failed on one seed.")
    assert table(records, seen)[1][2] == "better (p < 0.001)"


def test_a_lower_second_place_is_better_in_a_minimization() -> None:
    records = [record(0, 0.9), record(1, 0.2), record(2, 0.3)]
    seen = confirmations({0: [0.9] * 5, 1: [0.30, 0.301, 0.30, 0.30, 0.301], 2: [0.16, 0.161, 0.16, 0.16]})
    seen.append(record(99, None, "failed", confirms=Confirms(2, 5, 1005)))
    sentence = finding.summary_sentence(finding.from_records(small("study.direction=minimize"), records, seen, {}))
    assert sentence.endswith("; second place (trial-0002) was better, but failed on one seed.")


def test_a_seed_that_failed_for_all_keeps_the_values_of_other_seeds() -> None:
    records = [record(0, None, "failed"), record(1, 0.95), record(2, 0.94)]
    seen = [record(i, None, "failed", confirms=Confirms(t, 1, 1001)) for i, t in ((10, 1), (11, 2))]
    seen.append(record(12, 0.93, confirms=Confirms(1, 2, 1002)))
    assert finding.from_records(small(), records, seen, {}).winner.trial.number == 1


def test_one_seed_is_not_compared() -> None:
    records = [record(0, 0.4), record(1, 0.9), record(2, 0.8)]
    seen = confirmations({0: [0.41], 1: [0.86], 2: [0.85]})
    sentence = finding.summary_sentence(finding.from_records(small("study.confirm.seeds=1"), records, seen, {}))
    assert (
        "the config you started from had 41.00%, on too few seeds to compare; second place (trial-0002) was "
        in sentence
    )
    assert "distinguish" not in sentence


def test_a_baseline_in_second_place_is_mentioned_once() -> None:
    records = [record(0, 0.9), record(1, 0.95)]
    seen = confirmations({0: [0.90, 0.91, 0.90, 0.92, 0.90], 1: [0.95, 0.96, 0.95, 0.97, 0.95]})
    sentence = finding.summary_sentence(finding.from_records(small(), records, seen, {}))
    assert sentence.endswith("; the config you started from, in second place, had 90.60% ± 1.11.")


def test_sentence_and_table_give_one_interval_of_the_baseline() -> None:
    plan, records = small("study.confirm.top=3"), [record(0, 0.9), record(1, 0.95), record(2, 0.94)]
    low, middle, high = [0.80, 0.81, 0.79, 0.80, 0.82], [0.90, 0.91, 0.90, 0.92, 0.90], [0.95, 0.96, 0.95, 0.97, 0.95]
    for first, *others in (low, middle, high), (middle, low, high), (high, low, middle):
        seen = confirmations({0: first, 1: others[0], 2: others[1]})
        found = finding.from_records(plan, records, seen, {})
        assert len(found.finalists) == 3, "with more than two, the interval of a finalist is corrected for the choice"
        ranking = report.ranking(SimpleNamespace(finding=found, plan=plan))
        (shown,) = (row[1] for row in ranking if "(baseline)" in row[0])
        assert shown in finding.summary_sentence(found)


def test_an_additional_lucky_seed_does_not_decide_an_interrupted_confirmation() -> None:
    records = [record(0, 0.5, "failed"), record(1, 0.95), record(2, 0.94)]
    cut = confirmations({1: [0.95, 0.96, 0.94], 2: [0.94, 0.95]})
    assert [f.estimate.n for f in finding.from_records(small(), records, cut, {}).finalists] == [2, 2]
    slow = confirmations({1: [0.95, 0.96, 0.94, 0.95, 0.96], 2: [0.97, 0.98, 0.97]})
    assert [(f.trial.number, f.estimate.n) for f in finding.from_records(small(), records, slow, {}).finalists] == [
        (2, 3),
        (1, 3),
    ], "a slower one is not worse"
    extended = confirmations({1: [0.95, 0.97, 0.96, 0.955, 0.965], 2: [0.971]})
    found = finding.from_records(small(), records, extended, {})
    assert [(f.trial.number, f.estimate.n) for f in found.finalists] == [(1, 5), (2, 1)]
    assert "second place (trial-0002) was trained on too few seeds to compare" in finding.summary_sentence(found)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "there is no result"),
        ([record(0, None, "failed")], "there is no result"),
        ([record(0, 0.9)], "0 of 5 confirmations are done"),
    ],
    ids=["an empty study", "all failed", "one trial"],
)
def test_a_study_without_a_result_says_so(records: list[TrialRecord], words: str) -> None:
    assert words in finding.summary_sentence(finding.from_records(small(), records, [], {}))


def test_the_name_of_a_confirmation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"study.name: must not end in .confirm"):
        build_plan(["study.name=digits.confirm"])
