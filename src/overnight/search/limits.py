"""What ends a launch before its budget is spent: patience, a terminator, a deadline; whichever comes first.

The supervisor asks which trial is next, and whether the time is up; what it hears it obeys.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

from overnight.config import clock
from overnight.search import deadline, patience
from overnight.search.deadline import Deadline, Outlook
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.search.terminator import Terminator

# A waiting trial, by its number; whatever the ledger gives; a new one, whoever waits; or none now.
Next = int | Literal["any", "new"] | None
Over = Literal["patience", "terminator", "deadline"]
# Seconds between two looks at what all records say of the time.
_LOOK_EVERY_S = 1.0


class Limits(Protocol):
    """What a supervisor asks. records: all that it knows, by number; running: numbers."""

    def next(self, records: Mapping[int, TrialRecord], running: Collection[int]) -> Next: ...
    def time_is_up(self, records: Mapping[int, TrialRecord]) -> bool: ...
    def is_late(self) -> bool:
        """Whether what is nice to have would cost the answer."""
        ...

    def left_s(self) -> float | None:
        """Seconds that MLflow has to be told all of it; None for as long as that takes."""
        ...

    def cut(self, records: Mapping[int, TrialRecord]) -> bool:
        """Whether, with nothing running, work is left that a limit kept from being done."""
        ...

    def ahead(self, records: Mapping[int, TrialRecord]) -> str | None:
        """What there is to come, in one line."""
        ...


class Launch:
    """One launch of a study: when it must have ended, and what there is to say of how it ended.

    keep: has the ledger keep what others see of it. launched: since when its time counts, where that is not since it
    began: for one of many, who came later than the study was launched.
    """

    def __init__(
        self,
        plan: Plan,
        began: float,
        keep: Callable[[dict[str, Any]], None],
        now: Callable[[], float] = time.time,
        launched: float | None = None,
    ) -> None:
        self.plan, self.now, self._keep, self.began = plan, now, keep, began
        self.deadline: Deadline | None = deadline.of(plan.settings.study, began if launched is None else launched)
        self.started_s = 0.0
        self.over: Over | None = None
        self.notes: list[str] = []
        self._logged = ""
        self._logged_at = 0.0
        self.kept()

    def warm(self, since: float) -> None:
        """The first trial may start: a machine that took longer to get there takes longer to close."""
        self.started_s = since
        self.kept()

    def answer_by(self, trials: int) -> float:
        """When all of a search of so many trials must be confirmed and tested; inf without a deadline."""
        if self.deadline is None:
            return math.inf
        return self.deadline.ends - deadline.closing_s(trials, self.started_s)

    def left_s(self) -> float | None:
        return None if self.deadline is None else max(self.told_by() - self.now(), 1.0)

    def told_by(self) -> float:
        """When report and MLflow are waited for no longer; inf without a deadline."""
        return math.inf if self.deadline is None else self.deadline.ends - deadline.leave_s(self.started_s)

    def end(self, over: Over, note: str) -> None:
        self.over = over
        self.note(note)

    def note(self, line: str) -> None:
        """Have the report say something of what was cut."""
        if line not in self.notes:
            self.notes.append(line)
            self.log(line, at_once=True)
        self.kept()

    def kept(self) -> None:
        d = self.deadline
        self._keep(
            {
                "deadline": None if d is None else vars(d),
                "started_s": self.started_s,
                "over": self.over,
                "notes": self.notes,
            }
        )

    def log(self, line: str, at_once: bool = False) -> None:
        """Write a line to the study's launch log, the same one once; a forecast once a minute."""
        now = self.now()
        if line == self._logged or (not at_once and now - self._logged_at < 60):
            return
        self._logged, self._logged_at = line, now
        path = self.plan.paths.launch_log
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))} {line}\n")


