"""The finalists again on fresh seeds: on the whole real stack, and against what MLflow and the ledger then hold."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from overnight import api, messages, plan, tracking
from overnight.answer import confirm, finding
from overnight.messages import EpochEnd
from overnight.plan import CONFIRM, Plan
from overnight.records import Confirms, TrialRecord
from overnight.screen import Nothing
from overnight.settings import ConfigError
from overnight.supervisor import Supervisor
from overnight.views import view

SEARCHED = (
    "~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.batch_norm", "search=none",
    "study.name=small", "+model.lr=choice(0.1,0.03,0.003,0.0001)", "study.trials=6", "trainer.max_epochs=2",
    "pruner=none", "study.confirm.top=2", "tracking.register=never",
)  # fmt: skip


def line(home: Path, network: str, seeds: int) -> list[str]:
    return [
        f"home={home}", *SEARCHED, f"model._target_=their_networks.{network}", f"+model.marker={home / 'tested'}",
        f"study.confirm.seeds={seeds}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[Path, api.Result]:
    home = tmp_path_factory.mktemp("confirmed")
    shutil.copy(empty_store, home / "mlflow.db")
    result = api.run(plan.make(line(home, "Tested", 3)), screen=Nothing())
    assert (result.why, result.trouble) == ("done", None)
    return home, result


def runs_of(home: Path, role: str) -> list[Any]:
    client = tracking.client(plan.make([f"home={home}"]).settings.place)
    experiment = client.get_experiment_by_name("small")
    return list(client.search_runs([experiment.experiment_id], f"tags.`overnight.role` = '{role}'"))


def test_finalists_and_baseline_train_at_full_length_on_the_same_fresh_seeds_and_are_no_trials_of_the_search(
    confirmed: tuple[Path, api.Result],
) -> None:
    home, result = confirmed
    (parent,), searched, runs = runs_of(home, "study"), runs_of(home, "trial"), runs_of(home, "confirmation")
    assert len(searched) == 6
    assert {r.data.tags["mlflow.parentRunId"] for r in runs} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["overnight.state"] == "done"
    assert parent.data.metrics["objective"] == result.best.value, "the search's own best, which no confirmation is"
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
    found, names = view(result.plan.settings.place)
    assert names == ["small"]
    assert found is not None
    assert (found.state, len(found.records), found.confirmed) == ("done", 6, len(runs))
    assert all(len(r.history) == 2 for r in found.confirmation.records)


def test_mean_and_interval_are_those_of_mlflows_runs(confirmed: tuple[Path, api.Result]) -> None:
    home, result = confirmed
    (parent,) = runs_of(home, "study")
    values: dict[str, list[float]] = {}
    for run in runs_of(home, "confirmation"):
        values.setdefault(run.data.tags["overnight.confirms"], []).append(run.data.metrics["objective"])
    finalists = [f"trial-{f.trial.number:04d}" for f in result.finding.finalists]
    winner = max(finalists, key=lambda name: np.mean(values[name]))
    assert parent.data.tags["overnight.winner"] == winner
    half = stats.t.ppf(0.975, 2) * stats.sem(values[winner])  # two finalists: no more to make up for
    assert parent.data.metrics["confirmed/mean"] == pytest.approx(np.mean(values[winner]))
    assert parent.data.metrics["confirmed/half_width"] == pytest.approx(half)
    said = parent.data.tags["overnight.answer"]
    assert f"{np.mean(values[winner]):.2%} ± {100 * half:.2f} val/accuracy over 3 seeds" in said
    assert said in parent.data.tags["mlflow.note.content"]


def test_the_test_set_is_asked_once_of_exactly_the_winner_and_the_baseline(confirmed: tuple[Path, api.Result]) -> None:
    home, result = confirmed
    tested = {
        r.data.tags["overnight.confirms"] for r in runs_of(home, "confirmation") if "test/accuracy" in r.data.metrics
    }
    assert tested == {f"trial-{result.finding.winner.trial.number:04d}", "trial-0000"}
    assert not any("test/accuracy" in r.data.metrics for r in (*runs_of(home, "trial"), *runs_of(home, "study")))
    marks = (home / "tested").read_text()
    assert len(marks) == 3 * len(tested), "one batch of the test set for each network"
    again = api.run(plan.make(line(home, "Tested", 3)), screen=Nothing())
    assert not again.worked
    assert finding.sentence(again.finding) == finding.sentence(result.finding)
    assert (home / "tested").read_text() == marks
    assert len(list((home / "checkpoints" / f"small{CONFIRM}").rglob("*.ckpt"))) == 1, "the winner's, of one seed"


def test_a_confirmation_that_was_cut_goes_on_by_the_same_line_and_says_what_the_uncut_one_says(
    home: Path, confirmed: tuple[Path, api.Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stopped = Supervisor._end, []

    def end(self: Supervisor, trial: Any) -> None:
        real(self, trial)
        if self.plan.name.endswith(CONFIRM) and len(self.ended) == 2 and not stopped:
            stopped.append(True)
            self.stop()

    monkeypatch.setattr(Supervisor, "_end", end)
    cut = api.run(plan.make(line(home, "Plain", 3)), screen=Nothing())
    assert cut.why == "stopped"
    found, _ = view(cut.plan.settings.place)
    assert (found.state, len(found.records)) == ("paused", 6)
    assert 2 <= found.confirmed < found.confirmations
    whole = api.run(plan.make(line(home, "Plain", 3)), screen=Nothing())
    assert whole.why == "done"
    trained = [(r.confirms.trial, r.confirms.nth_seed) for r in view(whole.plan.settings.place)[0].confirmation.records]
    assert len(trained) == len(set(trained)) == found.confirmations
    facts = [[(f.trial.number, f.values) for f in r.finding.finalists] for r in (whole, confirmed[1])]
    assert facts[0] == facts[1]
    assert "(no test set: Plain has no test_step)" in finding.sentence(whole.finding)


# What is confirmed, and what is said of it, from records alone --------------------------------------------------------


@functools.cache
def small(*overrides: str) -> Plan:
    return plan.make([*SEARCHED, "model._target_=their_networks.Plain", "study.confirm.seeds=5", *overrides])


def record(number: int, value: float | None, state: str = "complete", **more: Any) -> TrialRecord:
    history = () if value is None else (EpochEnd(number, 0, {"val/accuracy": value}, 1e9, 1.0),)
    params = more.pop("params", {"model.lr": 0.1 / (number + 1)})
    return TrialRecord(number, state, params, history, value, None, "", 1e9, 1e9 + 9, **more)  # type: ignore[arg-type]


def confirmations(values: dict[int, list[float]]) -> list[TrialRecord]:
    pairs = [(trial, n, v) for trial, vs in values.items() for n, v in enumerate(vs, 1)]
    return [record(i, v, confirms=Confirms(trial, n, 1000 + n)) for i, (trial, n, v) in enumerate(pairs)]


def test_finalists_are_the_best_distinct_configurations_and_the_baseline_comes_along() -> None:
    twin = {"model.lr": 0.05}
    records = [
        record(0, 0.5), record(1, 0.9, params=twin), record(2, 0.95, "pruned"), record(3, None, "failed"),
        record(4, 0.8, params=twin), record(5, 0.7),
    ]  # fmt: skip
    assert [f.number for f in confirm.finalists(small(), records)] == [1, 5]
    assert confirm.baseline(small(), records).number == 0
    assert confirm.plan_of(small(), records).settings.study.trials == 5 * 3
    assert confirm.finalists(small("study.confirm.seeds=0"), records) == []
    assert confirm.finalists(small("study.confirm.seeds=null"), records) == [], "six trials are a try-out"


def test_by_default_a_confirmation_never_trains_more_than_the_search_did() -> None:
    assert plan.make(["study.trials=20"]).confirmation_trials == 20
    assert plan.make(["study.trials=19"]).confirmation_trials == 0
    assert plan.make(["study.trials=30", "search=none"]).confirmation_trials == 0, "nothing is chosen"


def test_the_winner_is_the_best_on_fresh_seeds_and_not_the_luckiest_of_the_search() -> None:
    records = [record(0, 0.8), record(1, 0.99), record(2, 0.98)]
    seen = confirmations({0: [0.80, 0.81, 0.79, 0.80, 0.82], 1: [0.95, 0.94, 0.96, 0.95, 0.94],
                          2: [0.97, 0.98, 0.97, 0.96, 0.97]})  # fmt: skip
    found = finding.found(small(), records, seen, {10: messages.Tested(10, {"test/accuracy": 0.93})})
    assert found.winner.trial.number == 2
    assert found.luckiest.number == 1
    assert finding.sentence(found) == (
        "trial-0002 won: 97.00% ± 0.88 val/accuracy over 5 seeds, 93.00% on test; the config you started from had "
        "80.40% ± 1.42; second place (trial-0001) is worse."
    )


def test_what_cannot_be_told_apart_is_said_to_be_so() -> None:
    records = [record(0, 0.9), record(1, 0.9)]
    found = finding.found(small(), records, confirmations({0: [0.9, 0.8, 0.85], 1: [0.8, 0.9, 0.85]}), {})
    assert "not distinguishably worse" in finding.sentence(found)
    assert "that is the config you started from" in finding.sentence(found)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "nothing to say"),
        ([record(0, None, "failed")], "nothing to say"),
        ([record(0, 0.9)], "0 of 5 confirmations are done"),
    ],
    ids=["an empty study", "all failed", "one trial"],
)
def test_a_study_without_an_answer_says_so(records: list[TrialRecord], words: str) -> None:
    assert words in finding.sentence(finding.found(small(), records, [], {}))


def test_a_name_that_would_be_a_confirmations_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"study.name: must not end in .confirm"):
        plan.make(["study.name=digits.confirm"])
