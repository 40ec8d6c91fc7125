"""Suggestions of a sampler that the configuration names by `_target_`, in a helper process.

The sampler is created for each suggestion, in a study in memory that is a copy of the stored one. What it stores
there, such as the generation of a trial or the state of CMA-ES, is kept with the trial that it was asked for, in the
same transaction as the parameters. So a suggestion depends on the seed, the trial number and the other trials alone.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.samplers import BaseSampler, QMCSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from overnight.config.problems import Problems
from overnight.search import optuna_objects
from overnight.search.attributes import OUTSIDE, SAMPLER
from overnight.search.distributions import random_value, single_value
from overnight.search.plan import Plan
from overnight.search.schedulers.pruners import make_pruner
from overnight.search.seeds import derive_seed
from overnight.system.helper_process import Fork, HelperError, HelperProcess

# Trials of the study that a sampler is tried on: with fewer, Optuna's samplers have no model yet.
_TRIED_ON = 12
# A sampler that takes longer for one suggestion is taken to hang.
_ANSWERS_WITHIN_S = 600.0


@dataclass(frozen=True)
class Question:
    """Everything that a suggestion depends on.

    Attributes:
        number: The trial that is asked for.
        fixed: Parameter name -> value that the trial has already.
        trials: The trials of the study, in the order of their numbers.
    """

    plan: Plan
    study_name: str
    number: int
    fixed: dict[str, Any]
    trials: tuple[FrozenTrial, ...]


@dataclass(frozen=True)
class Suggestion:
    """A point, and what the sampler stored.

    Attributes:
        params: Parameter name -> value.
        trial_attrs: The system attributes that it set on the trial.
        study_attrs: The system attributes that it set on the study.
    """

    params: dict[str, Any]
    trial_attrs: dict[str, Any] = field(default_factory=dict)
    study_attrs: dict[str, Any] = field(default_factory=dict)


def make_question(
    plan: Plan, study_name: str, trials: list[FrozenTrial], number: int, fixed: Mapping[str, Any]
) -> Question:
    """Return the question for trial `number`. The trials leave out what no sampler reads."""
    return Question(plan, study_name, number, dict(fixed), tuple(map(_without_user_attrs, trials)))


def _without_user_attrs(trial: FrozenTrial) -> FrozenTrial:
    """Present a trial outside the space as failed: without some parameters it would hide them from the sampler."""
    seen = copy.copy(trial)
    seen.user_attrs = {}
    if trial.user_attrs.get(OUTSIDE) and trial.state.is_finished():
        seen.state, seen.values = TrialState.FAIL, None
    return seen


def suggest(question: Question) -> Suggestion:
    """Suggest a point. Raises ConfigError where the sampler can't be built, and what the sampler raises."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    plan, number = question.plan, question.number
    storage = InMemoryStorage()
    study = optuna.create_study(
        storage=storage,
        study_name=question.study_name,
        direction=plan.settings.study.direction,
        pruner=make_pruner(plan),
    )
    study_attrs: dict[str, Any] = {}
    for trial in question.trials:
        seen = trial
        if trial.number == number:
            seen = FrozenTrial(
                number=number, trial_id=number, state=TrialState.RUNNING, value=None, params={}, distributions={},
                datetime_start=trial.datetime_start, datetime_complete=None, user_attrs={}, system_attrs={},
                intermediate_values={},
            )  # fmt: skip
        else:
            study_attrs |= trial.system_attrs.get(SAMPLER) or {}
        storage.create_new_trial(study._study_id, seen)  # its id is its number
    for key, value in study_attrs.items():
        storage.set_study_system_attr(study._study_id, key, value)
    params = _draw(make_sampler(plan, number), question, study, storage.get_trial(number))
    after = storage.get_study_system_attrs(study._study_id)
    return Suggestion(
        params,
        dict(storage.get_trial(number).system_attrs),
        {key: value for key, value in after.items() if key not in study_attrs or study_attrs[key] != value},
    )


def make_sampler(plan: Plan, number: int) -> BaseSampler:
    """Make the sampler of the plan for trial `number`. Raises ConfigError."""

    def seed_for(made: Any, given: int | None) -> int:
        seed = plan.settings.seed if given is None else given
        # A low-discrepancy sequence is one sequence for all trials.
        is_sequence = isinstance(made, type) and issubclass(made, QMCSampler)
        return derive_seed(seed, "sampler", *([] if is_sequence else [number]))

    target, problems = plan.settings.sampler.target, Problems()
    assert target is not None
    sampler = optuna_objects.build(target, "sampler", BaseSampler, problems, seed_for)
    problems.raise_if_any()
    assert isinstance(sampler, BaseSampler)
    return sampler


