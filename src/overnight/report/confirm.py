"""The confirmation: the best configurations of a search are trained again on new seeds.

The search chooses its finalists by one seed each, and so partly by luck. The seeds of the confirmation are independent
of that choice. Its trials belong to a second Optuna study, NAME.confirm.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Iterable, Sequence

from overnight.config.values import fingerprint
from overnight.protocol import Tested
from overnight.runner import trial_process
from overnight.runner.trial_spec import trial_spec
from overnight.search import deadline
from overnight.search.deadline import ConfirmationSize
from overnight.search.plan import CONFIRM_SUFFIX, Plan, devices_of
from overnight.search.record import Confirms, TrialRecord, config_of, ranked, typical_units
from overnight.search.seeds import derive_seed
from overnight.search.space import SearchSpace
from overnight.study.session import StudySession

_BASELINE = 0  # the number of the baseline's trial
# All weights are kept until the networks are tested. Keeping only the best would count finalists of an earlier launch,
# and delete the worst seeds of new finalists before their test.
_ALL_WEIGHTS = 1_000_000


def finalists(plan: Plan, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the best complete trials, best first, each configuration once; none if the study confirms nothing."""
    if not plan.confirmation_trials:
        return []
    distinct: dict[str, TrialRecord] = {}
    for record in ranked(records, plan.settings):
        distinct.setdefault(_key(plan, record), record)
    return list(distinct.values())[: plan.settings.study.confirm.top]


