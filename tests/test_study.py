"""The ledger: what it keeps, what it hands out again, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from overnight import plan
from overnight.messages import EpochEnd
from overnight.plan import Plan
from overnight.settings import ConfigError
from overnight.storage import Held
from overnight.study import Ledger, open_study, view


def planned(home: Path, *overrides: str) -> Plan:
    return plan.make([f"home={home}", "study.trials=14", *overrides])


@contextmanager
def opened(study: Plan, **options: bool) -> Iterator[Ledger]:
    ledger, _ = open_study(study, **options)
    try:
        yield ledger
    finally:
        ledger.close()


def epoch(number: int, e: int, value: float, **more: float) -> EpochEnd:
    return EpochEnd(number, e, {"val/accuracy": value, **more}, 1000.0 + e, 0.1)


def play(ledger: Ledger, trials: int) -> list[tuple[int, dict[str, Any]]]:
    """Pretend to train: a trial's score depends on its parameters alone."""
    played = []
    for _ in range(trials):
        ticket = ledger.ask()
        if ticket is None:
            break
        score = (ticket.config["optimizer"]["lr"] * 1000 + len(ticket.config["model"]["hidden_sizes"])) % 1
        for e in range(3):
            ledger.record(epoch(ticket.number, e, score + e / 10))
            ledger.should_prune(ticket.number)
        ledger.complete(ticket.number)
        played.append((ticket.number, ticket.values))
    return played


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_cut_anywhere_suggests_what_the_uncut_one_does(tmp_path: Path, sampler: str) -> None:
    with opened(planned(tmp_path / "whole", f"sampler={sampler}")) as ledger:
        whole = play(ledger, 99)
    assert len(whole) == 14
    assert len({json.dumps(values) for _, values in whole}) == 14

    cut = planned(tmp_path / "cut", f"sampler={sampler}")
    with opened(cut) as ledger:
        suggested = play(ledger, 5)
        ledger.ask()  # asked for, and the machine went down
    with opened(cut) as ledger:
        suggested += play(ledger, 7)
        half_asked = ledger.study.ask()  # in the middle of asking
        half_asked.suggest_int("model.hidden_sizes.length", 1, 3)
    with opened(cut) as ledger:
        suggested += play(ledger, 99)
    assert suggested == whole


def test_another_seed_suggests_something_else(tmp_path: Path) -> None:
    with opened(planned(tmp_path / "a", "seed=1")) as one, opened(planned(tmp_path / "b", "seed=2")) as two:
        assert play(one, 4)[1:] != play(two, 4)[1:]


def test_trial_0_is_the_configuration_as_written(tmp_path: Path) -> None:
    study = planned(tmp_path, "model.dropout=0.0,0.5")
    with opened(study) as ledger:
        ticket = ledger.ask()
        assert ticket is not None
        assert ticket.config == study.config({})
        assert ledger.read(0).params["model.dropout"] == 0.0


def test_trial_0_is_the_configuration_as_written_where_that_lies_outside_the_space(tmp_path: Path) -> None:
    study = planned(tmp_path, "optimizer.lr=tag(log,interval(0.1,1))", "model.hidden_sizes=[8],[9]")
    with opened(study) as ledger:
        ticket = ledger.ask()
        assert ticket is not None
        assert ticket.config == study.config({})
        ledger.record(epoch(0, 0, 0.5))
        record = ledger.complete(0)
    assert record.params["optimizer.lr"] == 0.001
    assert record.params["model.hidden_sizes"] == [64]


