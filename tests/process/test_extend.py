"""tune --extend: the trials of a study in a wider space."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overnight.config.problems import ConfigError
from overnight.study.open import open_study
from support.sessions import epoch, opened, planned, play


def test_extending_copies_the_trials_into_the_wider_space(tmp_path: Path) -> None:
    with opened(planned(tmp_path, "study.trials=5")) as session:
        play(session, 4)
        session.queue.ask()
        session.writer.record(epoch(4, 0, 0.5))
        session.writer.pause(4)
        old = session.records()
    wider = planned(tmp_path, "study.trials=40", "optimizer.lr=tag(log,interval(1e-6,1))", "data.batch_size=16,32")
    with pytest.raises(ConfigError, match="--extend"):
        open_study(wider)
    with opened(wider, extend=True) as session:
        new = session.records()
        assert [(r.number, r.state, r.history, r.objective) for r in new] == [
            (r.number, r.state, r.history, r.objective) for r in old
        ]
        assert all(n.params == {**o.params, "data.batch_size": 32} for n, o in zip(new, old, strict=True))
        play(session, 99)
        lrs = [r.params["optimizer.lr"] for r in session.records()]
        assert any(lr < 1e-4 or lr > 1e-1 for lr in lrs), "the sampler leaves the old bounds"
    with opened(wider) as session:
        assert len(session.records()) == 40, "the extended study is resumed"


def test_extending_keeps_the_first_rung_and_what_was_asked_of_the_test_set(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as session:
        play(session, 1)
        session.attributes.set_first_rung(2)
        session.attributes.keep_test(0, 1000.0, {"test/accuracy": 0.5})
        tested = session.attributes.tested_by_hand
    wider = planned(tmp_path, "optimizer.lr=tag(log,interval(1e-6,1))")
    with opened(wider, extend=True) as session:
        assert (session.attributes.first_rung, session.attributes.tested_by_hand) == (2, tested)


def test_extending_returns_an_interrupted_trial_to_the_queue(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as session:
        session.queue.ask()
    wider = planned(tmp_path, "optimizer.lr=tag(log,interval(1e-6,1))")
    with opened(wider, extend=True) as session:
        assert session.read(0).state == "paused"
        assignment = session.queue.ask()
        assert assignment is not None
        assert assignment.number == 0


def test_extending_gives_an_old_trial_the_value_that_it_trained_with(tmp_path: Path) -> None:
    line = ("search=none", "optimizer=adam,sgd", "sampler=random", "study.trials=8")
    with opened(planned(tmp_path, *line)) as session:
        play(session, 99)
    with opened(planned(tmp_path, *line, "optimizer.lr=tag(log,interval(1e-4,1))"), extend=True) as session:
        had = {r.params["optimizer"]: r.params["optimizer.lr"] for r in session.records()}
    assert had == {"adam": 0.001, "sgd": 0.01}


def test_extending_refuses_a_space_that_shrank(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as session:
        play(session, 1)
    with pytest.raises(ConfigError, match="does not contain all of"):
        open_study(planned(tmp_path, "optimizer.lr=tag(log,interval(1e-3,1))"), extend=True)


def test_extending_a_grid_runs_the_added_points(tmp_path: Path) -> None:
    line = ("search=none", "sampler=grid", "study.trials=99")
    with opened(planned(tmp_path, *line, "optimizer.lr=0.5,0.6")) as session:
        assert len(play(session, 99)) == 3
    wider = planned(tmp_path, *line, "optimizer.lr=0.5,0.6,0.7", "model.dropout=0.0,0.1")
    with opened(wider, extend=True) as session:
        assert len(play(session, 99)) == 4
        assert len({json.dumps(r.params) for r in session.records()}) == 7
