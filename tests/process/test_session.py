"""A study session: what it stores, what it assigns again, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from overnight.config.problems import ConfigError
from overnight.protocol import Progress
from overnight.search.build_plan import build_plan
from overnight.search.custom_sampler import suggest
from overnight.search.plan import Plan
from overnight.study import create
from overnight.study.open import open_study
from overnight.study.session import StudySession
from overnight.study.snapshot import study_names, view
from overnight.study.storage.database import dispose
from overnight.study.storage.leased import open_for_work
from overnight.study.storage.lock import StudyInUse, holder_file, holder_of
from overnight.system import forkserver


def planned(home: Path, *overrides: str) -> Plan:
    trials = [] if any(o.startswith("study.trials=") for o in overrides) else ["study.trials=14"]
    return build_plan([f"home={home}", *trials, *overrides])


@contextmanager
def opened(study: Plan, **options: bool) -> Iterator[StudySession]:
    session, _ = open_study(study, **options)
    session.queue.use_helper_process(forkserver.fork)
    try:
        yield session
    finally:
        session.close()


def epoch(number: int, e: int, value: float, **more: float) -> Progress:
    return Progress(number, e, {"val/accuracy": value, **more}, 1000.0 + e, 0.1)


def play(session: StudySession, trials: int) -> list[tuple[int, dict[str, Any]]]:
    """Complete trials whose score depends on their parameters alone."""
    played = []
    for _ in range(trials):
        assignment = session.queue.ask()
        if assignment is None:
            break
        score = (assignment.config["optimizer"]["lr"] * 1000 + len(assignment.config["model"]["hidden_sizes"])) % 1
        for e in range(3):
            session.writer.record(epoch(assignment.number, e, score + e / 10))
            session.writer.should_prune(assignment.number)
        session.writer.complete(assignment.number)
        played.append((assignment.number, assignment.values))
    return played


SMALL_SPACE = ("search=none", "optimizer=adam,sgd", "optimizer.momentum=0.1,0.5", "optimizer.lr=0.5,0.6,0.7")


@pytest.mark.parametrize(
    ("sampler", "line"),
    [
        ("tpe", ("study.trials=14",)),
        # Nine points, so that some are drawn twice.
        pytest.param("random", (*SMALL_SPACE,), marks=pytest.mark.long),
        pytest.param("grid", (*SMALL_SPACE, "model.dropout=0.0,0.1"), marks=pytest.mark.long),
        pytest.param("qmc", (), marks=pytest.mark.long),
        pytest.param("cma_es", (), marks=pytest.mark.long),
        pytest.param("gp", ("sampler.startup_trials=4",), marks=pytest.mark.long),
    ],
)
def test_an_interrupted_study_suggests_the_same_parameters_as_an_uninterrupted_one(
    tmp_path: Path, sampler: str, line: tuple[str, ...]
) -> None:
    if sampler == "gp":
        forkserver.warm_up()  # as every start does: the sampler's helper process is forked from the same server
    line = (f"sampler={sampler}", *(line if sampler == "tpe" else ("study.trials=8", *line)))
    with opened(planned(tmp_path / "whole", *line)) as session:
        whole = play(session, 99)
    assert len(whole) in (8, 14)
    assert len({json.dumps(values) for _, values in whole}) == len(whole)

    cut = planned(tmp_path / "cut", *line)
    with opened(cut) as session:
        suggested = play(session, 3)
        session.queue.ask()  # the machine goes down while it runs
    with opened(cut) as session:
        suggested += play(session, len(whole) - 5)
        half_suggested = session.study.ask()  # killed while parameters are suggested
        name, dist = next(iter(cut.space.names().items()))
        half_suggested._suggest(name, dist)
    with opened(cut) as session:
        suggested += play(session, 99)
    assert suggested == whole


OPTUNA = "sampler._target_=optuna.samplers."


class InThisProcess:
    """Stands for the helper process of a sampler that is named by `_target_`."""

    ask = staticmethod(suggest)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "line",
    [
        (f"{OPTUNA}NSGAIISampler", "+sampler.population_size=3"),
        *(
            pytest.param(line, marks=pytest.mark.long)
            for line in [
                (f"{OPTUNA}NSGAIIISampler", "+sampler.population_size=3"),
                (f"{OPTUNA}TPESampler", "+sampler.n_startup_trials=4"),
                (f"{OPTUNA}CmaEsSampler", "+sampler.popsize=4"),
                (f"{OPTUNA}QMCSampler", "+sampler.scramble=true"),
                (f"{OPTUNA}RandomSampler", "+sampler.seed=5"),
                (f"{OPTUNA}BruteForceSampler", *SMALL_SPACE),
                (
                    f"{OPTUNA}PartialFixedSampler",
                    "+sampler.fixed_params={model.dropout: 0.25}",
                    "+sampler.base_sampler={_target_: optuna.samplers.NSGAIISampler, population_size: 3}",
                ),
                (f"{OPTUNA}GPSampler", "+sampler.n_startup_trials=4"),
            ]
        ),
    ],
    ids=lambda line: line[0].rpartition(".")[2],
)
def test_an_interrupted_study_with_a_sampler_by_target_suggests_the_same_parameters(
    tmp_path: Path, line: tuple[str, ...]
) -> None:
    trials = 8 if SMALL_SPACE[0] in line else 14

    @contextmanager
    def opened_here(study: Plan) -> Iterator[StudySession]:
        with opened(study) as session:
            session.study.sampler._custom = InThisProcess()  # type: ignore[union-attr]
            yield session

    with opened_here(planned(tmp_path / "whole", *line, f"study.trials={trials}")) as session:
        whole = play(session, 99)
    assert len({json.dumps(values) for _, values in whole}) == len(whole) == trials
    cut = planned(tmp_path / "cut", *line, f"study.trials={trials}")
    with opened_here(cut) as session:
        suggested = play(session, 3)
        session.queue.ask()  # the machine goes down while it runs
    with opened_here(cut) as session:
        suggested += play(session, trials - 5)
        half_suggested = session.study.ask()  # killed while parameters are suggested
        name, dist = next(iter(cut.space.names().items()))
        half_suggested._suggest(name, dist)
    with opened_here(cut) as session:
        suggested += play(session, 99)
    assert suggested == whole


def test_a_genetic_sampler_knows_the_generation_of_every_trial(tmp_path: Path) -> None:
    line = (f"{OPTUNA}NSGAIISampler", "+sampler.population_size=3", "study.trials=11")
    with opened(planned(tmp_path, *line)) as session:
        session.study.sampler._custom = InThisProcess()  # type: ignore[union-attr]
        play(session, 99)
        generations = [t.system_attrs["NSGAIISampler:generation"] for t in session.study.trials[1:]]
    assert generations == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3], "the baseline is given, and belongs to none"


def test_another_seed_suggests_other_parameters(tmp_path: Path) -> None:
    with opened(planned(tmp_path / "a", "seed=1")) as one, opened(planned(tmp_path / "b", "seed=2")) as two:
        assert play(one, 4)[1:] != play(two, 4)[1:]


def test_trial_0_is_the_baseline(tmp_path: Path) -> None:
    study = planned(tmp_path, "model.dropout=0.0,0.5")
    with opened(study) as session:
        assignment = session.queue.ask()
        assert assignment is not None
        assert assignment.config == study.config({})
        assert session.read(0).params["model.dropout"] == 0.0


def test_trial_0_is_the_baseline_even_outside_the_space(tmp_path: Path) -> None:
    study = planned(tmp_path, "optimizer.lr=tag(log,interval(0.1,1))", "model.hidden_sizes=[8],[9]")
    with opened(study) as session:
        assignment = session.queue.ask()
        assert assignment is not None
        assert assignment.config == study.config({})
        session.writer.record(epoch(0, 0, 0.5))
        record = session.writer.complete(0)
    assert record.params["optimizer.lr"] == 0.001
    assert record.params["model.hidden_sizes"] == [64]


def test_every_metric_of_every_epoch_is_kept_with_its_time(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as session:
        session.queue.ask()
        for e in range(3):
            session.writer.record(epoch(0, e, e / 10, loss=1 / (e + 1), odd=float("inf")))
        session.writer.complete(0)
        history = session.read(0).history
    assert [(h.index, h.at, h.metrics["loss"], h.metrics["odd"]) for h in history] == [
        (0, 1000.0, 1.0, float("inf")),
        (1, 1001.0, 0.5, float("inf")),
        (2, 1002.0, 1 / 3, float("inf")),
    ]


def test_a_paused_trial_is_resumed_first_with_number_parameters_and_history(tmp_path: Path) -> None:
    study = planned(tmp_path)
    with opened(study) as session:
        play(session, 2)
        before = session.queue.ask()
        assert before is not None
        session.writer.record(epoch(2, 0, 0.5))
        session.writer.pause(2)
        assert session.read(2).state == "paused"
    with opened(study) as session:
        after = session.queue.ask()
        assert after == before
        assert not session.writer.record(epoch(2, 0, 0.9)), "a known epoch is not replaced"
        session.writer.record(epoch(2, 1, 0.6))
        session.writer.complete(2)
        assert [h.metrics["val/accuracy"] for h in session.read(2).history] == [0.5, 0.6]


def test_an_epoch_that_a_kill_removed_from_the_history_is_recorded_again(tmp_path: Path) -> None:
    study = planned(tmp_path)
    with opened(study) as session:
        session.queue.ask()
        session.writer.record(epoch(0, 0, 0.5))
        session._reader.running.clear()  # killed before the flush
    with opened(study) as session:
        session.queue.ask()
        assert session.writer.record(epoch(0, 0, 0.5)), "a warning would be an error here"
        assert session.writer.flush() == [0]
        assert session.writer.flush() == []
        assert [h.index for h in session.writer.complete(0).history] == [0]


def test_the_budget_is_a_total_and_a_paused_trial_does_not_spend_it(tmp_path: Path) -> None:
    study = planned(tmp_path, "study.trials=3")
    with opened(study) as session:
        session.queue.ask()
        session.writer.pause(0)
        assert len(play(session, 99)) == 3
        assert session.queue.ask() is None
    with opened(planned(tmp_path, "study.trials=4")) as session:
        assert len(play(session, 99)) == 1


@pytest.mark.parametrize(
    ("rule", "direction", "value"), [("last", "maximize", 0.2), ("best", "maximize", 0.9), ("best", "minimize", 0.1)]
)
def test_the_objective_is_the_last_epoch_or_the_best_one(
    tmp_path: Path, rule: str, direction: str, value: float
) -> None:
    study = planned(tmp_path, f"study.objective={rule}", f"study.direction={direction}")
    with opened(study) as session:
        session.queue.ask()
        for e, v in enumerate((0.1, 0.9, 0.2)):
            session.writer.record(epoch(0, e, v))
        assert session.writer.complete(0).objective == value


def test_a_failed_trial_keeps_its_reason_and_counts(tmp_path: Path) -> None:
    with opened(planned(tmp_path, "study.trials=1")) as session:
        session.queue.ask()
        record = session.writer.fail(0, "error", "Traceback ...")
        assert (record.state, record.reason, record.detail) == ("failed", "error", "Traceback ...")
        assert session.queue.ask() is None


def test_incomparable_settings_are_refused_with_their_differences(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as session:
        play(session, 1)
    with pytest.raises(ConfigError) as caught:
        open_study(planned(tmp_path, "optimizer.lr=interval(0.01,0.1)", "data.batch_size=64"))
    text = str(caught.value)
    assert "data.batch_size: was 32, is 64" in text
    assert "search.optimizer.lr: was 0.0001 to 0.1, log, is 0.01 to 0.1" in text
    assert "study.name=" in text
    with opened(planned(tmp_path)):
        pass  # the refused call has unlocked the study


def test_extending_copies_the_trials_into_the_wider_space(tmp_path: Path) -> None:
    with opened(planned(tmp_path, "study.trials=5")) as session:
        play(session, 4)
        session.queue.ask()
        session.writer.record(epoch(4, 0, 0.5))
        session.writer.pause(4)
        old = session.records()
    wider = planned(tmp_path, "study.trials=40", "optimizer.lr=tag(log,interval(1e-6,1))", "data.batch_size=16,32")
    with pytest.raises(ConfigError, match="--extend"):
        open_study(wider)
    with opened(wider, extend=True) as session:
        new = session.records()
        assert [(r.number, r.state, r.history, r.objective) for r in new] == [
            (r.number, r.state, r.history, r.objective) for r in old
        ]
        assert all(n.params == {**o.params, "data.batch_size": 32} for n, o in zip(new, old, strict=True))
        play(session, 99)
        lrs = [r.params["optimizer.lr"] for r in session.records()]
        assert any(lr < 1e-4 or lr > 1e-1 for lr in lrs), "the sampler leaves the old bounds"
    with opened(wider) as session:
        assert len(session.records()) == 40, "the extended study is resumed"


def test_extending_returns_an_interrupted_trial_to_the_queue(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as session:
        session.queue.ask()
    wider = planned(tmp_path, "optimizer.lr=tag(log,interval(1e-6,1))")
    with opened(wider, extend=True) as session:
        assert session.read(0).state == "paused"
        assignment = session.queue.ask()
        assert assignment is not None
        assert assignment.number == 0


def test_extending_gives_an_old_trial_the_value_that_it_trained_with(tmp_path: Path) -> None:
    line = ("search=none", "optimizer=adam,sgd", "sampler=random", "study.trials=8")
    with opened(planned(tmp_path, *line)) as session:
        play(session, 99)
    with opened(planned(tmp_path, *line, "optimizer.lr=tag(log,interval(1e-4,1))"), extend=True) as session:
        had = {r.params["optimizer"]: r.params["optimizer.lr"] for r in session.records()}
    assert had == {"adam": 0.001, "sgd": 0.01}


def test_extending_refuses_a_space_that_shrank(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as session:
        play(session, 1)
    with pytest.raises(ConfigError, match="does not contain all of"):
        open_study(planned(tmp_path, "optimizer.lr=tag(log,interval(1e-3,1))"), extend=True)


def test_a_second_process_learns_which_one_works_on_the_study(tmp_path: Path) -> None:
    study = planned(tmp_path)
    with opened(study):
        with pytest.raises(StudyInUse, match=f"process {os.getpid()} "):
            open_study(study)
        holder = holder_file(study.settings.location, study.name)
        content = holder.read_text()
        holder.unlink()  # the lock is taken, but its owner is not written yet
        threading.Timer(0.2, holder.write_text, [content]).start()
        with pytest.raises(StudyInUse, match=f"process {os.getpid()} "):
            open_study(study)
    with opened(study):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only there the start of a process follows the clock")
def test_setting_the_clock_does_not_make_a_live_process_look_dead(tmp_path: Path) -> None:
    study = planned(tmp_path)
    session, _ = open_study(study)
    file = holder_file(study.settings.location, study.name)
    holder = json.loads(file.read_text())
    file.write_text(json.dumps({**holder, "created": holder["created"] + 3600}))
    assert holder_of(study.settings.location, study.name)["pid"] == os.getpid()  # type: ignore[index]
    file.write_text(json.dumps({**holder, "created": holder["created"] + 3600, "boot": "another"}))
    assert holder_of(study.settings.location, study.name) is None, (
        "after a restart of the machine it is another process"
    )
    session.close()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from overnight.search.build_plan import build_plan;"
        "from overnight.study.open import open_study;"
        "l, _ = open_study(build_plan(sys.argv[1:])); l.queue.ask(); os.kill(os.getpid(), 9)"
    )
    study = planned(tmp_path)
    subprocess.run([sys.executable, "-c", code, f"home={tmp_path}", "study.trials=14"], check=False)
    found, _ = view(study.settings.location)
    assert found is not None
    assert found.state == "stalled"
    session, messages = open_study(study)
    assert messages == ["1 interrupted trial(s) are resumed: 0"]
    assert session.trials()[0].state == TrialState.WAITING
    session.close()


def test_view_changes_nothing_and_returns_the_state(tmp_path: Path) -> None:
    study = planned(tmp_path, "study.trials=2")
    assert view(study.settings.location) == (None, [])
    assert not list(tmp_path.iterdir())
    with opened(study) as session:
        play(session, 1)
        found, names = view(study.settings.location)
        assert found is not None
        assert (names, found.state, found.count("complete")) == (["digits-mlp"], "running", 1)
    assert view(study.settings.location)[0].state == "paused"  # type: ignore[union-attr]
    with opened(study) as session:
        play(session, 1)
    assert view(study.settings.location)[0].state == "complete"  # type: ignore[union-attr]


def test_a_home_of_an_unreleased_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"anything")
    study = planned(tmp_path)
    calls: list[Callable[[], Any]] = [
        lambda: open_study(study),
        lambda: view(study.settings.location),
        lambda: study_names(study.settings.location),
    ]
    for call in calls:
        with pytest.raises(ConfigError) as caught:
            call()
        (problem,) = caught.value.problems
        assert problem == (
            f"home: must be new or of this version, got '{tmp_path}', which an unreleased older version wrote; "
            "take a new home=..."
        )
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("ledger.db", b"anything")]


def test_an_interrupted_creation_is_completed(tmp_path: Path) -> None:
    study = planned(tmp_path)
    tmp_path.mkdir(exist_ok=True)
    storage = open_for_work(study.settings.location)
    create.load(storage, study, study.name)
    dispose(storage)
    with opened(study) as session:
        assert [t.state for t in session.trials()] == [TrialState.WAITING]
        assert session.queue.ask().config == study.config({})  # type: ignore[union-attr]


def test_ask_record_and_complete_take_less_than_a_second(tmp_path: Path) -> None:
    with opened(planned(tmp_path, "study.trials=40")) as session:
        started = time.perf_counter()
        assert len(play(session, 99)) == 40
        assert (time.perf_counter() - started) / 40 < 1.0


def test_a_grid_ends_when_every_point_has_a_trial(tmp_path: Path) -> None:
    study = planned(tmp_path, *SMALL_SPACE, "sampler=grid", "study.trials=99")
    with opened(study) as session:
        played = play(session, 99)
    values = {json.dumps(v) for _, v in played[1:]}
    # lr: 3, for sgd times 2 of momentum, and trial 0, the baseline, which is outside: its lr is none of the three
    assert (len(played), len(values), study.budget) == (10, 9, 10)
    found, _ = view(study.settings.location)
    assert found is not None
    assert (found.state, found.budget) == ("complete", 10)
    with opened(study) as session:
        assert session.queue.ask() is None


def test_a_repeated_point_is_drawn_again_while_untried_points_remain(tmp_path: Path) -> None:
    space = ("search=none", "optimizer=adam,sgd", "optimizer.momentum=0.1,0.5", "optimizer.lr=0.001,0.5,0.6")
    study = planned(tmp_path, *space, "sampler=random", "study.trials=13")
    session, messages = open_study(study)
    assert messages == [
        "search: there are 9 points for 13 trials; once each has been tried, points are trained again with another seed"
    ]
    played = [json.dumps(v) for _, v in play(session, 99)]
    session.close()
    assert len(set(played[:8])) == 8
    assert len(played) == 13, "repeats are accepted in the end, each a trial with a seed of its own"


@pytest.mark.parametrize("sampler", ["qmc", "cma_es", "gp"])
def test_a_sampler_without_conditional_parameters_reports_what_it_draws_at_random(tmp_path: Path, sampler: str) -> None:
    session, messages = open_study(planned(tmp_path, f"sampler={sampler}"))
    session.close()
    (line,) = messages
    assert line.startswith(f"sampler: {sampler} draws at random ")
    assert all(n in line for n in ("model.hidden_sizes.1", "model.hidden_sizes.2", "optimizer.momentum"))
    assert ("model.activation" in line) == (sampler == "cma_es")
    assert "optimizer.lr" not in line


def test_the_points_of_qmc_are_spread_more_evenly_than_random_ones(tmp_path: Path) -> None:
    from scipy.stats import qmc

    spread = {}
    for sampler in ("qmc", "random"):
        line = ("search=none", "model.dropout=interval(0,1)", "optimizer.weight_decay=interval(0,1)")
        with opened(planned(tmp_path / sampler, *line, f"sampler={sampler}", "study.trials=17")) as session:
            points = [session.queue.ask() for _ in range(17)]
        drawn = [[p.values["model.dropout"], p.values["optimizer.weight_decay"]] for p in points[1:] if p]
        spread[sampler] = qmc.discrepancy(drawn)
    assert spread["qmc"] < spread["random"] / 2


ENQUEUED = "study.enqueue=[{optimizer.lr:0.01},{optimizer:sgd,optimizer.momentum:0.5},{optimizer.lr:0.001}]"


def test_enqueued_entries_follow_trial_0_each_once(tmp_path: Path) -> None:
    study = planned(tmp_path, ENQUEUED)
    with opened(study) as session:
        played = play(session, 2)
    with opened(study) as session:
        played += play(session, 2)
    (_, baseline), (_, second), (_, third), _ = played
    assert second == {**baseline, "optimizer.lr": 0.01}
    assert third == {**baseline, "optimizer": "sgd", "optimizer.lr": 0.01, "optimizer.momentum": 0.5}
    assert len({json.dumps(v) for _, v in played}) == 4, "the third entry is the baseline, which is trial 0"
    more = planned(tmp_path, ENQUEUED.replace("[{", "[{model.activation:gelu},{", 1))
    with opened(more) as session:
        (_, fifth), (_, sixth) = play(session, 2)
        assert fifth == {**baseline, "model.activation": "gelu"}
        assert session.read(4).params["model.activation"] == "gelu"
    with opened(more) as session:
        assert sum(t.state == TrialState.WAITING for t in session.trials()) == 0
    assert sixth not in (baseline, second, third, fifth)


def test_an_entry_waits_while_the_budget_is_spent(tmp_path: Path) -> None:
    with opened(planned(tmp_path, "study.trials=2")) as session:
        play(session, 99)
    late = "study.enqueue=[{optimizer.lr:0.02}]"
    session, messages = open_study(planned(tmp_path, "study.trials=2", late))
    assert session.queue.ask() is None
    session.close()
    assert messages == ["study.enqueue: 1 of its entries wait until study.trials, which is spent, is raised"]
    with opened(planned(tmp_path, "study.trials=3", late)) as session:
        assert [v["optimizer.lr"] for _, v in play(session, 99)] == [0.02]


def test_trial_0_keeps_the_values_that_it_started_with(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "mine.yaml"
    line = ("model=mine", "search=none", "model.width=int(interval(1,9))", "sampler=random", "study.trials=3")
    made = []
    for width in (20, 30):
        file.write_text(f"_target_: a.B\nwidth: {width}\n")
        made.append(build_plan([f"home={tmp_path}", *line], tmp_path))
    for study in made:
        with opened(study) as session:
            assignment = session.queue.ask()
            assert assignment is not None
            assert assignment.config["model"]["width"] == 20
            assert session.read(0).params == {"model.width": 20}
            session.writer.pause(0)


def test_extending_a_grid_runs_the_added_points(tmp_path: Path) -> None:
    line = ("search=none", "sampler=grid", "study.trials=99")
    with opened(planned(tmp_path, *line, "optimizer.lr=0.5,0.6")) as session:
        assert len(play(session, 99)) == 3
    wider = planned(tmp_path, *line, "optimizer.lr=0.5,0.6,0.7", "model.dropout=0.0,0.1")
    with opened(wider, extend=True) as session:
        assert len(play(session, 99)) == 4
        assert len({json.dumps(r.params) for r in session.records()}) == 7


@pytest.mark.parametrize("pruner", ["scheduler=median", "scheduler=hyperband"])
def test_no_trial_is_pruned_before_the_configured_number_of_epochs(tmp_path: Path, pruner: str) -> None:
    at = {"scheduler=median": "scheduler.warmup_epochs=2", "scheduler=hyperband": "scheduler.min_epochs=2"}[pruner]
    more = ["scheduler.startup_trials=1"] if pruner == "scheduler=median" else ["scheduler.reduction_factor=2"]
    pruned_after = set()
    with opened(planned(tmp_path, pruner, at, *more, "trainer.max_epochs=4", "study.trials=12")) as session:
        for number in range(12):
            session.queue.ask()
            for e in range(4):
                session.writer.record(epoch(number, e, 1.0 / (number + 1)))
                if session.writer.should_prune(number):
                    pruned_after.add(e + 1)
                    session.writer.prune(number)
                    break
            else:
                session.writer.complete(number)
    assert min(pruned_after) == 2