def _draw(sampler: BaseSampler, question: Question, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    """Draw what the sampler samples jointly, and then the other parameters one by one."""
    sampler.before_trial(study, trial)
    joint_space = sampler.infer_relative_search_space(study, trial)
    joint = sampler.sample_relative(study, trial, joint_space)

    def draw(name: str, dist: optuna.distributions.BaseDistribution) -> Any:
        if name in question.fixed:
            value = question.fixed[name]
        elif dist.single():
            value = single_value(dist)
        elif name in joint and dist._contains(dist.to_internal_repr(joint[name])):
            value = joint[name]
        else:
            value = sampler.sample_independent(study, trial, name, dist)
        trial.params = {**trial.params, name: value}
        trial.distributions = {**trial.distributions, name: dist}
        return value

    question.plan.space.draw(draw, question.plan.baseline)
    return trial.params


class CustomSampler:
    """Asks the helper process for suggestions."""

    def __init__(self, fork: Fork) -> None:
        self._helper = HelperProcess(fork, suggest)

    def ask(self, question: Question) -> Suggestion:
        """Suggest a point. A process that dies is started again once.

        Raises:
            RuntimeError: There is no suggestion. The message has the reason and a remedy.
        """
        name = question.plan.settings.sampler.label
        failure = ""
        for _ in range(2):
            try:
                self._helper.send(question)
                if not self._helper.poll(_ANSWERS_WITHIN_S):
                    self._helper.close()
                    raise RuntimeError(
                        f"sampler: {name} suggested no point within {_ANSWERS_WITHIN_S:g} s; resume with sampler=tpe"
                    )
                suggestion = self._helper.receive()
                assert isinstance(suggestion, Suggestion)
                return suggestion
            except HelperError as error:
                raise RuntimeError(
                    f"sampler: {name} could not suggest a point; resume the study with sampler=tpe\n{error}"
                ) from None
            except (EOFError, OSError) as error:
                failure = self._helper.end_of(error)
        raise RuntimeError(f"sampler: the process of {name} {failure} (tried twice); resume with sampler=tpe")

    def close(self) -> None:
        self._helper.close()


def find_problems(plan: Plan, fork: Fork) -> Problems:
    """Return why the sampler of a plan can't be built, or can't suggest a point of its space. It is tried once."""
    helper, problems = HelperProcess(fork, _try), Problems()
    try:
        helper.send(plan)
        if helper.poll(_ANSWERS_WITHIN_S):
            problems.extend(helper.receive())
        else:
            name = plan.settings.sampler.label
            problems.add(f"sampler: {name} must suggest a point within {_ANSWERS_WITHIN_S:g} s; take sampler=tpe")
    except HelperError as error:
        last_line = str(error).strip().splitlines()[-1]
        problems.add(f"sampler: {plan.settings.sampler.label} must be usable, got {last_line}; take sampler=tpe")
    except (EOFError, OSError) as error:
        why = f"a process that {helper.end_of(error)}"
        problems.add(f"sampler: {plan.settings.sampler.label} must be usable, got {why}; take sampler=tpe")
    finally:
        helper.close()
    return problems


def _try(plan: Plan) -> list[str]:
    """Ask for one trial of a study with random trials. Runs in the helper process."""
    target, problems = plan.settings.sampler.target, Problems()
    optuna_objects.build(target or {}, "sampler", BaseSampler, problems, lambda _, given: given or 0)
    if problems or not plan.space.parameters:
        return problems
    rng, trials = random.Random(0), []
    for number in range(_TRIED_ON):
        params: dict[str, Any] = {}

        def draw(name: str, dist: Any, params: dict[str, Any] = params) -> Any:
            params[name] = random_value(dist, rng)
            return params[name]

        plan.space.draw(draw, plan.baseline)
        names = plan.space.names()
        trial = create_trial(params=params, distributions={n: names[n] for n in params}, value=rng.random())
        trial.number = number
        trials.append(trial)
    running = create_trial(state=TrialState.RUNNING)
    running.number = _TRIED_ON
    try:
        suggest(make_question(plan, plan.name, [*trials, running], _TRIED_ON, {}))
    except Exception as error:
        reason = " ".join(str(error).split())
        problems.add(
            f"sampler: {plan.settings.sampler.label} must be able to suggest a point of the search space, got "
            f"{type(error).__name__}: {reason}; take another sampler, e.g. sampler=tpe"
        )
    return problems