def test_every_metric_of_every_epoch_is_kept_with_its_time(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as ledger:
        ledger.ask()
        for e in range(3):
            ledger.record(epoch(0, e, e / 10, loss=1 / (e + 1), odd=float("inf")))
        ledger.complete(0)
        history = ledger.read(0).history
    assert [(h.epoch, h.at, h.metrics["loss"], h.metrics["odd"]) for h in history] == [
        (0, 1000.0, 1.0, float("inf")),
        (1, 1001.0, 0.5, float("inf")),
        (2, 1002.0, 1 / 3, float("inf")),
    ]


def test_a_paused_trial_comes_back_first_with_number_parameters_and_history(tmp_path: Path) -> None:
    study = planned(tmp_path)
    with opened(study) as ledger:
        play(ledger, 2)
        before = ledger.ask()
        assert before is not None
        ledger.record(epoch(2, 0, 0.5))
        ledger.pause(2)
        assert ledger.read(2).state == "paused"
    with opened(study) as ledger:
        after = ledger.ask()
        assert after == before
        assert not ledger.record(epoch(2, 0, 0.9)), "an epoch that is known stays as it is"
        ledger.record(epoch(2, 1, 0.6))
        ledger.complete(2)
        assert [h.metrics["val/accuracy"] for h in ledger.read(2).history] == [0.5, 0.6]


def test_the_budget_is_a_total_and_a_paused_trial_does_not_spend_it(tmp_path: Path) -> None:
    study = planned(tmp_path, "study.trials=3")
    with opened(study) as ledger:
        ledger.ask()
        ledger.pause(0)
        assert len(play(ledger, 99)) == 3
        assert ledger.ask() is None
    with opened(planned(tmp_path, "study.trials=4")) as ledger:
        assert len(play(ledger, 99)) == 1


@pytest.mark.parametrize(
    ("rule", "direction", "value"), [("last", "maximize", 0.2), ("best", "maximize", 0.9), ("best", "minimize", 0.1)]
)
def test_the_objective_is_the_last_epoch_or_the_best_one(
    tmp_path: Path, rule: str, direction: str, value: float
) -> None:
    study = planned(tmp_path, f"study.objective={rule}", f"study.direction={direction}")
    with opened(study) as ledger:
        ledger.ask()
        for e, v in enumerate((0.1, 0.9, 0.2)):
            ledger.record(epoch(0, e, v))
        assert ledger.complete(0).objective == value


def test_a_failed_trial_keeps_its_reason_and_counts(tmp_path: Path) -> None:
    with opened(planned(tmp_path, "study.trials=1")) as ledger:
        ledger.ask()
        record = ledger.fail(0, "error", "Traceback ...")
        assert (record.state, record.reason, record.detail) == ("failed", "error", "Traceback ...")
        assert ledger.ask() is None


def test_what_would_not_compare_is_refused_with_the_differences(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as ledger:
        play(ledger, 1)
    with pytest.raises(ConfigError) as caught:
        open_study(planned(tmp_path, "optimizer.lr=interval(0.01,0.1)", "data.batch_size=64"))
    text = str(caught.value)
    assert "data.batch_size: was 32, is 64" in text
    assert "search.optimizer.lr: was 0.0001 to 0.1, log, is 0.01 to 0.1" in text
    assert "study.name=" in text
    with opened(planned(tmp_path)):
        pass  # the refusal let go of the study


def test_extending_copies_the_trials_into_the_wider_space(tmp_path: Path) -> None:
    with opened(planned(tmp_path, "study.trials=5")) as ledger:
        play(ledger, 4)
        ledger.ask()
        ledger.record(epoch(4, 0, 0.5))
        ledger.pause(4)
        old = ledger.records()
    wider = planned(tmp_path, "study.trials=40", "optimizer.lr=tag(log,interval(1e-6,1))", "data.batch_size=16,32")
    with pytest.raises(ConfigError, match="--extend"):
        open_study(wider)
    with opened(wider, extend=True) as ledger:
        new = ledger.records()
        assert [(r.number, r.state, r.history, r.objective) for r in new] == [
            (r.number, r.state, r.history, r.objective) for r in old
        ]
        assert all(n.params == {**o.params, "data.batch_size": 32} for n, o in zip(new, old, strict=True))
        play(ledger, 99)
        lrs = [r.params["optimizer.lr"] for r in ledger.records()]
        assert any(lr < 1e-4 or lr > 1e-1 for lr in lrs), "the sampler leaves the old ends"
    with opened(wider) as ledger:
        assert len(ledger.records()) == 40, "the wider study is the one that is gone on with"


def test_extending_gives_an_old_trial_the_value_that_it_trained_with(tmp_path: Path) -> None:
    line = ("search=none", "optimizer=adam,sgd", "sampler=random", "study.trials=8")
    with opened(planned(tmp_path, *line)) as ledger:
        play(ledger, 99)
    with opened(planned(tmp_path, *line, "optimizer.lr=tag(log,interval(1e-4,1))"), extend=True) as ledger:
        had = {r.params["optimizer"]: r.params["optimizer.lr"] for r in ledger.records()}
    assert had == {"adam": 0.001, "sgd": 0.01}


def test_extending_refuses_a_space_that_shrank(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as ledger:
        play(ledger, 1)
    with pytest.raises(ConfigError, match="does not hold all of"):
        open_study(planned(tmp_path, "optimizer.lr=tag(log,interval(1e-3,1))"), extend=True)


def test_a_second_holder_is_told_who_the_first_one_is(tmp_path: Path) -> None:
    study = planned(tmp_path)
    with opened(study), pytest.raises(Held, match=f"process {os.getpid()} "):
        open_study(study)
    with opened(study):
        pass


def test_the_lock_of_a_killed_holder_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from overnight import plan; from overnight.study import open_study;"
        "l, _ = open_study(plan.make(sys.argv[1:])); l.ask(); os.kill(os.getpid(), 9)"
    )
    study = planned(tmp_path)
    subprocess.run([sys.executable, "-c", code, f"home={tmp_path}", "study.trials=14"], check=False)
    found, _ = view(study.settings.place)
    assert found is not None
    assert found.state == "stalled"
    ledger, said = open_study(study)
    assert said == ["1 trial(s) were cut off and go on: 0"]
    assert ledger.trials()[0].state == TrialState.WAITING
    ledger.close()


def test_looking_on_touches_nothing_and_says_how_it_stands(tmp_path: Path) -> None:
    study = planned(tmp_path, "study.trials=2")
    assert view(study.settings.place) == (None, [])
    assert not list(tmp_path.iterdir())
    with opened(study) as ledger:
        play(ledger, 1)
        found, names = view(study.settings.place)
        assert found is not None
        assert (names, found.state, found.count("complete")) == (["digits-mlp"], "running", 1)
    assert view(study.settings.place)[0].state == "paused"  # type: ignore[union-attr]
    with opened(study) as ledger:
        play(ledger, 1)
    assert view(study.settings.place)[0].state == "done"  # type: ignore[union-attr]


def test_a_study_whose_creation_was_cut_off_is_created_again(tmp_path: Path) -> None:
    from overnight import study as ledger_room
    from overnight.storage import open_storage

    study = planned(tmp_path)
    tmp_path.mkdir(exist_ok=True)
    ledger_room._load(open_storage(study.settings.place), study, study.name)
    with opened(study) as ledger:
        assert [t.state for t in ledger.trials()] == [TrialState.WAITING]
        assert ledger.ask().config == study.config({})  # type: ignore[union-attr]


def test_asking_reporting_and_telling_stay_quick(tmp_path: Path) -> None:
    with opened(planned(tmp_path, "study.trials=40")) as ledger:
        started = time.perf_counter()
        assert len(play(ledger, 99)) == 40
        assert (time.perf_counter() - started) / 40 < 1.0
