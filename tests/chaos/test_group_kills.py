"""Supervisors that share a study are killed, interrupted and disconnected at random times. Their database
restarts, and the study is stopped and launched again. It ends like an undisturbed study."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from overnight.config.compose import study_location
from overnight.config.paths import StudyLocation
from overnight.report import finding
from overnight.report.finding import Finding
from overnight.search.record import TrialRecord
from overnight.study import requests
from overnight.study.snapshot import StudyView
from overnight.tracking import store
from support.commands import LATE
from support.groups import Group
from support.servers import Cable, Postgres

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(5400)]

SUPERVISORS, LEASE_S, EPOCHS = 3, 5.0, 3
TRIALS, MORE_TRIALS = 12, 4
SLOW_S = 8.0  # upper bound of the time that a supervisor takes to start a trial; strikes are up to 1.5 times this apart
LEFT_WITHIN_S = 60.0  # after the last strike: search and confirmation each wait for the lease of a dead supervisor
LINE = (
    f"trainer.max_epochs={EPOCHS}", "data.batch_size=2", "checkpoint.every_s=0", "study.confirm.seeds=2",
    "study.confirm.top=2", "tracking.register=never",
)  # fmt: skip
KINDS = {"kill": 5, "interrupt": 2, "cut": 3, "restart": 2, "stop": 1, "more": 1}  # weights


@dataclass(frozen=True)
class Strike:
    """One disturbance.

    Attributes:
        kind: A key of KINDS.
        after: The time since the previous one, in units of the time that a supervisor takes to start a trial.
        which: The index of the supervisor.
        fresh: Whether its replacement has a new home.
        cut_s: For how many seconds its connection is cut.
    """

    kind: str
    after: float
    which: int
    fresh: bool
    cut_s: float


def draw_strikes(rng: random.Random, kills: int) -> list[Strike]:
    kinds = rng.choices(list(KINDS), weights=list(KINDS.values()), k=kills)
    return [
        Strike(kind, rng.uniform(0, 1.5), rng.randrange(SUPERVISORS), rng.random() < 0.5, rng.uniform(1.2, 2) * LEASE_S)
        for kind in kinds
    ]


@dataclass
class Member:
    """A supervisor with its home and its connection to the database."""

    process: subprocess.Popen[str]
    home: Path
    cable: Cable


@dataclass
class Supervisors:
    """Supervisors of one study. Each one that ends is replaced as long as there is work."""

    group: Group
    name: str
    postgres: Postgres
    trials: int = TRIALS
    members: list[Member] = field(default_factory=list)
    ended: list[tuple[str, Member]] = field(default_factory=list)  # with the reason

    def launch(self) -> None:
        self.group.launch(self.name, f"study.trials={self.trials}", *LINE)

    def launch_more(self) -> None:
        self.trials += MORE_TRIALS
        self.launch()

    def fill(self) -> None:
        """Replace every supervisor that has ended by itself, perhaps before the study was complete."""
        for i in range(SUPERVISORS):
            if i >= len(self.members):
                self.members.append(self._started(None))
            elif self.members[i].process.poll() is not None:
                self._replace(i, "ended", fresh=False)

    def seconds_to_fill(self) -> float:
        """Do the same, and return the seconds until a trial runs."""
        began = time.monotonic()
        self.fill()
        self.group.wait_for(self.name, lambda seen: seen.count("running", "complete") > 0)
        return time.monotonic() - began

    def _started(self, home: Path | None) -> Member:
        which = len(self.group.processes)
        home = home or self.group.folder / f"home-{which}"
        cable = Cable(self.group.folder / f"cable-{which}", self.postgres)
        url = cable.through(self.group.url)
        return Member(self.group.work("worker", self.name, "--until-done", url=url, home=home), home, cable)

    def _replace(self, i: int, why: str, fresh: bool) -> None:
        self.ended.append((why, self.members[i]))
        self.members[i] = self._started(None if fresh else self.members[i].home)

    @property
    def is_over(self) -> bool:
        return not requests.open_studies(self.location)

    @property
    def location(self) -> StudyLocation:
        return study_location([f"home={self.group.folder / 'observer'}", *self.group.stores])

    def strike(self, strike: Strike) -> None:
        getattr(self, f"_{strike.kind}")(strike)

    def _kill(self, strike: Strike) -> None:
        self.members[strike.which].process.kill()
        self._replace(strike.which, "killed", strike.fresh)

    def _interrupt(self, strike: Strike) -> None:
        self.members[strike.which].process.send_signal(signal.SIGINT)
        self._replace(strike.which, "interrupted", strike.fresh)

    def _cut(self, strike: Strike) -> None:
        cable = self.members[strike.which].cable
        cable.cut()
        reconnection = threading.Timer(strike.cut_s, cable.reconnect)
        reconnection.daemon = True
        reconnection.start()

    def _restart(self, _: Strike) -> None:
        self.postgres.stop()
        self.postgres.start()

    def _stop(self, _: Strike) -> None:
        stopping = self.group.start(self.group.folder / "launcher", "stop", self.name)
        output = stopping.communicate(timeout=120)[0]
        assert stopping.returncode in (0, 1), output  # 1: a supervisor is still saving
        self.launch()

    def _more(self, _: Strike) -> None:
        self.launch_more()

    def assert_all_end(self, within_s: float) -> None:
        """Wait until all have ended by themselves with a good exit code."""
        until = time.monotonic() + within_s
        all_members = [("ended", m) for m in self.members] + self.ended
        for why, member in all_members:
            try:
                output = member.process.communicate(timeout=max(until - time.monotonic(), 1))[0]
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{member.home.name}, {why}, did not end: {self.describe()}") from None
            codes = {"ended": (0,), "killed": (0, -signal.SIGKILL), "interrupted": (0, 130, -signal.SIGINT)}[why]
            assert member.process.returncode in codes, (why, member.process.returncode, output)

    def describe(self) -> str:
        """Return the state of the study, for the message of a failure."""
        seen = self.group.study(self.name)
        second = seen.confirmation
        confirmed = {} if second is None else Counter(r.state for r in second.records)
        members = self.group.rows("SELECT study_id, owner, pid, expires_at FROM overnight_members")
        held = self.group.rows(
            "SELECT study_id, number, owner, fencing_token FROM overnight_leases WHERE owner IS NOT NULL"
        )
        return f"{Counter(r.state for r in seen.records)}, {confirmed}; members {members}; leases {held}"


@contextmanager
def print_outputs_on_failure(supervisors: Supervisors) -> Iterator[None]:
    """Print the output of each supervisor if the test fails."""
    try:
        yield
    except BaseException:
        print(supervisors.describe())
        for member in [*(m for _, m in supervisors.ended), *supervisors.members]:
            member.process.kill()
            print(f"--- {member.home.name}, {member.process.pid}\n{member.process.communicate()[0]}")
        raise


def facts_of(records: tuple[TrialRecord, ...]) -> list[tuple[Any, ...]]:
    return [(r.number, r.state, r.params, r.objective, [(e.index, e.metrics) for e in r.history]) for r in records]


def confirmed_by(found: Finding) -> dict[tuple[int, int], tuple[Any, ...]]:
    """Return (trial, nth seed) -> outcome of every compared run, without its number. Numbers depend on which supervisor
    created a run first."""
    compared = {f.trial.number: f for f in (*found.finalists, found.baseline) if f is not None}
    return {
        (r.confirms.trial, r.confirms.nth_seed): (r.confirms.seed, *facts_of((r,))[0][1:])
        for f in compared.values()
        for r in f.runs
        if r.confirms is not None
    }


def results_on_the_test_set(seen: StudyView) -> dict[tuple[int, int], Any]:
    assert seen.confirmation is not None
    numbered = {r.number: r.confirms for r in seen.confirmation.records}
    found = {numbered[number]: (tested.metrics, tested.error) for number, tested in seen.confirmation.tests.items()}
    return {(of.trial, of.nth_seed): tested for of, tested in found.items() if of is not None}


def assert_mlflow_has_each_run_once(seen: StudyView) -> None:
    """Assert one finished run for the study, each trial and each confirmation, with the values of each epoch once."""
    assert seen.confirmation is not None
    client = store.open_client(seen.plan.settings.location)
    runs = client.search_runs([str(seen.experiment_id)], max_results=1000)
    assert {r.info.status for r in runs} == {"FINISHED"}, Counter(r.info.status for r in runs)
    (parent,) = [r for r in runs if r.data.tags["overnight.role"] == "study"]
    assert parent.data.tags["overnight.state"] == "complete"
    for tag, records in (("overnight.trial", seen.records), ("overnight.confirmation", seen.confirmation.records)):
        children = [r for r in runs if tag in r.data.tags]
        assert sorted(int(r.data.tags[tag]) for r in children) == [r.number for r in records], tag
        assert {r.data.tags["mlflow.parentRunId"] for r in children} == {parent.info.run_id}
        for child in children:
            record = next(r for r in records if r.number == int(child.data.tags[tag]))
            logged = client.get_metric_history(child.info.run_id, "val/accuracy")
            wanted = [(e.index, e.metrics["val/accuracy"]) for e in record.history]
            assert sorted((m.step, m.value) for m in logged) == wanted, (tag, record.number)
    assert len(runs) == 1 + len(seen.records) + len(seen.confirmation.records), [r.data.tags for r in runs]


def assert_no_owners(group: Group, location: StudyLocation, name: str) -> None:
    """Assert that the study is not open, has no member and no lease."""
    assert requests.open_studies(location) == []
    assert group.rows("SELECT study_id, number, owner FROM overnight_leases WHERE owner IS NOT NULL") == []
    until = time.monotonic() + 2 * LEASE_S  # a killed supervisor is a member until then
    while members := group.rows("SELECT owner, pid FROM overnight_members WHERE expires_at > clock_timestamp()"):
        assert time.monotonic() < until, f"{name}: {members}"
        time.sleep(0.5)


def test_a_repeatedly_disturbed_shared_study_ends_as_the_undisturbed_one(
    request: pytest.FixtureRequest,
    group: Callable[..., Group],
    postgres: Postgres,
    rng: random.Random,
    report: Callable[[str], None],
) -> None:
    strikes = draw_strikes(rng, request.config.getoption("--kills"))
    disturbed = group(lease_s=LEASE_S)
    supervisors = Supervisors(disturbed, "disturbed", postgres)
    with print_outputs_on_failure(supervisors):
        supervisors.launch()
        start_s = min(supervisors.seconds_to_fill(), SLOW_S)
        for i, strike in enumerate(strikes, 1):
            time.sleep(strike.after * start_s)
            if supervisors.is_over:
                supervisors.launch_more()
            supervisors.fill()
            state = supervisors.describe().partition(";")[0]
            report(f"{i}: {strike.kind} {strike.which}{' fresh' * strike.fresh}; {state}")
            supervisors.strike(strike)
        supervisors.fill()
        confirmed_before = disturbed.study("disturbed").confirmed
        report(f"no more strikes: {supervisors.describe()}")
        supervisors.assert_all_end(LEFT_WITHIN_S * LATE)
        assert_no_owners(disturbed, supervisors.location, "disturbed")
        seen = disturbed.study("disturbed")
        assert {r.state for r in seen.records} == {"complete"}
        assert_mlflow_has_each_run_once(seen)
    reasons = Counter(why for why, _ in supervisors.ended)
    report(f"all have ended, earlier ones: {dict(reasons)}; next: an undisturbed study of {supervisors.trials} trials")

    alone = group(lease_s=30)
    line = ("tune", "study.name=undisturbed", f"study.trials={supervisors.trials}", *LINE)
    alone.work(*line, "sampler=random", "scheduler=none", "preflight=never", "pictures.when=never")
    output = alone.outputs()
    assert alone.processes[0].returncode == 0, output
    undisturbed = alone.study("undisturbed")
    assert facts_of(seen.records) == facts_of(undisturbed.records), "bit by bit"
    found, wanted = finding.from_view(seen), finding.from_view(undisturbed)
    assert confirmed_by(found) == confirmed_by(wanted), "bit by bit"
    assert [f.trial.number for f in found.finalists] == [f.trial.number for f in wanted.finalists]
    assert found.winner is not None
    assert wanted.winner is not None
    assert (found.winner.trial.number, found.winner.estimate) == (wanted.winner.trial.number, wanted.winner.estimate)
    tests, wanted_tests = results_on_the_test_set(seen), results_on_the_test_set(undisturbed)
    both = tests.keys() & wanted_tests.keys()
    assert {pair: tests[pair] for pair in both} == {pair: wanted_tests[pair] for pair in both}
    if not confirmed_before:  # otherwise its network may be in a home that no supervisor uses any more
        assert both == wanted_tests.keys()
    report(f"{len(strikes)} strikes; {len(both)} of {len(wanted_tests)} tests")
