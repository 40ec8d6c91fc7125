"""Caveats: where the result of a study may mislead, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from overnight.config.paths import trial_name
from overnight.config.trainer import unit_of
from overnight.config.values import to_text
from overnight.report import advice
from overnight.report.finding import Finding
from overnight.search.history import mean_curve
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.search.schedulers.study import trained_epochs
from overnight.study import exclusions

# With fewer trials for each searched parameter a search is too short.
_TRIALS_PER_PARAMETER = 5


def find_caveats(finding: Finding, records: Sequence[TrialRecord], tested_by_hand: Collection[int] = ()) -> list[str]:
    """Return one line for each caveat, the most serious first.

    Args:
        tested_by_hand: The trials whose weights `overnight test` has evaluated on the test set.
    """
    plan, best = finding.plan, finding.best
    if best is None:
        return ["There is no result: no trial is complete.", *_failed(finding, records), *_excluded(records)]
    lines = [*_unconfirmed(finding), *_seen(tested_by_hand), *_few(plan, records), *_flat(records)]
    lines += _folds(plan)
    lines += [
        f"{e.name}: the winner's value {_short(e.value)} is at the {e.end} end of its range, {_short(e.limit)}; values "
        f"beyond it may be better: {e.name}='{e.wider}'"
        for e in advice.find_edges(plan, best)
    ]
    lines += [*_tie(finding), *_rarely_tried(plan, records), *_unfinished(finding), *_failed(finding, records)]
    return [*lines, *_excluded(records)]


def _folds(plan: Plan) -> list[str]:
    folds = plan.settings.study.folds
    if folds is None:
        return []
    return [
        f"Values are means over {folds} folds. The weights, the predictions and the test scores are those of one "
        "network, of fold 0."
    ]


def _unconfirmed(finding: Finding) -> list[str]:
    if not finding.confirmations:
        return ["The best trial is not confirmed on new seeds. Its value is the highest of many, and so partly luck."]
    if finding.confirmed < finding.confirmations:
        return [
            f"Only {finding.confirmed} of {finding.confirmations} confirmations are done; the same `overnight tune` "
            "command resumes them."
        ]
    return [
        f"{trial_name(f.trial.number)} failed on {f.failed} of {len(f.runs)} new seeds."
        for f in finding.finalists
        if f.failed
    ]


def _seen(tested_by_hand: Collection[int]) -> list[str]:
    if not tested_by_hand:
        return []
    names = ", ".join(map(trial_name, sorted(tested_by_hand)))
    return [
        f"`overnight test` was asked of {names}, so the test set is no longer unseen: a choice that follows its scores "
        "makes them too good."
    ]


def _few(plan: Plan, records: Sequence[TrialRecord]) -> list[str]:
    searched = len(plan.space.parameters)
    done = sum(r.done or r.waits_at_rung for r in records if r.state != "failed")
    if not searched or done >= _TRIALS_PER_PARAMETER * searched:
        return []
    more, study = _TRIALS_PER_PARAMETER * searched * 2, plan.settings.study
    trainings = more
    if plan.pauses and done:  # the trained epochs are for more trials than they are whole trainings
        trainings = math.ceil(trained_epochs(records) * more / done / plan.units)
    limits = [f"study.trials={more}"] if study.trials is not None else []
    is_limit = study.trials is None or (plan.pauses and study.budget is not None)
    if trainings > plan.budget.trainings and is_limit:
        limits.append(f"study.budget={trainings}")
    remedy = f"resume with {' '.join(limits)}" if limits else "the rest of the budget adds more"
    return [f"{done} trials are few for {searched} searched parameters; {remedy}."]


def _flat(records: Sequence[TrialRecord]) -> list[str]:
    values = {r.objective for r in records if r.state == "complete"}
    many = sum(r.state == "complete" for r in records)
    if many > 1 and len(values) == 1:
        return [
            "Every trial has the same value: no searched parameter changes this metric, or the network does not learn."
        ]
    return []


def _tie(finding: Finding) -> list[str]:
    versus = finding.against_second
    rivals = [f for f in finding.finalists[1:] if f.estimate is not None]
    if versus is None or versus.distinguishable or finding.winner is None:
        return []
    first, second = finding.winner, rivals[0]
    cost = [sum(e.seconds for r in f.runs for e in r.history) / max(len(f.runs), 1) for f in (first, second)]
    if min(cost) <= 0:
        return []
    cheap = (first, second)[cost.index(min(cost))]
    return [
        f"{trial_name(first.trial.number)} and {trial_name(second.trial.number)} are not distinguishable; "
        f"{trial_name(cheap.trial.number)} trains faster, {min(cost):.3g} s instead of {max(cost):.3g} s."
    ]


def _rarely_tried(plan: Plan, records: Sequence[TrialRecord]) -> list[str]:
    lines: list[str] = []
    for p in plan.space.parameters:
        if p.options and p.length is None:
            trained = [r for r in records if r.state in ("complete", "pruned") or r.waits_at_rung]
            tried = [to_text(r.params[p.key]) for r in trained if p.key in r.params]
            rare = [f"{o} ({tried.count(o)})" for o in map(to_text, p.options) if tried.count(o) < advice.RARE]
            if rare and not p.when:
                lines.append(f"{p.key}: rarely tried: {', '.join(rare)}.")
    return lines


def _unfinished(finding: Finding) -> list[str]:
    """Say it if the winner was still improving at its last epoch, in most of its runs."""
    winner, study = finding.winner, finding.plan.settings.study
    runs = [r for r in winner.runs if len(r.history) > 3] if winner is not None else []
    sign = 1 if study.direction == "maximize" else -1
    improving = 0
    for run in runs:
        values = [sign * value for value in mean_curve(run.history, study.metric) if not math.isnan(value)]
        improving += len(values) > 3 and max(values) > max(values[:-1])
    if runs and improving > len(runs) / 2:
        trainer = finding.plan.settings.trainer
        limit = "max_steps" if trainer.max_steps != -1 else "max_epochs" if trainer.max_epochs != -1 else None
        longer = f"trainer.{limit}={2 * getattr(trainer, limit)}" if limit else "a longer trainer.max_time"
        return [
            f"The winner was still improving at its last {unit_of(vars(trainer))} in {improving} of {len(runs)} runs; "
            f"try {longer}."
        ]
    return []


def _failed(finding: Finding, records: Sequence[TrialRecord]) -> list[str]:
    failed = [r for r in records if r.state == "failed" and r.reason != exclusions.MARKED]
    if len(failed) < max(2, 0.1 * len(records)):
        return []
    shown = f"overnight logs {finding.plan.name}/{failed[-1].number}"
    many = f"All {len(records)}" if len(failed) == len(records) else f"{len(failed)} of {len(records)}"
    return [f"{many} trials failed; `{shown}` shows one."]


def _excluded(records: Sequence[TrialRecord]) -> list[str]:
    return [f"Ignored: {line}" for line in exclusions.describe_excluded(records)]


def _short(value: float) -> str:
    return f"{value:.3g}"
