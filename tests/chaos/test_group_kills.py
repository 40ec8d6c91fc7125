"""Supervisors that share a study are killed, interrupted and cut off, and their database restarts, at random moments;
the study is stopped and launched anew, and ends as one that nobody disturbed."""

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

CREW, LEASE_S, EPOCHS = 3, 5.0, 3
TRIALS, MORE_TRIALS = 12, 4
SLOW_S = 8.0  # for a supervisor to come and do something: strikes are as far apart as that
LEFT_WITHIN_S = 60.0  # of the last strike: somebody who died at the end is waited for, in the search and after it
LINE = (
    f"trainer.max_epochs={EPOCHS}", "data.batch_size=2", "checkpoint.every_s=0", "study.confirm.seeds=2",
    "study.confirm.top=2", "tracking.register=never",
)  # fmt: skip
WHAT = {"kill": 5, "interrupt": 2, "cut": 3, "restart": 2, "stop": 1, "more": 1}  # how often each is drawn


@dataclass(frozen=True)
class Strike:
    """what: a key of WHAT. after: when, from the one before, in times that a supervisor here takes to come and do
    something. whom: which of the crew. fresh: whether whoever comes instead has a home of its own. cut_s: seconds that
    the line is cut for."""

    what: str
    after: float
    whom: int
    fresh: bool
    cut_s: float


def drawn(rng: random.Random, kills: int) -> list[Strike]:
    what = rng.choices(list(WHAT), weights=list(WHAT.values()), k=kills)
    return [
        Strike(one, rng.uniform(0, 1.5), rng.randrange(CREW), rng.random() < 0.5, rng.uniform(1.2, 2) * LEASE_S)
        for one in what
    ]


@dataclass
class Member:
    """A supervisor, with its home and its line to the database."""

    process: subprocess.Popen[str]
    home: Path
    cable: Cable


@dataclass
class Crew:
    """So many supervisors at one study, each replaced once it has gone, as long as there is something to do."""

    group: Group
    name: str
    postgres: Postgres
    trials: int = TRIALS
    members: list[Member] = field(default_factory=list)
    gone: list[tuple[str, Member]] = field(default_factory=list)  # and why

    def launch(self) -> None:
        self.group.launch(self.name, f"study.trials={self.trials}", *LINE)

    def launch_more(self) -> None:
        self.trials += MORE_TRIALS
        self.launch()

    def fill(self) -> None:
        """Have somebody come for each who has left by itself, and who may have left early."""
        for i in range(CREW):
            if i >= len(self.members):
                self.members.append(self._hired(None))
            elif self.members[i].process.poll() is not None:
                self._replace(i, "left", fresh=False)

    def fills_within_s(self) -> float:
        """The same, and how long that takes until a trial runs."""
        began = time.monotonic()
        self.fill()
        self.group.wait_for(self.name, lambda seen: seen.count("running", "complete") > 0)
        return time.monotonic() - began

    def _hired(self, home: Path | None) -> Member:
        which = len(self.group.processes)
        home = home or self.group.folder / f"home-{which}"
        cable = Cable(self.group.folder / f"cable-{which}", self.postgres)
        url = cable.through(self.group.url)
        return Member(self.group.work("worker", self.name, "--until-done", url=url, home=home), home, cable)

    def _replace(self, i: int, why: str, fresh: bool) -> None:
        self.gone.append((why, self.members[i]))
        self.members[i] = self._hired(None if fresh else self.members[i].home)

    @property
    def is_over(self) -> bool:
        return not requests.open_studies(self.location)

    @property
    def location(self) -> StudyLocation:
        return study_location([f"home={self.group.folder / 'looks'}", *self.group.stores])

    def strike(self, strike: Strike) -> None:
        getattr(self, f"_{strike.what}")(strike)

    def _kill(self, strike: Strike) -> None:
        self.members[strike.whom].process.kill()
        self._replace(strike.whom, "killed", strike.fresh)

    def _interrupt(self, strike: Strike) -> None:
        self.members[strike.whom].process.send_signal(signal.SIGINT)
        self._replace(strike.whom, "interrupted", strike.fresh)

    def _cut(self, strike: Strike) -> None:
        cable = self.members[strike.whom].cable
        cable.cut()
        mending = threading.Timer(strike.cut_s, cable.reconnect)
        mending.daemon = True
        mending.start()

    def _restart(self, _: Strike) -> None:
        self.postgres.stop()
        self.postgres.start()

    def _stop(self, _: Strike) -> None:
        stopping = self.group.start(self.group.folder / "launcher", "stop", self.name)
        said = stopping.communicate(timeout=120)[0]
        assert stopping.returncode in (0, 1), said  # or somebody is still saving, as it says
        self.launch()

    def _more(self, _: Strike) -> None:
        self.launch_more()

    def leaves(self, within_s: float) -> None:
        """Wait until all have left by themselves, well."""
        until = time.monotonic() + within_s
        everybody = [("left", m) for m in self.members] + self.gone
        for why, member in everybody:
            try:
                said = member.process.communicate(timeout=max(until - time.monotonic(), 1))[0]
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{member.home.name}, {why}, did not leave: {self.standing()}") from None
            codes = {"left": (0,), "killed": (0, -signal.SIGKILL), "interrupted": (0, 130, -signal.SIGINT)}[why]
            assert member.process.returncode in codes, (why, member.process.returncode, said)

    def standing(self) -> str:
        """How the study stands, for whoever reads of a failure."""
        seen = self.group.study(self.name)
        second = seen.confirmation
        confirmed = {} if second is None else Counter(r.state for r in second.records)
        at_it = self.group.rows("SELECT study_id, owner, pid, expires_at FROM overnight_members")
        held = self.group.rows(
            "SELECT study_id, number, owner, fencing_token FROM overnight_leases WHERE owner IS NOT NULL"
        )
        return f"{Counter(r.state for r in seen.records)}, {confirmed}; members {at_it}; leases {held}"


