"""What a search and its confirmation have found: who won, by how much, how sure that is, in figures and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overnight.config.paths import trial_name
from overnight.protocol import Tested
from overnight.report import confirm
from overnight.report.statistics import Comparison, Estimate, compare, estimate
from overnight.search import deadline
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, best_of
from overnight.study.snapshot import StudyView

# What is told in percent where it lies between 0 and 1.
_SHARES = ("accuracy", "acc", "precision", "recall", "f1", "auroc", "auc")


@dataclass(frozen=True)
class Finalist:
    """A configuration that was trained again. runs: its confirmations, by seed; values: theirs that are complete.

    tests: metric -> the mean over the seeds that were tested. untested: why there are none.
    """

    trial: TrialRecord
    runs: tuple[TrialRecord, ...]
    values: Mapping[int, float]  # nth seed -> objective
    estimate: Estimate | None
    tests: Mapping[str, Estimate]
    untested: str = ""

    @property
    def failed(self) -> int:
        return sum(r.state == "failed" for r in self.runs)


@dataclass(frozen=True)
class Finding:
    """finalists: the winner first, by mean over the seeds that they share; then those that have fewer than three and
    are two or more behind; last those that failed on one. Empty where nothing was confirmed.

    luckiest: the search's own best.
    baseline: the configuration as written; may be the winner itself. asked: how many confirmations there are to be.
    """

    plan: Plan
    search_best: TrialRecord | None
    finalists: tuple[Finalist, ...]
    baseline: Finalist | None
    against_second: Comparison | None
    against_baseline: Comparison | None
    done: int
    asked: int

    @property
    def winner(self) -> Finalist | None:
        return self.finalists[0] if self.finalists and self.finalists[0].estimate is not None else None

    @property
    def best(self) -> TrialRecord | None:
        """The trial of the search to go on with: the confirmed winner's, or the search's best."""
        return self.winner.trial if self.winner is not None else self.search_best


def from_view(view: StudyView) -> Finding:
    """What a study has found, as far as it got."""
    second = view.confirmation
    return from_records(view.plan, view.records, second.records if second else (), second.tests if second else {})


def from_records(
    plan: Plan, records: Sequence[TrialRecord], confirmations: Sequence[TrialRecord], tests: Mapping[int, Tested]
) -> Finding:
    """What a search's records and its confirmation's say; tests: number of a confirmation -> the test set's word."""
    seeds = plan.confirm_seeds
    sign = 1 if plan.settings.study.direction == "maximize" else -1
    chosen = confirm.finalists(plan, records)
    written = confirm.baseline(plan, records) if chosen else None

    runs_of = {t.number: _runs(confirmations, t, seeds) for t in (*chosen, *([written] if written else []))}
    # Where a confirmation was cut, one more lucky seed must decide nothing.
    tried = {t.number: {_nth(r) for r in runs_of[t.number] if r.done} for t in chosen}
    most = max(map(len, tried.values()), default=0)
    enough = max(min(most - 1, deadline.MIN_SEEDS), 1)
    level = {number for number, nths in tried.items() if len(nths) >= enough}
    shared = set.intersection(*(tried[number] for number in level)) if level else set()

    def finalist(trial: TrialRecord, among: int) -> Finalist:
        runs = runs_of[trial.number]
        values = {_nth(r): r.objective for r in runs if r.state == "complete" and r.objective is not None}
        if trial.number in level:
            values = {nth: value for nth, value in values.items() if nth in shared} or values
        heard = [tests[r.number] for r in runs if r.number in tests]
        names = dict.fromkeys(name for t in heard for name in t.metrics)
        means = {n: estimate([t.metrics[n] for t in heard if n in t.metrics]) for n in names}
        mean = estimate(list(values.values()), among) if values else None
        return Finalist(trial, runs, values, mean, means, next((t.why for t in heard if t.why), ""))

    def rank(f: Finalist) -> tuple[bool, int, bool, float]:
        return f.estimate is None, f.failed, f.trial.number not in level, -sign * f.estimate.mean if f.estimate else 0.0

    ranked = sorted((finalist(t, len(chosen)) for t in chosen), key=rank)
    # Its mean is no winner's, and needs no making up for luck, unless it is the winner.
    same = next((f for f in ranked if written is not None and f.trial.number == written.number), None)
    base = same or (finalist(written, 1) if written is not None else None)
    if base is not None and ranked and base is not ranked[0] and same is not None:
        base = finalist(base.trial, 1)
    winner = ranked[0] if ranked else None
    rivals = [f for f in ranked[1:] if f.estimate is not None]
    others = sum(f.trial.number != base.trial.number for f in ranked) if base else 0
    asked = len({f.trial.number for f in (*ranked, *([base] if base else []))}) * seeds if chosen else 0
    return Finding(
        plan,
        best_of(records, plan.settings),
        tuple(ranked),
        base,
        _compared(winner, rivals[0] if rivals else None),
        _compared(winner, base, others) if winner and base and winner.trial.number != base.trial.number else None,
        sum(r.done for f in {f.trial.number: f for f in (*ranked, *([base] if base else []))}.values() for r in f.runs),
        asked,
    )


def _runs(confirmations: Sequence[TrialRecord], trial: TrialRecord, seeds: int) -> tuple[TrialRecord, ...]:
    """A trial's confirmations, by seed."""
    mine = (r for r in confirmations if r.confirms and r.confirms.trial == trial.number and _nth(r) <= seeds)
    return tuple(sorted(mine, key=_nth))


