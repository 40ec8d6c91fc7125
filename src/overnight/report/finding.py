"""The result of a search and its confirmation: who won, by how much, how certain that is, in figures and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overnight.config.paths import trial_name
from overnight.protocol import Tested
from overnight.report import confirm
from overnight.report.statistics import Comparison, Estimate, compare, estimate
from overnight.search import deadline
from overnight.search.formatting import format_interval, format_value
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, best_of
from overnight.study.snapshot import StudyView


@dataclass(frozen=True)
class Finalist:
    """A configuration that the confirmation trains again.

    Attributes:
        trial: The trial of the search with this configuration.
        runs: Its trials of the confirmation, ordered by seed.
        values: Number of the seed -> objective, for complete runs on the seeds that are compared.
        estimate: The mean of `values`; None if there are none.
        tests: Metric -> mean on the test set over the tested seeds.
        untested_reason: Why there are no `tests`; empty if it is not known.
    """

    trial: TrialRecord
    runs: tuple[TrialRecord, ...]
    values: Mapping[int, float]
    estimate: Estimate | None
    tests: Mapping[str, Estimate]
    untested_reason: str = ""

    @property
    def failed(self) -> int:
        """Number of failed runs."""
        return sum(r.state == "failed" for r in self.runs)


@dataclass(frozen=True)
class Finding:
    """The result of a study.

    Attributes:
        search_best: The best trial of the search, on one seed.
        finalists: The winner first, ordered by the mean over the seeds that they share. Finalists on fewer seeds
            follow, and then those that failed on a seed. Empty if nothing is confirmed. The baseline is among them if
            it is one of the best of the search, or better than all of these.
        baseline: The baseline configuration; may be the winner.
        against_second: The winner compared to the second finalist.
        against_baseline: The winner compared to the baseline.
        confirmed: Number of runs of the confirmation that are done.
        confirmations: Number of runs that the confirmation is to have.
    """

    plan: Plan
    search_best: TrialRecord | None
    finalists: tuple[Finalist, ...]
    baseline: Finalist | None
    against_second: Comparison | None
    against_baseline: Comparison | None
    confirmed: int
    confirmations: int

    @property
    def winner(self) -> Finalist | None:
        return self.finalists[0] if self.finalists and self.finalists[0].estimate is not None else None

    @property
    def best(self) -> TrialRecord | None:
        """The trial of the search to continue with: that of the winner, or the best one if nothing is confirmed."""
        return self.winner.trial if self.winner is not None else self.search_best


def from_view(view: StudyView) -> Finding:
    """Return the result of a study, as far as it is known."""
    second = view.confirmation
    return from_records(view.plan, view.records, second.records if second else (), second.tests if second else {})


def from_records(
    plan: Plan, records: Sequence[TrialRecord], confirmations: Sequence[TrialRecord], tests: Mapping[int, Tested]
) -> Finding:
    """Return the result of a search.

    Args:
        records: The trials of the search.
        confirmations: The trials of its confirmation.
        tests: Number of a trial of the confirmation -> its values on the test set.
    """
    chosen = confirm.finalists(plan, records)
    baseline_trial = confirm.baseline(plan, records) if chosen else None
    trials = {t.number: t for t in (*chosen, *([baseline_trial] if baseline_trial else []))}
    runs = {number: _runs(confirmations, number, plan.confirm_seeds) for number in trials}
    ranked = _ranked(plan, chosen, runs, tests)
    if baseline_trial is not None and len(trials) > len(chosen):
        # The search may have paused the baseline early. It has trained on the same seeds, so it may win.
        with_baseline = _ranked(plan, list(trials.values()), runs, tests)
        ranked = with_baseline if with_baseline[0].trial is baseline_trial else ranked
    winner = ranked[0] if ranked else None
    base = None
    if baseline_trial is not None:
        # Each configuration has one interval. That of a baseline is not corrected for a choice, unless it was chosen.
        chosen_base = next((f for f in ranked if f.trial.number == baseline_trial.number), None)
        base = chosen_base or _finalist(baseline_trial, runs[baseline_trial.number], None, tests, 1)
    rivals = [f for f in ranked[1:] if f.estimate is not None]
    others = sum(base is not None and f.trial.number != base.trial.number for f in ranked)
    return Finding(
        plan,
        best_of(records, plan.settings),
        tuple(ranked),
        base,
        _compared(winner, rivals[0] if rivals else None),
        _compared(winner, base, others) if base is not winner else None,
        sum(r.done for number in trials for r in runs[number]),
        len(trials) * plan.confirm_seeds,
    )


def _ranked(
    plan: Plan,
    trials: Sequence[TrialRecord],
    runs: Mapping[int, tuple[TrialRecord, ...]],
    tests: Mapping[int, Tested],
) -> list[Finalist]:
    """Return the finalists for these trials of the search, the best first.

    Args:
        runs: Number of a trial -> its runs of the confirmation.
    """
    compared_seeds = _compared_seeds({t.number: runs[t.number] for t in trials})

    def rank(f: Finalist) -> tuple[bool, int, bool, float]:
        mean = f.estimate.mean if f.estimate else 0.0
        return f.estimate is None, f.failed, f.trial.number not in compared_seeds, -_sign(plan) * mean

    found = (_finalist(t, runs[t.number], compared_seeds.get(t.number), tests, len(trials)) for t in trials)
    return sorted(found, key=rank)


def _runs(confirmations: Sequence[TrialRecord], number: int, seeds: int) -> tuple[TrialRecord, ...]:
    """Return the runs of a trial, ordered by seed."""
    found = (r for r in confirmations if r.confirms and r.confirms.trial == number and _seed(r) <= seeds)
    return tuple(sorted(found, key=_seed))


def _compared_seeds(runs: Mapping[int, Sequence[TrialRecord]]) -> dict[int, set[int]]:
    """Return the seeds on which finalists are compared: number of the trial -> seeds, the same for each.

    If a confirmation was cut short, finalists have different seeds, and one more lucky seed must not decide. Finalists
    with too few seeds are left out; they are ranked behind the others.
    """
    done = {number: {_seed(r) for r in of_one if r.done} for number, of_one in runs.items()}
    most = max(map(len, done.values()), default=0)
    enough = max(min(most - 1, deadline.MIN_SEEDS), 1)
    level = {number: seeds for number, seeds in done.items() if len(seeds) >= enough}
    return dict.fromkeys(level, set.intersection(*level.values())) if level else {}


def _finalist(
    trial: TrialRecord,
    runs: tuple[TrialRecord, ...],
    seeds: set[int] | None,
    tests: Mapping[int, Tested],
    candidates: int,
) -> Finalist:
    values = {_seed(r): r.objective for r in runs if r.state == "complete" and r.objective is not None}
    if seeds is not None:
        values = {seed: value for seed, value in values.items() if seed in seeds} or values
    tested = [tests[r.number] for r in runs if r.number in tests]
    metrics = dict.fromkeys(name for t in tested for name in t.metrics)
    return Finalist(
        trial,
        runs,
        values,
        estimate(list(values.values()), candidates) if values else None,
        {name: estimate([t.metrics[name] for t in tested if name in t.metrics]) for name in metrics},
        next((t.error for t in tested if t.error), ""),
    )


def summary_sentence(finding: Finding) -> str:
    """Say the result in one sentence."""
    winner, base, metric = finding.winner, finding.baseline, finding.plan.settings.study.metric
    if winner is None or winner.estimate is None:
        return _unconfirmed(finding)
    name = trial_name(winner.trial.number)
    sentence = f"{name} won: {format_estimate(winner.estimate, metric)} {metric} over {count_seeds(winner.estimate.n)}"
    sentence += _on_test(winner, finding)
    second = _second(finding)
    if base is not None and second is not None and base.trial.number == second.trial.number:
        return f"{sentence}; {_versus_baseline(finding, base, 'in second place, ')}."
    return f"{sentence}; {_versus_baseline(finding, base)}; {_versus_second(finding, second)}."


def verdict(finding: Finding, comparison: Comparison | None) -> str:
    """Say whether the first one of a comparison is better, worse or not distinguishable."""
    if comparison is None or comparison.p is None:
        return "not compared"
    if not comparison.distinguishable:
        return "not distinguishable"
    return "better" if _sign(finding.plan) * comparison.difference > 0 else "worse"


def format_estimate(value: Estimate, metric: str) -> str:
    """Format a value of a metric with its interval: 98.51% ± 0.06, or 0.1234 ± 0.0011."""
    return format_interval(value.mean, value.half_width, metric)


def test_metric(finding: Finding) -> str:
    """Return the name of the study's metric on the test set."""
    return "test/" + finding.plan.settings.study.metric.removeprefix("val/").removeprefix("val_")


