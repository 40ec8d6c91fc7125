"""The limits that end a launch before its budget is spent: patience, a terminator, a deadline.

The supervisor asks a `Limits` for the next trial and whether the time is up.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from overnight.config import clock
from overnight.search import deadline, patience
from overnight.search.deadline import Deadline, TimePlan
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, typical_units
from overnight.search.schedulers.study import is_spent, progress_text
from overnight.search.terminator import Terminator

# The number of a trial that waits; "any" trial that the study has next; a "new" trial, while others wait; or none.
NextTrial = int | Literal["any", "new"] | None
Limit = Literal["patience", "terminator", "deadline"]
# The time plan is computed from all records, at most this often.
_PLAN_EVERY_S = 1.0


@dataclass(frozen=True)
class TimeLeft:
    """For how many epochs of mean length there is time; infinite without a deadline.

    Attributes:
        one_slot: In one slot. A trial trains its epochs one after the other.
        all_slots: In all slots of this process together.
    """

    one_slot: float = math.inf
    all_slots: float = math.inf


class Limits(Protocol):
    """What a supervisor asks. `records`: all trials by number; `running`: trial numbers."""

    def next_trial(self, records: Mapping[int, TrialRecord], running: Collection[int]) -> NextTrial:
        """The trial to start in a free slot."""
        ...

    def time_left(self, records: Mapping[int, TrialRecord]) -> TimeLeft | None:
        """The epochs for which there is time; None once no trial may start."""
        ...

    def finishes(self, records: Mapping[int, TrialRecord]) -> bool:
        """Whether no new trial starts, and only the best paused ones are trained to the end."""
        ...

    def time_is_up(self, records: Mapping[int, TrialRecord]) -> bool:
        """Whether running trials must save and stop."""
        ...

    def is_late(self) -> bool:
        """Whether optional work, such as plots, would cost the answer."""
        ...

    def mlflow_timeout_s(self) -> float | None:
        """Seconds that remain to synchronise MLflow; None for no limit."""
        ...

    def cut_short(self, records: Mapping[int, TrialRecord]) -> bool:
        """Whether a limit left work undone. Nothing is running."""
        ...

    def status_line(self, records: Mapping[int, TrialRecord]) -> str | None:
        """What remains to be done, in one line; None without a deadline."""
        ...


class NoLimits:
    """Lets a launch go on until its budget is spent."""

    def next_trial(self, records: Mapping[int, TrialRecord], running: Collection[int]) -> NextTrial:  # noqa: ARG002
        return "any"

    def time_left(self, records: Mapping[int, TrialRecord]) -> TimeLeft | None:  # noqa: ARG002
        return TimeLeft()

    def finishes(self, records: Mapping[int, TrialRecord]) -> bool:  # noqa: ARG002
        return False

    def time_is_up(self, records: Mapping[int, TrialRecord]) -> bool:  # noqa: ARG002
        return False

    def is_late(self) -> bool:
        return False

    def mlflow_timeout_s(self) -> float | None:
        return None

    def cut_short(self, records: Mapping[int, TrialRecord]) -> bool:  # noqa: ARG002
        return False

    def status_line(self, records: Mapping[int, TrialRecord]) -> str | None:  # noqa: ARG002
        return None


class Launch:
    """One launch of a study: its deadline, the limit that ended it, and notes for the report.

    Args:
        started_at: When it started, in seconds since 1970.
        save: Stores what other processes see of the launch.
        now: The clock, in seconds since 1970.
        launched_at: When the study was launched, for a worker that joined later. The deadline counts from here.
    """

    def __init__(
        self,
        plan: Plan,
        started_at: float,
        save: Callable[[dict[str, Any]], None],
        now: Callable[[], float] = time.time,
        launched_at: float | None = None,
    ) -> None:
        self.plan, self.now, self._save, self.started_at = plan, now, save, started_at
        self.deadline: Deadline | None = deadline.deadline_of(
            plan.settings.study, started_at if launched_at is None else launched_at
        )
        self.startup_s = 0.0
        self.ended_by: Limit | None = None
        self.notes: list[str] = []
        self._logged = ""
        self._logged_at = 0.0
        self._save_state()

    def set_startup(self, seconds: float) -> None:
        """Record the seconds to the first trial. A machine that is slow to start is slow to close."""
        self.startup_s = seconds
        self._save_state()

    def answer_due_at(self, trials: int) -> float:
        """When a search of so many trials must be confirmed and tested; inf without a deadline."""
        if self.deadline is None:
            return math.inf
        return self.deadline.ends_at - deadline.closing_s(trials, self.startup_s)

    def publish_due_at(self) -> float:
        """When to stop waiting for the report page and for MLflow; inf without a deadline."""
        return math.inf if self.deadline is None else self.deadline.ends_at - deadline.exit_s(self.startup_s)

    def mlflow_timeout_s(self) -> float | None:
        return None if self.deadline is None else max(self.publish_due_at() - self.now(), 1.0)

    def end(self, limit: Limit, note: str) -> None:
        self.ended_by = limit
        self.add_note(note)

    def add_note(self, line: str) -> None:
        """Add a line on what was cut to the report and to the launch log."""
        if line not in self.notes:
            self.notes.append(line)
            self.log(line, at_once=True)
        self._save_state()

    def log(self, line: str, at_once: bool = False) -> None:
        """Append a line to the launch log, unless it repeats the last one. Writes at most one line a minute.

        Args:
            at_once: Write it even within that minute.
        """
        now = self.now()
        if line == self._logged or (not at_once and now - self._logged_at < 60):
            return
        self._logged, self._logged_at = line, now
        path = self.plan.paths.launch_log
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))} {line}\n")

    def _save_state(self) -> None:
        self._save(
            {
                "deadline": None if self.deadline is None else vars(self.deadline),
                "startup_s": self.startup_s,
                "ended_by": self.ended_by,
                "notes": self.notes,
            }
        )


class SearchLimits:
    """The limits of a search."""

    def __init__(self, launch: Launch, slots: int, terminator: Terminator) -> None:
        self._launch, self._slots, self._terminator = launch, slots, terminator
        self._plan = launch.plan
        self._is_started = False
        self._patience: tuple[int, str | None] = (-1, None)  # the number of ended trials, and the reason to stop then
        self._stop_reason: tuple[Limit, str] | None = None
        self._time_plan: TimePlan | None = None
        self._planned_at = -_PLAN_EVERY_S

    def next_trial(self, records: Mapping[int, TrialRecord], running: Collection[int]) -> NextTrial:
        self._note_start()
        waiting = [r for n, r in sorted(records.items()) if r.state in ("waiting", "paused") and n not in running]
        if not waiting and len(records) >= self._plan.budget.trials:
            return "any"
        self._stop_reason = self._reason_to_stop(list(records.values()))
        if self._stop_reason is not None:
            return None
        if self._launch.deadline is None:
            return "any"
        time_plan, now = self._current_time_plan(records), self._launch.now()
        for record in waiting:
            seconds = deadline.remaining_s(record, time_plan, typical_units(records.values(), self._plan))
            if deadline.fits(seconds, now, time_plan.search_ends_at):
                return record.number
        if len(records) < self._plan.budget.trials and deadline.fits(time_plan.trial_s, now, time_plan.search_ends_at):
            return "new" if waiting else "any"
        return None

    def time_left(self, records: Mapping[int, TrialRecord]) -> TimeLeft | None:
        self._note_start()
        if self._launch.deadline is None:
            return TimeLeft()
        seconds = self._current_time_plan(records).search_ends_at - self._launch.now()
        if seconds <= 0:
            return None
        epoch_s = deadline.epoch_s(records.values())
        if epoch_s is None:
            return TimeLeft()
        one_slot = seconds / (deadline.MARGIN * epoch_s)
        return TimeLeft(one_slot, one_slot * self._slots)

    def finishes(self, records: Mapping[int, TrialRecord]) -> bool:
        reason = patience.finish_reason(records.values(), self._plan)
        self._stop_reason = ("patience", reason) if reason is not None else None
        return reason is not None

    def time_is_up(self, records: Mapping[int, TrialRecord]) -> bool:
        if self._launch.deadline is None:
            return False
        return self._launch.now() >= self._current_time_plan(records).search_ends_at

    def is_late(self) -> bool:
        time_plan = self._time_plan
        if time_plan is None:
            return False
        return self._launch.now() >= time_plan.search_ends_at + deadline.STOP_S + deadline.PLOTS_S

    def mlflow_timeout_s(self) -> float | None:
        time_plan = self._time_plan
        if time_plan is None or not time_plan.confirmation.seeds:
            return self._launch.mlflow_timeout_s()
        # The next start writes what MLflow lacks then. The confirmation must not wait for it.
        due_at = time_plan.search_ends_at + deadline.STOP_S + deadline.PLOTS_S + deadline.SWITCH_S
        return max(due_at - self._launch.now(), deadline.SWITCH_S)

    def cut_short(self, records: Mapping[int, TrialRecord]) -> bool:
        trials = list(records.values())
        if is_spent(trials, self._plan):
            return False
        progress = f"{progress_text(trials, self._plan)} are done"
        paused = sum(r.state == "paused" and not r.waits_at_rung for r in trials)
        if paused:
            progress += f"; {paused} running trial{'s were' if paused > 1 else ' was'} saved and can be resumed"
        # The reason of the last `next_trial` counts: the terminator may have changed its answer since.
        reason = self._stop_reason or self._reason_to_stop(trials)
        if reason is not None:
            self._launch.end(reason[0], f"{reason[1]}; {progress}")
            return True
        if self._launch.deadline is None:
            return False
        setting = self._launch.deadline.setting
        self._launch.end("deadline", f"{setting} ended the search: {progress}{self._too_short(trials)}")
        return True

    def status_line(self, records: Mapping[int, TrialRecord]) -> str | None:
        if self._terminator.error:
            self._launch.log(self._terminator.error, at_once=True)
        if self._launch.deadline is None:
            return None
        line = deadline.describe(self._current_time_plan(records), self._launch.now())
        self._launch.log(line)
        return line

    def _note_start(self) -> None:
        if not self._is_started:
            self._is_started = True
            if self._launch.deadline is not None:
                self._launch.set_startup(self._launch.now() - self._launch.started_at)

    def _reason_to_stop(self, records: Sequence[TrialRecord]) -> tuple[Limit, str] | None:
        if self._plan.pauses:
            reason = patience.finish_reason(records, self._plan)
            return ("patience", reason) if reason is not None else None
        ended = sum(r.done for r in records)
        if self._patience[0] != ended:
            self._patience = ended, patience.stop_reason(records, self._plan.settings)
        if self._patience[1] is not None:
            return "patience", self._patience[1]
        reason = self._terminator.stop_reason(records)
        return ("terminator", reason) if reason is not None else None

    def _current_time_plan(self, records: Mapping[int, TrialRecord]) -> TimePlan:
        end, now = self._launch.deadline, self._launch.now()
        assert end is not None
        if self._time_plan is None or now - self._planned_at >= _PLAN_EVERY_S:
            trials = list(records.values())
            self._time_plan = deadline.plan_time(self._plan, trials, end, self._slots, now, self._launch.startup_s)
            self._planned_at = now
        return self._time_plan

    def _too_short(self, records: Sequence[TrialRecord]) -> str:
        """A remedy where the deadline left no time for a single trial."""
        if any(r.state in ("complete", "pruned") for r in records):
            return ""
        seconds = deadline.typical_trial_s(records, typical_units(records, self._plan))
        takes = "" if seconds is None else f", which takes about {seconds:.0f} s"
        return f"; there was no time for one whole trial{takes}: give it more"


class ConfirmationLimits:
    """The limits of a confirmation.

    Args:
        search: The trials of the search.
        wanted: (trial, nth seed) of the trials to run, in order, as far as time allows.
        test_set_s: Seconds of the test set for one network.
    """

    def __init__(
        self, launch: Launch, search: Sequence[TrialRecord], wanted: Sequence[tuple[int, int]], test_set_s: float
    ) -> None:
        self._launch, self._search = launch, search
        self._order = {pair: i for i, pair in enumerate(wanted)}
        self._test_set_s, self._answer_due_at = test_set_s, launch.answer_due_at(len(search))
        self._units = typical_units(search, launch.plan)

    def next_trial(self, records: Mapping[int, TrialRecord], running: Collection[int]) -> NextTrial:
        waiting = [
            r
            for n, r in records.items()
            if self._is_wanted(r) and r.state in ("waiting", "paused") and n not in running
        ]
        for record in sorted(waiting, key=lambda r: self._order[_pair(r)]):
            if self._fits(record, records):
                return record.number
        return None

    def time_left(self, records: Mapping[int, TrialRecord]) -> TimeLeft | None:  # noqa: ARG002
        return TimeLeft()

    def finishes(self, records: Mapping[int, TrialRecord]) -> bool:  # noqa: ARG002
        return False

    def time_is_up(self, records: Mapping[int, TrialRecord]) -> bool:
        return self._launch.now() >= self._ends_at(records, 0)

    def is_late(self) -> bool:
        return self._launch.now() >= self._answer_due_at

    def mlflow_timeout_s(self) -> float | None:
        return self._launch.mlflow_timeout_s()

    def cut_short(self, records: Mapping[int, TrialRecord]) -> bool:
        return any(self._is_wanted(r) and not r.done for r in records.values())

    def status_line(self, records: Mapping[int, TrialRecord]) -> str | None:
        end, now = self._launch.deadline, self._launch.now()
        if end is None:
            return None
        until = clock.format_time(self._ends_at(records, 0), now)
        line = f"ends by {clock.format_time(end.ends_at, now)}: confirmation until {until}"
        self._launch.log(line)
        return line

    def _fits(self, record: TrialRecord, records: Mapping[int, TrialRecord]) -> bool:
        assert record.confirms is not None
        confirmations = list(records.values())
        seconds = deadline.confirmation_trial_s(record.confirms, record, confirmations, self._search, self._units)
        return deadline.fits(seconds, self._launch.now(), self._ends_at(records, _pair(record)[1]))

    def _ends_at(self, records: Mapping[int, TrialRecord], seeds: int) -> float:
        """When the last trial must have ended, so that the seeds that have started, and `seeds`, can be tested."""
        started = [_pair(r)[1] for r in records.values() if self._is_wanted(r) and r.state in ("complete", "running")]
        return deadline.confirmation_ends_at(self._answer_due_at, max([seeds, *started]), self._test_set_s)

    def _is_wanted(self, record: TrialRecord) -> bool:
        return record.confirms is not None and _pair(record) in self._order


def _pair(record: TrialRecord) -> tuple[int, int]:
    assert record.confirms is not None
    return record.confirms.trial, record.confirms.nth_seed
