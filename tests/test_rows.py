"""Trials in Optuna's tables: what we read is what Optuna reads, and what we write comes back, wherever one lives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from overnight.holding import HolderStorage
from overnight.storage import LedgerStorage, dispose


@pytest.fixture(params=["Europe/Berlin", "America/New_York", "UTC"])
def somewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("somewhere")
def test_when_a_trial_began_and_ended_is_the_same_wherever_one_lives_and_whoever_reads_it(tmp_path: Path) -> None:
    url, before = f"sqlite:///{tmp_path / 'ledger.db'}", time.time()
    holder = HolderStorage(LedgerStorage(url))
    study = optuna.create_study(storage=holder)
    study.tell(study.ask(), 1.0)
    after = time.time()
    for reads in (holder, LedgerStorage(url), RDBStorage(url)):
        (t,) = reads.get_all_trials(study._study_id)
        assert t.datetime_start is not None
        assert t.datetime_complete is not None
        assert before <= t.datetime_start.timestamp() <= t.datetime_complete.timestamp() <= after, type(reads)
        dispose(reads)