class SearchLimits:
    """The limits of a search."""

    def __init__(self, launch: Launch, slots: int, terminator: Terminator) -> None:
        self._launch, self._slots, self._terminator = launch, slots, terminator
        self._plan = launch.plan
        self._asked_at: float | None = None
        self._looked: tuple[int, str | None] = (-1, None)  # patience's word, after so many ended trials
        self._ended_by: tuple[Literal["patience", "terminator"], str] | None = None  # what `next` was told last
        self._outlook: Outlook | None = None
        self._outlook_at = -_LOOK_EVERY_S

    def next(self, records: Mapping[int, TrialRecord], running: Collection[int]) -> Next:
        if self._asked_at is None:
            self._asked_at = self._launch.now()
            if self._launch.deadline is not None:
                self._launch.warm(self._asked_at - self._launch.began)
        waiting = [r for n, r in sorted(records.items()) if r.state in ("waiting", "paused") and n not in running]
        if not waiting and len(records) >= self._plan.budget:
            return "any"
        self._ended_by = self._over(list(records.values()))
        if self._ended_by is not None:
            return None
        if self._launch.deadline is None:
            return "any"
        ahead, now = self._look(records), self._launch.now()
        for record in waiting:
            takes = deadline.left(record, ahead, self._plan.settings.trainer.max_epochs)
            if deadline.fits(takes, now, ahead.search_ends):
                return record.number
        if len(records) < self._plan.budget and deadline.fits(ahead.typical_s, now, ahead.search_ends):
            return "new" if waiting else "any"
        return None

    def time_is_up(self, records: Mapping[int, TrialRecord]) -> bool:
        return self._launch.deadline is not None and self._launch.now() >= self._look(records).search_ends

    def is_late(self) -> bool:
        ahead = self._outlook
        return ahead is not None and self._launch.now() >= ahead.search_ends + deadline.STOP_S + deadline.PICTURES_S

    def left_s(self) -> float | None:
        ahead = self._outlook
        if ahead is None or not ahead.size.seeds:
            return self._launch.left_s()
        # What MLflow lacks then, the next start writes: it must not cost the confirmation.
        by = ahead.search_ends + deadline.STOP_S + deadline.PICTURES_S + deadline.SWITCH_S
        return max(by - self._launch.now(), deadline.SWITCH_S)

    def cut(self, records: Mapping[int, TrialRecord]) -> bool:
        told = list(records.values())
        done = sum(r.done for r in told)
        if done >= self._plan.budget:
            return False
        saved = sum(r.state == "paused" for r in told)
        waits = (
            f"; {saved} that ran {'was' if saved == 1 else 'were'} saved and go{'es' * (saved == 1)} on another time"
        )
        so_far = f"{done} of {self._plan.budget} trials are done{waits if saved else ''}"
        over = self._ended_by or self._over(told)  # the terminator may have thought again since
        if over is not None:
            self._launch.end(over[0], f"{over[1]}; {so_far}")
        elif self._launch.deadline is not None:
            self._launch.end(
                "deadline", f"{self._launch.deadline.said} ended the search: {so_far}{self._why_none(told)}"
            )
        return over is not None or self._launch.deadline is not None

    def ahead(self, records: Mapping[int, TrialRecord]) -> str | None:
        if self._terminator.trouble:
            self._launch.log(self._terminator.trouble, at_once=True)
        if self._launch.deadline is None:
            return None
        said = deadline.words(self._look(records), self._launch.now())
        self._launch.log(said)
        return said

    def _over(self, records: Sequence[TrialRecord]) -> tuple[Literal["patience", "terminator"], str] | None:
        ended = sum(r.done for r in records)
        if self._looked[0] != ended:
            self._looked = ended, patience.word(records, self._plan.settings)
        if self._looked[1] is not None:
            return "patience", self._looked[1]
        word = self._terminator.word(records)
        return ("terminator", word) if word is not None else None

    def _look(self, records: Mapping[int, TrialRecord]) -> Outlook:
        d, now = self._launch.deadline, self._launch.now()
        assert d is not None
        if self._outlook is None or now - self._outlook_at >= _LOOK_EVERY_S:
            told = list(records.values())
            self._outlook = deadline.outlook(self._plan, told, d, self._slots, now, self._launch.started_s)
            self._outlook_at = now
        return self._outlook

    def _why_none(self, records: Sequence[TrialRecord]) -> str:
        """What to do where a deadline left no time for a single trial."""
        if any(r.state in ("complete", "pruned") for r in records):
            return ""
        takes = deadline.typical(records, self._plan.settings.trainer.max_epochs)
        told = "" if takes is None else f", which takes about {takes:.0f} s"
        return f"; there was no time for one whole trial{told}: give it more"


class ConfirmationLimits:
    """The limits of a confirmation: what is wanted, by (trial, nth seed), in order, as far as the time goes."""

    def __init__(
        self, launch: Launch, search: Sequence[TrialRecord], wanted: Sequence[tuple[int, int]], test_s: float
    ) -> None:
        self._launch, self._search = launch, search
        self._order = {pair: i for i, pair in enumerate(wanted)}
        self._test_s, self._answer_by = test_s, launch.answer_by(len(search))
        self._epochs = launch.plan.settings.trainer.max_epochs

    def next(self, records: Mapping[int, TrialRecord], running: Collection[int]) -> Next:
        waiting = sorted(
            (
                r
                for n, r in records.items()
                if self._is_wanted(r) and r.state in ("waiting", "paused") and n not in running
            ),
            key=lambda r: self._order[_pair(r)],
        )
        for record in waiting:
            if self._fits(record, records):
                return record.number
        return None

    def time_is_up(self, records: Mapping[int, TrialRecord]) -> bool:
        return self._launch.now() >= self._ends(records, 0)

    def is_late(self) -> bool:
        return self._launch.now() >= self._answer_by

    def left_s(self) -> float | None:
        return self._launch.left_s()

    def cut(self, records: Mapping[int, TrialRecord]) -> bool:
        return any(self._is_wanted(r) and not r.done for r in records.values())

    def ahead(self, records: Mapping[int, TrialRecord]) -> str | None:
        d, now = self._launch.deadline, self._launch.now()
        if d is None:
            return None
        until = clock.format_time(self._ends(records, 0), now)
        said = f"ends by {clock.format_time(d.ends, now)}: confirmation until {until}"
        self._launch.log(said)
        return said

    def _fits(self, record: TrialRecord, records: Mapping[int, TrialRecord]) -> bool:
        assert record.confirms is not None
        takes = deadline.confirmation_s(record.confirms, record, list(records.values()), self._search, self._epochs)
        return deadline.fits(takes, self._launch.now(), self._ends(records, _pair(record)[1]))

    def _ends(self, records: Mapping[int, TrialRecord], seeds: int) -> float:
        """When the last one must be through, the tests of all seeds so far, and of `seeds`, still to come."""
        begun = [_pair(r)[1] for r in records.values() if self._is_wanted(r) and r.state in ("complete", "running")]
        return deadline.confirming_ends(self._answer_by, max([seeds, *begun]), self._test_s)

    def _is_wanted(self, record: TrialRecord) -> bool:
        return record.confirms is not None and _pair(record) in self._order


def _pair(record: TrialRecord) -> tuple[int, int]:
    assert record.confirms is not None
    return record.confirms.trial, record.confirms.nth_seed