def _unconfirmed(finding: Finding) -> str:
    best, metric = finding.search_best, finding.plan.settings.study.metric
    if best is None or best.objective is None:
        return "no trial is complete yet, so there is no result."
    sentence = (
        f"{trial_name(best.number)} is the best so far: {format_value(best.objective, metric)} {metric} on one seed"
    )
    if finding.confirmations:
        return f"{sentence}; {finding.confirmed} of {finding.confirmations} confirmations are done."
    return f"{sentence}, picked as the luckiest, so expect less; study.confirm.seeds=5 would tell how sure that is."


def _on_test(finalist: Finalist, finding: Finding) -> str:
    tested = finalist.tests.get(test_metric(finding))
    if tested is not None:
        trained = finalist.estimate.n if finalist.estimate is not None else tested.n
        seeds = f" ({count_seeds(tested.n)} only)" if tested.n < trained else ""
        return f", {format_value(tested.mean, test_metric(finding))} on test{seeds}"
    return f" (no test set: {finalist.untested_reason})" if finalist.untested_reason else ""


def _versus_baseline(finding: Finding, base: Finalist | None, in_place: str = "") -> str:
    metric, winner = finding.plan.settings.study.metric, finding.winner
    if base is None:
        return "the config you started from did not train, or is marked bad"
    assert winner is not None
    if base.trial.number == winner.trial.number:
        return "that is the config you started from"
    if base.estimate is None:
        return "the config you started from failed on these seeds"
    test = _on_test(base, finding) if base.tests else ""
    mean = format_estimate(base.estimate, metric)
    sentence = f"the config you started from{f', {in_place}' if in_place else ' '}had {mean}{test}"
    certainty = {
        "better": "",
        "worse": ", which is better",
        "not distinguishable": ", not distinguishably different",
        "not compared": ", on too few seeds to compare",
    }
    return sentence + certainty[verdict(finding, finding.against_baseline)]