def baseline(plan: Plan, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the trial of the baseline, or the finalist with the same configuration; None if it could not train."""
    first = next((r for r in records if r.number == _BASELINE and r.state in ("complete", "pruned")), None)
    if first is None:
        return None
    same = (f for f in finalists(plan, records) if _key(plan, f) == _key(plan, first))
    return next(same, first)


def confirmation_plan(plan: Plan, records: Sequence[TrialRecord]) -> Plan:
    """Return the plan of the confirmation: without a search space and pruning, with all weights kept."""
    wanted = len(_wanted(plan, records))
    study = dataclasses.replace(
        plan.settings.study,
        name=plan.name + CONFIRM_SUFFIX,
        trials=max(wanted, 1),
        keep_checkpoints=_ALL_WEIGHTS,
        enqueue=(),
    )
    sampler = dataclasses.replace(plan.settings.sampler, name="random")  # never used
    scheduler = dataclasses.replace(plan.settings.scheduler, name="none")
    pictures = dataclasses.replace(plan.settings.pictures, when="never")
    settings = dataclasses.replace(plan.settings, study=study, sampler=sampler, scheduler=scheduler, pictures=pictures)
    return dataclasses.replace(plan, settings=settings, space=SearchSpace(()))


def affordable_size(
    plan: Plan, records: Sequence[TrialRecord], confirmations: Sequence[TrialRecord], available_s: float, slots: int
) -> ConfirmationSize:
    """Return the largest confirmation whose remaining trials fit into `available_s` seconds."""
    epochs = typical_units(records, plan)
    held = {_pair(r.confirms): r for r in confirmations if r.confirms is not None}
    everything = _wanted(plan, records)
    chosen = [f.number for f in finalists(plan, records)]

    def seconds(top: int, seeds: int) -> float:
        out = set(chosen[top:]) - {_BASELINE}
        lengths = [
            deadline.confirmation_trial_s(c, held.get(_pair(c), r), confirmations, records, epochs)
            for r, c in everything
            if r.number not in out and c.nth_seed <= seeds and not (_pair(c) in held and held[_pair(c)].done)
        ]
        return deadline.confirmation_s(lengths, seeds, deadline.test_set_s(records), slots)

    return deadline.largest_affordable(len(chosen), plan.confirm_seeds, seconds, available_s)


def enqueue(
    session: StudySession, plan: Plan, records: Sequence[TrialRecord], top: int | None = None
) -> list[tuple[int, int]]:
    """Enqueue the trials that the confirmation lacks. Calling it again enqueues none twice.

    The order is seed by seed, so that finalists have seeds in common if the confirmation is cut short.

    Args:
        top: Number of finalists that there is time for; None for all.

    Returns:
        (number of the trial, number of the seed) of all trials of the confirmation, in order.
    """
    wanted = _wanted(plan, records, top)
    pairs = [_pair(confirms) for _, confirms in wanted]
    with session.coordinator.lock("finalists"):
        session.coordinator.poll()
        held = {_pair(r.confirms) for r in session.records() if r.confirms is not None}
        for record, confirms in wanted:
            if _pair(confirms) not in held:
                session.queue.add_confirmation(config_of(record, plan), record.params, confirms)
        session.attributes.set_wanted(pairs)
    return pairs


def evaluate_on_test_set(session: StudySession, trials: Iterable[int], until: float, duration_s: float) -> bool:
    """Evaluate the networks of a confirmation on the test set and store the results. Skips those that have one.

    Args:
        trials: Numbers of the trials of the search whose networks are evaluated.
        until: The deadline as Unix time in seconds; infinite for none.
        duration_s: Expected seconds for the first network.

    Returns:
        False if the deadline came before every network was evaluated.
    """
    tested = session.attributes.tests
    for record in session.records():
        confirms = record.confirms
        if confirms is None or confirms.trial not in trials or record.state != "complete" or record.number in tested:
            continue
        if not (session.plan.paths.checkpoint(record.number) / "weights.ckpt").exists():
            if session.coordinator.runs_all_trials:  # otherwise they may be on another machine
                session.attributes.add_test(Tested(record.number, {}, "its weights were deleted before it won"))
            continue
        began = time.time()
        if not deadline.fits(duration_s, began, until):
            return False
        outcome = _evaluate(session.plan, record, confirms, until)
        if outcome is None:
            return False
        session.attributes.add_test(outcome)
        duration_s = time.time() - began
    return True


def _evaluate(plan: Plan, record: TrialRecord, confirms: Confirms, until: float) -> Tested | None:
    """Evaluate one network in a process of its own; None if the deadline ended it."""
    assert record.config is not None
    settings, log = plan.settings, plan.paths.log(record.number)
    spec = trial_spec(
        plan,
        record.number,
        record.config,
        confirms.seed,
        devices_of(plan)[0],
        test=True,
    )
    deadline_at = until if until < math.inf else None
    process, messages = trial_process.run_alone(spec, log, settings.trial.stall_s, deadline_at)
    tested = next((m for m in messages if isinstance(m, Tested)), None)
    if tested is not None:
        return tested
    assert process.finished is not None
    if process.finished.reason == "timed_out":
        return None
    lines = process.finished.detail.strip().splitlines() or ["it did not say why"]
    return Tested(record.number, {}, f"the test failed: {lines[-1]}")


def delete_weights(session: StudySession, kept: int | None) -> None:
    """Delete the weights of all trials of a confirmation except the trial `kept`."""
    for record in session.records():
        if record.number != kept:
            shutil.rmtree(session.plan.paths.checkpoint(record.number), ignore_errors=True)


def _wanted(plan: Plan, records: Sequence[TrialRecord], top: int | None = None) -> list[tuple[TrialRecord, Confirms]]:
    trained = finalists(plan, records)[:top]
    first = baseline(plan, records)
    if trained and first is not None and first not in trained:
        trained.append(first)
    seeds = {n: derive_seed(plan.settings.seed, "confirm", n) for n in range(1, plan.confirm_seeds + 1)}
    return [(r, Confirms(r.number, n, seed)) for n, seed in seeds.items() for r in trained]


def _pair(confirms: Confirms) -> tuple[int, int]:
    return confirms.trial, confirms.nth_seed


def _key(plan: Plan, record: TrialRecord) -> str:
    return fingerprint(config_of(record, plan))