@contextmanager
def told_what_was_said(crew: Crew) -> Iterator[None]:
    """Show what each of them printed, where the test fails."""
    try:
        yield
    except BaseException:
        print(crew.standing())
        for member in [*(m for _, m in crew.gone), *crew.members]:
            member.process.kill()
            print(f"--- {member.home.name}, {member.process.pid}\n{member.process.communicate()[0]}")
        raise


def facts_of(records: tuple[TrialRecord, ...]) -> list[tuple[Any, ...]]:
    return [(r.number, r.state, r.params, r.objective, [(e.epoch, e.metrics) for e in r.history]) for r in records]


def confirmed_by(found: Finding) -> dict[tuple[int, int], tuple[Any, ...]]:
    """(trial, nth seed) of what was compared -> how it ended. Which of them waited first is a matter of who launched
    when, and so their numbers are."""
    compared = {f.trial.number: f for f in (*found.finalists, found.baseline) if f is not None}
    return {
        (r.confirms.trial, r.confirms.nth_seed): (r.confirms.seed, *facts_of((r,))[0][1:])
        for f in compared.values()
        for r in f.runs
        if r.confirms is not None
    }


def said_on_the_test_set(seen: StudyView) -> dict[tuple[int, int], Any]:
    assert seen.confirmation is not None
    numbered = {r.number: r.confirms for r in seen.confirmation.records}
    found = {numbered[number]: (tested.metrics, tested.error) for number, tested in seen.confirmation.tests.items()}
    return {(of.trial, of.nth_seed): tested for of, tested in found.items() if of is not None}


def mlflow_has_each_once(seen: StudyView) -> None:
    """A run for the study and one for each trial and confirmation, all at their end, each epoch's values there once."""
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
            told = client.get_metric_history(child.info.run_id, "val/accuracy")
            wanted = [(e.epoch, e.metrics["val/accuracy"]) for e in record.history]
            assert sorted((m.step, m.value) for m in told) == wanted, (tag, record.number)
    assert len(runs) == 1 + len(seen.records) + len(seen.confirmation.records), [r.data.tags for r in runs]


def is_left_alone(group: Group, location: StudyLocation, name: str) -> None:
    """The study is over, and nobody is at it, nor has anything of it."""
    assert requests.open_studies(location) == []
    assert group.rows("SELECT study_id, number, owner FROM overnight_leases WHERE owner IS NOT NULL") == []
    until = time.monotonic() + 2 * LEASE_S  # who was killed is a member until then
    while members := group.rows("SELECT owner, pid FROM overnight_members WHERE expires_at > clock_timestamp()"):
        assert time.monotonic() < until, f"{name}: {members}"
        time.sleep(0.5)


def test_a_shared_study_struck_again_and_again_ends_as_the_undisturbed_one(
    request: pytest.FixtureRequest,
    group: Callable[..., Group],
    postgres: Postgres,
    rng: random.Random,
    say: Callable[[str], None],
) -> None:
    strikes = drawn(rng, request.config.getoption("--kills"))
    struck = group(lease_s=LEASE_S)
    crew = Crew(struck, "struck", postgres)
    with told_what_was_said(crew):
        crew.launch()
        comes_within_s = min(crew.fills_within_s(), SLOW_S)
        for i, strike in enumerate(strikes, 1):
            time.sleep(strike.after * comes_within_s)
            if crew.is_over:
                crew.launch_more()
            crew.fill()
            say(f"{i}: {strike.what} {strike.whom}{' fresh' * strike.fresh}; {crew.standing().partition(';')[0]}")
            crew.strike(strike)
        crew.fill()
        confirmed_before = struck.study("struck").confirmed
        say(f"no more strikes; {crew.standing()}")
        crew.leaves(LEFT_WITHIN_S * LATE)
        is_left_alone(struck, crew.location, "struck")
        seen = struck.study("struck")
        assert {r.state for r in seen.records} == {"complete"}
        mlflow_has_each_once(seen)
    said = Counter(why for why, _ in crew.gone)
    say(f"all have left, {dict(said)} on the way; an undisturbed study of {crew.trials} trials")

    calm = group(lease_s=30)
    calm.work("tune", "study.name=undisturbed", f"study.trials={crew.trials}", *LINE, "sampler=random", "pruner=none",
              "preflight=never", "pictures.when=never")  # fmt: skip
    said_there = calm.outputs()
    assert calm.processes[0].returncode == 0, said_there
    undisturbed = calm.study("undisturbed")
    assert facts_of(seen.records) == facts_of(undisturbed.records), "bit for bit"
    ours, theirs = finding.from_view(seen), finding.from_view(undisturbed)
    assert confirmed_by(ours) == confirmed_by(theirs), "bit for bit"
    assert [f.trial.number for f in ours.finalists] == [f.trial.number for f in theirs.finalists]
    assert ours.winner is not None
    assert theirs.winner is not None
    assert (ours.winner.trial.number, ours.winner.estimate) == (theirs.winner.trial.number, theirs.winner.estimate)
    tests, wanted = said_on_the_test_set(seen), said_on_the_test_set(undisturbed)
    both = tests.keys() & wanted.keys()
    assert {pair: tests[pair] for pair in both} == {pair: wanted[pair] for pair in both}
    if not confirmed_before:  # else its network may lie in a home that nobody came back to
        assert both == wanted.keys()
    say(f"{len(strikes)} strikes; {len(both)} of {len(wanted)} tests")
