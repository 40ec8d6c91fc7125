"""The ends of runs in MLflow, so that its column Duration is the time of work: MLflow knows no pauses."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator

from overnight.search.record import TrialRecord

# A shorter time without any training is the start of a process, a checkpoint or a plot, not a pause.
_PAUSE_S = 10.0


def end_of_trial(record: TrialRecord) -> float | None:
    """Return when the run of a trial ends, in seconds since 1970: so much earlier as the trial was paused."""
    ended_at = record.last_ended_at
    if ended_at is None:
        return None
    gaps = (after.at - after.seconds - before.at for before, after in itertools.pairwise(record.history))
    return ended_at - sum(gap for gap in gaps if gap > _PAUSE_S)


def end_of_study(started_at: float, records: Iterable[TrialRecord]) -> float:
    """Return when the run of a study ends: after the time in which at least one of its trials was worked on."""
    end = covered_until = started_at
    for begin, until in sorted(span for record in records for span in _spans(record)):
        if until > covered_until:
            gap = begin - covered_until
            end += until - (begin if gap > _PAUSE_S else covered_until)
            covered_until = until
    return end


def time_of_work(records: Collection[TrialRecord]) -> float:
    """Return the seconds in which at least one of the trials was worked on, without the pauses between."""
    started_at = min((begin for record in records for begin, _ in _spans(record)), default=0.0)
    return end_of_study(started_at, records) - started_at


def _spans(record: TrialRecord) -> Iterator[tuple[float, float]]:
    """Yield the times in which a trial was worked on. It may have been paused between two epochs."""
    for e in record.history:
        yield e.at - e.seconds, e.at
    if record.started_at is not None:  # of its last start
        first = min((e.at for e in record.history if e.at > record.started_at), default=record.ended_at)
        if first is not None:
            yield record.started_at, first
    if record.history and record.ended_at is not None and record.ended_at - record.history[-1].at <= _PAUSE_S:
        yield record.history[-1].at, record.ended_at
