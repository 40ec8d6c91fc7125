"""What a study session suggests: the same after interruptions, with every sampler."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from overnight.search.custom_sampler import suggest
from overnight.search.plan import Plan
from overnight.study.open import open_study
from overnight.study.session import StudySession
from overnight.study.snapshot import view
from overnight.system import forkserver
from support.sessions import opened, planned, play

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

    assert suggested_with_interruptions(planned(tmp_path / "cut", *line), len(whole), opened) == whole


def suggested_with_interruptions(
    cut: Plan, trials: int, open_here: Callable[[Plan], AbstractContextManager[StudySession]]
) -> list[tuple[int, dict[str, Any]]]:
    """Play a study that is killed twice: while a trial runs, and while parameters are suggested."""
    with open_here(cut) as session:
        suggested = play(session, 3)
        session.queue.ask()  # the machine goes down while it runs
    with open_here(cut) as session:
        suggested += play(session, trials - 5)
        half_suggested = session.study.ask()  # killed while parameters are suggested
        name, dist = next(iter(cut.space.names().items()))
        half_suggested._suggest(name, dist)
    with open_here(cut) as session:
        return suggested + play(session, 99)


def test_tpe_passes_over_tried_points_so_that_fewer_suggestions_have_to_be_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.search.sampler.MAX_REDRAWS", 0)
    line = ("search=none", "model.dropout=0.0,0.1,0.2,0.3", "data.batch_size=8,16,32,64", "study.trials=40")
    line += ("optimizer.lr=range(0.1,0.9,0.1)", "scheduler=halving")

    def repeated(home: Path) -> int:
        with opened(planned(home, *line)) as session:
            points = [json.dumps(values) for _, values in play(session, 40)]
        return len(points) - len(set(points))

    passing_over = repeated(tmp_path / "a")
    monkeypatch.setattr("overnight.search.sampler.SeededSampler._is_tried", lambda *_: None)
    assert passing_over <= repeated(tmp_path / "b") / 2


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
    assert suggested_with_interruptions(cut, trials, opened_here) == whole


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


def test_a_grid_ends_when_every_point_has_a_trial(tmp_path: Path) -> None:
    study = planned(tmp_path, *SMALL_SPACE, "sampler=grid", "study.trials=99")
    with opened(study) as session:
        played = play(session, 99)
    values = {json.dumps(v) for _, v in played[1:]}
    # lr: 3, for sgd times 2 of momentum, and trial 0, the baseline, which is outside: its lr is none of the three
    assert (len(played), len(values), study.budget.trials) == (10, 9, 10)
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
