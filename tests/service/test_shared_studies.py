"""Studies that several processes share: when they are complete, and what the published answer covers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from overnight import api, protocol
from overnight.config.problems import ConfigError
from overnight.report import confirm, finalize
from overnight.report.live import NullScreen
from overnight.runner import shared_exit
from overnight.runner.shared_exit import ExitPolicy
from overnight.search.build_plan import build_plan
from overnight.search.limits import ConfirmationLimits
from overnight.search.plan import Plan
from overnight.study import open as opening
from overnight.study import requests
from overnight.study.open import open_study
from overnight.study.session import StudySession
from overnight.study.storage import leases
from overnight.study.storage.leased import LeasedStorage
from overnight.study.storage.outage import Unreachable
from overnight.system.signals import Signals
from overnight.tracking import store
from support.servers import Postgres
from support.shared_sessions import Join, ask_number, epoch, leased_storage, release_and_leave

pytestmark = pytest.mark.long

AT_ONCE = ("trainer.max_epochs=1", "preflight=never", "pictures.when=never", "study.confirm.seeds=0", "slots=1")


def test_missing_data_is_reported_before_a_shared_study_gets_a_trial_here(
    planned: Callable[..., Plan], database: Callable[[], str]
) -> None:
    study = planned(database(), "data._target_=user_mistakes.Missing", "search=none", "slots=1")
    session, _ = open_study(study)
    with pytest.raises(ConfigError, match=r"^data\.root: put train-images\.gz into /nowhere$"):
        api.run(study, screen=NullScreen())
    assert [t.state for t in session.trials()] == [TrialState.WAITING]
    session.close()


def test_a_short_outage_does_not_end_a_study(
    planned: Callable[..., Plan], database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is back in the next iteration of the loop."""
    claims, claim = iter(range(100)), LeasedStorage.claim

    def unreachable_once(self: LeasedStorage, *args: Any) -> int | None:
        if next(claims) == 1:
            raise Unreachable("the connection was lost")
        return claim(self, *args)

    monkeypatch.setattr(LeasedStorage, "claim", unreachable_once)
    result = api.run(planned(database(), *AT_ONCE), screen=NullScreen())
    assert next(claims) > 3
    assert (result.stop_reason, [r.state for r in result.records]) == ("complete", ["complete"] * 3)


