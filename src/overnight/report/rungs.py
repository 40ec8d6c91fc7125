"""The rungs of a search that pauses trials: what they cost, and which trials can be compared at one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.search.schedulers.study import rungs_of, trained_epochs, trials_of

# Trials are compared at the longest rung that so many have reached: with fewer, chance outweighs what matters.
ENOUGH = 30


@dataclass(frozen=True)
class Rung:
    """What a search did up to a rung.

    Attributes:
        epochs: After which trials may be paused; at the last rung, those of a complete trial.
        reached: Trials that were trained so far.
        sent_on: Trials that were trained further.
        trained: Epochs that all trials were trained between the rung before and this one.
    """

    epochs: int
    reached: int
    sent_on: int
    trained: int


@dataclass(frozen=True)
class Comparable:
    """Trials whose values can be compared.

    Attributes:
        records: Those of one rung have their value at this rung. One that was not trained to the end is pruned.
        epochs: Of the rung; None where all trials are complete, or no trial is paused.
    """

    records: tuple[TrialRecord, ...]
    epochs: int | None = None


def find_rungs(plan: Plan, records: Sequence[TrialRecord]) -> list[Rung]:
    """Return the rungs that trials reached, the lowest first; none for a search that does not pause trials."""
    lengths = [len(r.history) for r in records]
    if not plan.pauses or not any(lengths):
        return []
    ends = sorted({*_rungs(plan, records), max(lengths)})
    return [
        Rung(
            end,
            sum(n >= end for n in lengths),
            sum(n > end for n in lengths),
            sum(max(min(n, end) - begin, 0) for n in lengths),
        )
        for begin, end in zip((0, *ends), ends, strict=False)
        if any(n >= end for n in lengths)
    ]


def cost_sentence(plan: Plan, records: Sequence[TrialRecord]) -> str:
    """Say what the search trained, and what training each configuration to its end would take."""
    started = sum(bool(r.history) for r in records)
    of = f" of {plan.budget.epochs:,}" if plan.budget.counts_epochs else ""
    trained = f"{trained_epochs(records):,}{of} {plan.unit}s"
    whole = f"{started * plan.units:,}"
    if started == 1:
        return f"1 configuration was trained, for {trained}; training it to the end takes {whole}"
    return f"{started:,} configurations were trained for {trained}; training each to the end would take {whole}"


def comparable(plan: Plan, records: Sequence[TrialRecord]) -> Comparable:
    """Return the trials whose values can be compared.

    A value after 2 epochs says nothing beside one after 16. Where trials are paused, those are compared that reached
    one rung, with their values there: the longest rung that ENOUGH trials reached, or else the one that most reached.
    """
    if not plan.pauses:
        return Comparable(tuple(records))
    sign = 1 if plan.settings.study.direction == "maximize" else -1
    by_number = {r.number: r for r in records}
    trials = [t for t in trials_of(records, plan.settings) if t.state in ("complete", "paused", "stopped")]
    counts = {rung: sum(t.score_at(rung) > -math.inf for t in trials) for rung in _rungs(plan, records)}
    if not any(counts.values()):
        return Comparable(())
    rung = max(counts, key=lambda rung: (min(counts[rung], ENOUGH), rung))
    found = [t for t in trials if t.score_at(rung) > -math.inf]
    return Comparable(
        tuple(
            replace(
                by_number[t.number],
                state="complete" if t.state == "complete" else "pruned",
                objective=sign * t.score_at(rung),
            )
            for t in found
        ),
        None if len(found) == len(trials) and all(t.state == "complete" for t in found) else rung,
    )


def _rungs(plan: Plan, records: Sequence[TrialRecord]) -> list[int]:
    return rungs_of(trials_of(records, plan.settings))
