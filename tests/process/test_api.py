"""Studies from Python."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import overnight
from overnight import api
from overnight.report.live import NullScreen, ProgressSnapshot
from overnight.search.build_plan import build_plan
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
