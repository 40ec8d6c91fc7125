"""Studies from Python."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import overnight
from overnight import api
from overnight.cli import output
from overnight.report.live import NullScreen, ProgressSnapshot
from overnight.runner.stop_state import StopReason
from overnight.runner.supervisor import Ending, Supervisor
from overnight.search.build_plan import build_plan
from overnight.search.limits import Launch
from overnight.system.signals import Signals
from support.sessions import epoch, opened, play
from support.user_overrides import user_network


def test_a_result_has_the_best_trial_and_a_table_of_all(finished_home: Path) -> None:
    study = build_plan(
        [
            f"home={finished_home}",
            "study.trials=6",
            "trainer.max_epochs=6",
            "scheduler=median",
            "scheduler.startup_trials=2",
            "scheduler.warmup_epochs=1",
        ]
    )
    result = api.run(study, screen=NullScreen())
    table = result.trials
    assert result.study_name == "digits-mlp"
    assert list(table.index) == list(range(6))
    complete = table[table.state == "complete"]
    assert result.best is not None
    assert result.best.number == complete.objective.idxmax()
    assert result.best.objective == complete.objective.max()
    assert table.loc[0, "params.optimizer.lr"] == 0.001
    assert (table.epochs >= 1).all()


def test_mistakes_are_raised_together_and_nothing_is_created(tmp_path: Path) -> None:
    with pytest.raises(overnight.ConfigError) as caught:
        overnight.tune([f"home={tmp_path / 'home'}", "study.trials=0", "model.dropuot=1"])
    assert len(caught.value.problems) == 2
    assert not (tmp_path / "home").exists()


def test_failures_in_a_row_of_a_confirmation_name_its_last_failed_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ("study.max_consecutive_failures=2", "study.confirm.top=1", "study.confirm.seeds=3")
    plan = build_plan([f"home={tmp_path}", "study.name=small", "scheduler=none", "study.trials=4", *limits])
    sent: list[str] = []

    def work(supervisor: Supervisor) -> Ending:
        session = supervisor.session
        for n in range(3):
            assert session.queue.ask() is not None
            if n == 0:
                session.writer.record(epoch(n, 0, 0.5))
                session.writer.complete(n)
            else:
                session.writer.fail(n, "crashed", f"of seed {n}")
        return Ending(StopReason.FAILURES, tuple(session.records()), True, None)

    with opened(plan) as session:
        session.queue.ask()
        session.writer.fail(0, "out_of_memory", "of the search")
        play(session, 3)
        search = Ending(StopReason.COMPLETE, tuple(session.records()), True, None)
        launch = Launch(plan, 0.0, session.attributes.set_launch)
        before = api._result(plan, search, Signals())
        result = api._with_answer(before, search, session, work, launch, lambda _: None)
    output.print_result(result)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [f"confirmation trial-000{n} failed (crashed): of seed {n}" for n in (1, 2)]
    assert "stopped: 2 trials in a row failed with an error; `overnight logs small.confirm/2` shows one" in lines[2]
    api._notify_of_end(SimpleNamespace(send=lambda _, text: sent.append(text)), result)  # type: ignore[arg-type]
    assert sent == ["stopped: 2 in a row failed in the confirmation, the last with crashed"]


def test_training_returns_the_trial(home: Path) -> None:
    trial = overnight.train([f"home={home}", "trainer.max_epochs=2"])
    assert (trial.number, trial.state) == (0, "complete")
    assert trial.objective is not None
    assert trial.objective > 0.5


def test_a_directory_of_own_configs_adds_a_network(home: Path, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    (conf / "model").mkdir(parents=True)
    (conf / "search").mkdir()
    (conf / "model" / "mine.yaml").write_text("_target_: user_networks.Plain\nlr: 0.01\n")
    (conf / "search" / "mine.yaml").write_text("model.lr: tag(log, interval(1e-3, 1e-1))\n")
    result = overnight.tune([f"home={home}", "model=mine", "study.trials=3", "trainer.max_epochs=2"], conf)
    assert result.study_name == "digits-mine"
    assert result.best is not None
    assert set(result.best.params) == {"model.lr"}


def test_an_interrupt_is_raised_after_everything_is_saved(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pressed = []

    class InterruptsItself(NullScreen):
        def update(self, take_snapshot: Callable[[], ProgressSnapshot], force: bool = False) -> None:  # noqa: ARG002
            if not pressed and any(slot.index >= 1 for slot in take_snapshot().running):
                pressed.append(True)
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(api, "choose_screen", InterruptsItself)
    line = [
        f"home={home}",
        *user_network("Slow", "study.trials=2", "slots=1", "trainer.max_epochs=4", "scheduler=none"),
    ]
    with pytest.raises(KeyboardInterrupt, match="the same call resumes"):
        overnight.tune(line)
    assert [p.name for p in (home / "checkpoints" / "digits-mlp").rglob("state.ckpt")] == ["state.ckpt"]
    assert [e.index for e in overnight.tune(line).records[0].history] == list(range(4))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tuna'"):
        overnight.tuna  # noqa: B018