def test_a_study_is_not_complete_while_a_peer_runs_its_last_trial(
    planned: Callable[..., Plan], database: Callable[[], str], join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = planned(database(), *AT_ONCE, "study.trials=2")
    b, claim, runs = join("b", 30.0, study), LeasedStorage.claim, []

    def end() -> None:
        time.sleep(2)
        b.writer.record(epoch(1, 0))
        b.writer.complete(1)
        release_and_leave(b, 1)

    def second(self: LeasedStorage, *args: Any) -> int | None:
        if runs:  # before this process claims the remaining trial
            monkeypatch.setattr(LeasedStorage, "claim", claim)
            runs.append(ask_number(b))
            threading.Thread(target=end).start()
        else:
            runs.append(0)
        return claim(self, *args)

    monkeypatch.setattr(LeasedStorage, "claim", second)
    result = api.run(study, screen=NullScreen())
    assert runs == [0, 1]
    assert [r.state for r in result.records] == ["complete", "complete"]


def test_a_trial_that_runs_while_its_study_is_extended_is_resumed_in_the_extended_one(
    planned: Callable[..., Plan], database: Callable[[], str]
) -> None:
    url = database()
    before, _ = open_study(planned(url))
    assert ask_number(before) == 0
    wider = planned(url, "optimizer.lr=tag(log,interval(1e-6,1))")
    after, _ = open_study(wider, extend=True)
    assert [ask_number(after) for _ in range(2)] == [0, 1]
    before.close()
    after.close()


def test_all_first_trials_of_a_new_study_exist(
    planned: Callable[..., Plan], database: Callable[[], str], tmp_path: Path
) -> None:
    planned(database())  # sets the URL
    one = build_plan([f"home={tmp_path}", "storage=postgres", "trainer.max_epochs=1", "slots=1"], searching=False)
    assert [len(api.run_one(one, screen=NullScreen()).records) for _ in range(2)] == [1, 1]
    study = build_plan([f"home={tmp_path}", "storage=postgres", *AT_ONCE, "study.trials=1"])
    study = planned(str(study.settings.location.storage_url), *AT_ONCE, "study.trials=1", "study.confirm.seeds=2")
    assert api.run(study, screen=NullScreen()).finding.confirmed == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("left", ["requeued", "abandoned"])
def test_a_confirmation_that_a_peer_leaves_unfinished_is_completed_before_the_answer(
    planned: Callable[..., Plan], database: Callable[[], str], join: Join, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """This is known after the limits found nothing to start, and before they are evaluated again."""
    study = planned(database(), *AT_ONCE, "study.trials=1", "study.confirm.seeds=2", "storage.lease_s=5")
    enqueue, choose, others = confirm.enqueue, ConfirmationLimits.next_trial, []

    def with_peer(session: StudySession, *args: Any) -> list[tuple[int, int]]:
        pairs = enqueue(session, *args)
        others.append(join("b", 1.0 if left == "abandoned" else 30.0, session.plan))
        assert others[0].queue.ask_for(1) is not None
        return pairs

    def pause_once_refused(self: ConfirmationLimits, *args: Any) -> Any:
        chosen = choose(self, *args)
        if chosen is None and left == "requeued" and len(others) == 1:
            others.append(others[0])
            others[0].writer.pause(1)
            release_and_leave(others[0], 1)
        return chosen

    monkeypatch.setattr(confirm, "enqueue", with_peer)
    monkeypatch.setattr(ConfirmationLimits, "next_trial", pause_once_refused)
    result = api.run(study, screen=NullScreen())
    assert others
    assert (result.stop_reason, result.published, result.finding.confirmed) == ("complete", True, 2)  # type: ignore[union-attr]
    assert requests.open_studies(study.settings.location) == []


def _at_the_second_claim(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    claim, claims = LeasedStorage.claim, []

    def counted(self: LeasedStorage, *args: Any) -> int | None:
        claims.append(self)
        if len(claims) == 2:
            monkeypatch.setattr(LeasedStorage, "claim", claim)
            do()
        return claim(self, *args)

    monkeypatch.setattr(LeasedStorage, "claim", counted)


def test_a_machine_whose_trials_all_fail_does_not_close_the_study_for_its_peers(
    planned: Callable[..., Plan], database: Callable[[], str], join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = planned(database(), *AT_ONCE, "study.trials=2")
    b = join("b", 30.0, study)
    _at_the_second_claim(monkeypatch, lambda: shared_exit.give_up(b))
    result = api.run(study, screen=NullScreen())
    assert (result.stop_reason, result.published) == ("complete", True)
    assert requests.open_studies(study.settings.location) == []
    lonely, _ = open_study(planned(database(), *AT_ONCE))
    shared_exit.give_up(lonely)
    assert requests.open_studies(lonely.plan.settings.location) == [], "there are no peers"
    lonely.close()


@pytest.mark.parametrize(
    "line", [["study.trials=3"], ["study.trials=2", "study.patience=9", "scheduler=median"], ["study.trials=2"]]
)
def test_a_study_that_is_launched_again_while_it_runs_stays_open(
    planned: Callable[..., Plan], database: Callable[[], str], monkeypatch: pytest.MonkeyPatch, line: list[str]
) -> None:
    first = planned(url := database(), *AT_ONCE, "study.trials=2", "study.hours=1")
    changed = planned(url, *AT_ONCE, *line)

    def launch() -> None:  # as from another process
        name = leases._process["owner"]
        open_study(changed)[0].close()
        leases._process["owner"] = name

    _at_the_second_claim(monkeypatch, launch)
    assert len(api.run(first, screen=NullScreen()).records) == 2
    assert requests.open_studies(first.settings.location) == [first.name]
    result = api.run_launched(first.name, changed.settings, Signals(), screen=NullScreen())
    assert len(result.records) == changed.settings.study.trials
    assert requests.open_studies(first.settings.location) == []


def test_a_trial_that_a_peer_starts_as_patience_ends_the_search_is_part_of_the_answer(
    planned: Callable[..., Plan], database: Callable[[], str], join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = planned(database(), *AT_ONCE, "study.trials=9", "study.patience=1", "scheduler=median", "storage.lease_s=5")
    b, may_leave, begun = join("b", 30.0, study), ExitPolicy.may_leave, []

    def begin(self: ExitPolicy, *args: Any) -> bool:
        leaves = may_leave(self, *args)
        if leaves and not begun:
            begun.append(ask_number(b))
        return leaves

    monkeypatch.setattr(ExitPolicy, "may_leave", begin)
    first = api.run(study, screen=NullScreen())
    assert first.published
    assert begun[0] is not None
    assert requests.open_studies(study.settings.location) == [study.name], "a peer runs a trial"
    b.writer.record(epoch(begun[0], 0))
    b.writer.complete(begun[0])
    release_and_leave(b, begun[0])
    again = api.run_launched(study.name, study.settings, Signals(), screen=NullScreen())
    assert again.published
    assert len(again.records) == len(first.records) + 1
    assert requests.open_studies(study.settings.location) == []
    assert not api.run_launched(study.name, study.settings, Signals(), screen=NullScreen()).published, (
        "the answer covers all trials already"
    )


def test_the_time_of_a_launch_starts_with_its_first_worker_and_a_late_worker_has_the_rest(
    planned: Callable[..., Plan], database: Callable[[], str]
) -> None:
    study = planned(url := database(), *AT_ONCE, "study.hours=0.01", "study.trials=1")
    session, _ = open_study(study)
    assert session.attributes.launched_at is None, "the time does not run while the study waits for a worker"
    session.close()
    assert api.run_launched(study.name, study.settings, Signals(), screen=NullScreen()).stop_reason == "complete"
    more = planned(url, *AT_ONCE, "study.hours=0.01", "study.trials=2")
    session, _ = open_study(more)
    began = session.coordinator.begin_launch()
    assert began is not None
    assert time.time() - began < 1
    session.attributes.set_launched_at(began - 60)
    session.close()
    late = api.run_launched(study.name, more.settings, Signals(), screen=NullScreen())
    assert [r.state for r in late.records if r.done] == ["complete"]
    assert "study.hours=0.01 ended the search" in late.limit_notes[0]


def test_a_stop_between_search_and_confirmation_stops_the_study(
    planned: Callable[..., Plan], database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = planned(database(), *AT_ONCE, "study.trials=2", "study.confirm.seeds=2")

    def opened(*args: Any, **options: Any) -> tuple[StudySession, list[str]]:
        requests.request_stop(study.settings.location, study.name)
        return open_study(*args, **options)

    monkeypatch.setattr(finalize, "open_study", opened)
    result = api.run(study, screen=NullScreen())
    assert (result.stop_reason, result.finding.confirmed) == ("stopped", 0)  # type: ignore[union-attr]
    monkeypatch.undo()
    assert api.run(study, screen=NullScreen()).stop_reason == "complete"


@pytest.mark.parametrize("stays", [False, True])
def test_a_study_that_is_launched_again_while_a_peer_stops_is_open(
    study: Plan, join: Join, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    """Even if the peer does not leave in time, because it publishes the answer."""
    b, location, others = join("b", 30.0), study.settings.location, opening.count_peers
    requests.request_stop(location, study.name)
    assert requests.open_studies(location) == []

    def and_leave(*arguments: Any) -> int:
        there = others(*arguments)
        b.coordinator.leave()
        return there

    if stays:
        monkeypatch.setattr(opening, "_STOP_TIMEOUT_S", 1.0)
    else:
        monkeypatch.setattr(opening, "count_peers", and_leave)
    messages: list[str] = []
    session, _ = open_study(study, say=messages.append)
    assert messages == [f"1 supervisor(s) were asked to stop; waiting up to {1 if stays else 15} s for them to save"]
    assert session.coordinator.count_peers() == int(stays)
    session.close()
    assert requests.open_studies(location) == [study.name]


def test_a_new_launch_clears_the_stop_request_of_the_confirmation_too(
    planned: Callable[..., Plan], database: Callable[[], str], join: Join
) -> None:
    study = planned(database(), *AT_ONCE, "study.trials=1", "study.confirm.seeds=2")
    part = confirm.confirmation_plan(study, api.run(study, screen=NullScreen()).records)
    join("b", 30.0, part)
    requests.request_stop(study.settings.location, study.name)
    search, _ = open_study(study)
    confirmation, _ = open_study(part, comparable=False)
    assert not confirmation.attributes.stop_requested
    for session in (confirmation, search):
        session.close()


@pytest.mark.parametrize("restarts", [False, True])
def test_the_answer_waits_for_peers_that_test_their_own_networks(
    planned: Callable[..., Plan],
    postgres: Postgres,
    database: Callable[[], str],
    join: Join,
    monkeypatch: pytest.MonkeyPatch,
    restarts: bool,
) -> None:
    """The networks are in the peers' homes. The database may restart meanwhile."""
    study = planned(database(), *AT_ONCE, "study.trials=1", "study.confirm.seeds=2")
    enqueue = confirm.enqueue

    def with_b(session: StudySession, *args: Any) -> list[tuple[int, int]]:
        pairs = enqueue(session, *args)
        b = join("b", 120.0, session.plan)  # it renews no lease while it tests, and a restart takes time
        assert b.queue.ask_for(1) is not None
        b.writer.record(epoch(1, 0))
        b.writer.complete(1)
        b.coordinator.release([1])
        b.writer.flush()
        threading.Timer(6, tested, [b]).start()
        return pairs

    def tested(b: StudySession) -> None:
        if restarts:
            postgres.stop()
            postgres.start()
            time.sleep(2)
        b.attributes.add_test(protocol.Tested(1, {"test/accuracy": 0.25}))
        while leased_storage(b).unwritten:
            time.sleep(0.2)
            b.coordinator.keep_alive()
        release_and_leave(b)

    monkeypatch.setattr(confirm, "enqueue", with_b)
    winner = api.run(study, screen=NullScreen()).finding.winner  # type: ignore[union-attr]
    assert winner.tests["test/accuracy"].n == 2  # type: ignore[union-attr]


def test_the_last_process_synchronises_the_runs_of_a_peer_that_died(
    planned: Callable[..., Plan], database: Callable[[], str], join: Join
) -> None:
    """Although it has nothing else to do, and ends before the peer can be known to be dead."""
    study = planned(database(), *AT_ONCE, "study.trials=2", "storage.lease_s=5")
    b = join("b", 3.0, study)
    assert ask_number(b) == 0
    b.writer.record(epoch(0, 0))
    b.writer.complete(0)
    b.writer.flush()
    result = api.run(study, screen=NullScreen())
    assert [r.state for r in result.records] == ["complete", "complete"]
    client = store.open_client(study.settings.location)
    (experiment,) = [e for e in client.search_experiments() if e.name == study.name]
    runs = client.search_runs([experiment.experiment_id])
    assert [r.info.status for r in runs] == ["FINISHED"] * 3, "the study's, and one for each trial"
