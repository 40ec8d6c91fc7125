"""Samplers and pruners that a configuration names by `_target_`: what is built, and what is refused before a study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from overnight.config.problems import ConfigError
from overnight.search import custom_sampler
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.search.schedulers.pruners import make_pruner
from overnight.study import plan_trust
from support import documented

SAMPLER, PRUNER = "sampler._target_=optuna.samplers.", "scheduler._target_=optuna.pruners."


def planned(home: Path, *overrides: str) -> Plan:
    return build_plan([f"home={home}", *overrides])


def problems_of(home: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        planned(home, *overrides)
    return raised.value.problems


def test_the_documented_sampler_in_a_file_is_stored_with_the_plan(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "sampler"
    folder.mkdir(parents=True)
    (text,) = (b.text for b in documented.blocks() if b.text.startswith("_target_: optuna.samplers"))
    (folder / "genetic.yaml").write_text(text)
    plan = build_plan([f"home={tmp_path}", "sampler=genetic"], tmp_path / "conf")
    stored = Plan.from_json(plan.to_json())
    assert stored.settings.sampler == plan.settings.sampler
    sampler = custom_sampler.make_sampler(stored, 3)
    assert isinstance(sampler, optuna.samplers.NSGAIISampler)
    assert sampler.population_size == 20
    assert isinstance(sampler._child_generation_strategy._crossover, optuna.samplers.nsgaii.UniformCrossover)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            (f"{SAMPLER}NSGAIISampler", "+sampler.popultion_size=20"),
            "sampler.popultion_size: optuna.samplers.NSGAIISampler has no such argument, got 20; did you mean "
            "sampler.population_size?",
        ),
        ((f"{SAMPLER}NSGASampler",), "did you mean NSGAIISampler?"),
        ((f"{SAMPLER}GridSampler",), "take sampler=grid"),
        ((f"{SAMPLER}BruteForceSampler", "search=none", "optimizer.lr=interval(0.1,1)"), "needs a countable number"),
        ((f"{SAMPLER}CmaEsSampler", "search=none", "model.activation=relu,gelu"), "needs a number that every trial"),
        ((f"{SAMPLER}PartialFixedSampler", "+sampler.fixed_params={}"), "add +sampler.base_sampler=VALUE"),
        (("sampler.n_startup_trials=4",), "to hand a new key to the class: +sampler.n_startup_trials=..."),
        (("sampler._target_=AutoSampler", "+sampler.package=samplers/auto_sampler"), "pip install optunahub"),
        ((f"{PRUNER}ThresholdPruner",), "Either lower or upper must be specified"),
        ((f"{PRUNER}PercentilePruner",), "add +scheduler.percentile=VALUE"),
        (("scheduler._target_=collections.OrderedDict",), "must be an Optuna BasePruner"),
        (
            (
                f"{PRUNER}PatientPruner",
                "+scheduler.patience=1",
                "+scheduler.wrapped_pruner={_target_: optuna.pruners.Nop}",
            ),
            "scheduler.wrapped_pruner._target_: must name something that exists",
        ),
    ],
    ids=lambda value: value[0].rpartition(".")[2] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line_with_its_remedy(
    tmp_path: Path, line: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optunahub", None)
    (found,) = problems_of(tmp_path / "home", *line)
    assert problem in found
    assert "\n" not in found
    assert not (tmp_path / "home").exists()


class NeedsTwoObjectives(optuna.samplers.RandomSampler):
    """A sampler that fails on every study of one objective."""

    def infer_relative_search_space(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> dict:  # noqa: ARG002
        raise ValueError("needs two objectives")


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (
            f"{__name__}.NeedsTwoObjectives",
            f"sampler: {__name__}.NeedsTwoObjectives must be able to suggest a point of the search space, got "
            "ValueError: needs two objectives; take another sampler, e.g. sampler=tpe",
        ),
        (f"{__name__}.planned", f"sampler.home: must be given, because {__name__}.planned needs it"),
        ("optuna.pruners.NopPruner", "sampler._target_: must be an Optuna BaseSampler"),
    ],
)
def test_a_sampler_that_cannot_suggest_is_found_before_the_first_trial(
    tmp_path: Path, target: str, problem: str
) -> None:
    (found,) = custom_sampler._try(planned(tmp_path, f"sampler._target_={target}"))
    assert problem in found


def test_pruners_are_built_with_what_is_nested_in_them(tmp_path: Path) -> None:
    line = (
        "+scheduler.patience=2",
        "+scheduler.wrapped_pruner={_target_: optuna.pruners.WilcoxonPruner, p_threshold: 0.2}",
    )
    pruner = make_pruner(planned(tmp_path, f"{PRUNER}PatientPruner", *line))
    assert isinstance(pruner, optuna.pruners.PatientPruner)
    assert isinstance(pruner._wrapped_pruner, optuna.pruners.WilcoxonPruner)
    for name, arguments in (("HyperbandPruner", ()), ("NopPruner", ()), ("SuccessiveHalvingPruner", ())):
        built = make_pruner(planned(tmp_path, f"{PRUNER}{name}", *arguments))
        assert type(built).__name__ == name


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ((f"{SAMPLER}NSGAIISampler",), None),
        ((f"{PRUNER}WilcoxonPruner",), None),
        ((f"{SAMPLER}CmaEsSampler",), "sampler: must not be cma_es for a worker"),
        (
            (
                f"{SAMPLER}PartialFixedSampler",
                "+sampler.fixed_params={}",
                "+sampler.base_sampler._target_=os.system",
            ),
            "sampler.base_sampler._target_: must be under a package that this worker's operator trusts",
        ),
        (("sampler._target_=my_samplers.Mine",), "sampler._target_: must be under a package"),
        (("sampler._target_=optuna.samplers.nsgaii.os.Sampler",), "sampler._target_: must be under a package"),
        (("scheduler._target_=optuna.pruners.NopPruner",), None),
    ],
)
def test_a_worker_runs_only_samplers_and_pruners_that_it_trusts(
    tmp_path: Path, line: tuple[str, ...], problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.search.validation.optuna_objects.check", lambda *_: None)
    found = plan_trust.find_problems(planned(tmp_path, *line))
    assert len(found) == (problem is not None)
    assert all(str(problem) in line for line in found)


def test_a_sampler_that_hangs_is_ended_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_sampler, "_ANSWERS_WITHIN_S", 0.05)
    plan = planned(tmp_path, f"{SAMPLER}RandomSampler")
    ended = []

    class Hangs:
        """A helper process that never answers."""

        def __init__(self, *_: Any) -> None: ...

        def send(self, question: Any) -> None: ...

        def poll(self, timeout_s: float) -> bool:  # noqa: ARG002
            return False

        def close(self) -> None:
            ended.append(self)

    monkeypatch.setattr(custom_sampler, "HelperProcess", Hangs)
    fork: Any = None
    (problem,) = custom_sampler.find_problems(plan, fork)
    assert "must suggest a point within 0.05 s; take sampler=tpe" in problem
    with pytest.raises(RuntimeError, match=r"suggested no point within 0\.05 s"):
        custom_sampler.CustomSampler(fork).ask(custom_sampler.make_question(plan, "s", [], 0, {}))
    assert len(ended) == 2