def summary_sentence(finding: Finding) -> str:
    """The answer, for somebody who has just woken up."""
    winner, base, metric = finding.winner, finding.baseline, finding.plan.settings.study.metric
    if winner is None or winner.estimate is None:
        return _unconfirmed(finding)
    name = trial_name(winner.trial.number)
    said = f"{name} won: {format_value(winner.estimate, metric)} {metric} over {_seeds(winner.estimate.n)}"
    said += _on_test(winner, finding)
    second = _second(finding)
    if base is not None and second is not None and base.trial.number == second.trial.number:
        return f"{said}; {_beside_baseline(finding, base, 'in second place, ')}."  # once, and as sure as it is of both
    return f"{said}; {_beside_baseline(finding, base)}; {_beside_second(finding, second)}."


def verdict(comparison: Comparison | None, sign: int) -> str:
    """better, worse, or not distinguishable: what a comparison says of the first; sign: -1 where less is better."""
    if comparison is None or comparison.p is None:
        return "not compared"
    if not comparison.distinguishable:
        return "not distinguishable"
    return "better" if sign * comparison.difference > 0 else "worse"


def format_value(value: Estimate | float, metric: str) -> str:
    """A figure for people, with as many digits as its interval carries: 98.51% ± 0.06, or 0.1234 ± 0.0011."""
    mean, half = (value.mean, value.half_width) if isinstance(value, Estimate) else (value, None)
    if metric.replace("_", "/").split("/")[-1].lower() in _SHARES and -1 <= mean <= 1:
        return f"{mean:.2%}" + ("" if half is None else f" ± {100 * half:.2f}")
    return f"{mean:.4g}" + ("" if half is None else f" ± {half:.2g}")


def test_metric(finding: Finding) -> str:
    """What the study's metric is called on the test set."""
    return "test/" + finding.plan.settings.study.metric.removeprefix("val/").removeprefix("val_")


def _unconfirmed(finding: Finding) -> str:
    best, metric = finding.search_best, finding.plan.settings.study.metric
    if best is None or best.objective is None:
        return "no trial is complete, so there is nothing to say yet."
    said = f"{trial_name(best.number)} is the best so far: {format_value(best.objective, metric)} {metric} on one seed"
    if finding.asked:
        return f"{said}; {finding.done} of {finding.asked} confirmations are done."
    return f"{said}, picked as the luckiest, so expect less; study.confirm.seeds=5 would tell how sure that is."


def _on_test(finalist: Finalist, finding: Finding) -> str:
    tested = finalist.tests.get(test_metric(finding))
    if tested is not None:
        trained = finalist.estimate.n if finalist.estimate is not None else tested.n
        of = f" (of {_seeds(tested.n)} alone)" if tested.n < trained else ""
        return f", {format_value(tested.mean, test_metric(finding))} on test{of}"
    return f" (no test set: {finalist.untested})" if finalist.untested else ""


def _beside_baseline(finding: Finding, base: Finalist | None, in_place: str = "") -> str:
    metric, winner = finding.plan.settings.study.metric, finding.winner
    if base is None:
        return "the config you started from did not train, or is marked bad"
    assert winner is not None
    if base.trial.number == winner.trial.number:
        return "that is the config you started from"
    if base.estimate is None:
        return "the config you started from failed on these seeds"
    test = _on_test(base, finding) if base.tests else ""
    mean = format_value(base.estimate, metric)
    said = f"the config you started from{f', {in_place}' if in_place else ' '}had {mean}{test}"
    return (
        said
        + {
            "better": "",
            "worse": ", which is better",
            "not distinguishable": ", not distinguishably different",
            "not compared": ", on too few seeds to compare",
        }[verdict(finding.against_baseline, sign_of(finding))]
    )


def _second(finding: Finding) -> Finalist | None:
    return next((f for f in finding.finalists[1:] if f.estimate is not None), None)


def _beside_second(finding: Finding, second: Finalist | None) -> str:
    if second is None:
        return "there is no second to compare with"
    name = f"second place ({trial_name(second.trial.number)})"
    if second.failed:
        was_better = f"{name} was better, but failed on {_seeds(second.failed)}"
    else:
        was_better = f"{name} was better, but on fewer seeds"
    return {
        "better": f"{name} is worse",
        "worse": was_better,
        "not distinguishable": f"{name} is not distinguishably worse",
        "not compared": f"{name} was trained on too few seeds to compare",
    }[verdict(finding.against_second, sign_of(finding))]


def _compared(first: Finalist | None, second: Finalist | None, among: int = 1) -> Comparison | None:
    """Seed by seed, on the seeds that both have."""
    if first is None or second is None:
        return None
    common = sorted(first.values.keys() & second.values.keys())
    if not common:
        return None
    return compare([first.values[n] for n in common], [second.values[n] for n in common], among)


def _nth(record: TrialRecord) -> int:
    assert record.confirms is not None
    return record.confirms.nth_seed


def _seeds(n: int) -> str:
    return "one seed" if n == 1 else f"{n} seeds"


def sign_of(finding: Finding) -> int:
    """1 where more of the objective is better, -1 where less is."""
    return 1 if finding.plan.settings.study.direction == "maximize" else -1