def _second(finding: Finding) -> Finalist | None:
    return next((f for f in finding.finalists[1:] if f.estimate is not None), None)


def _versus_second(finding: Finding, second: Finalist | None) -> str:
    if second is None:
        return "there is no second to compare with"
    name = f"second place ({trial_name(second.trial.number)})"
    drawback = f"failed on {count_seeds(second.failed)}" if second.failed else "on fewer seeds"
    return {
        "better": f"{name} is worse",
        "worse": f"{name} was better, but {drawback}",
        "not distinguishable": f"{name} is not distinguishably worse",
        "not compared": f"{name} was trained on too few seeds to compare",
    }[verdict(finding, finding.against_second)]


def _compared(first: Finalist | None, second: Finalist | None, candidates: int = 1) -> Comparison | None:
    """Compare two finalists on the seeds that both have."""
    if first is None or second is None:
        return None
    common = sorted(first.values.keys() & second.values.keys())
    if not common:
        return None
    return compare([first.values[n] for n in common], [second.values[n] for n in common], candidates)


def _seed(record: TrialRecord) -> int:
    assert record.confirms is not None
    return record.confirms.nth_seed


def count_seeds(n: int) -> str:
    """Return "one seed" or "5 seeds"."""
    return "one seed" if n == 1 else f"{n} seeds"


def _sign(plan: Plan) -> int:
    """Return 1 if a higher objective is better, -1 if a lower one is."""
    return 1 if plan.settings.study.direction == "maximize" else -1
