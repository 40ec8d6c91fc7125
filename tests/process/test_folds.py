"""Cross-validation of trials: each fold trains once, a cut anywhere changes nothing, and the study takes the mean."""

from __future__ import annotations

import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from overnight import api
from overnight.config.compose import study_location
from overnight.protocol import Decision, Finished, FoldEnded, Progress, TrialMessage, TrialSpec
from overnight.search.record import TrialRecord
from overnight.study.lost import lost_studies
from overnight.study.snapshot import view
from overnight.tracking.rebuild import rebuild
from overnight.trial.folds import fit_folds
from support.commands import start
from support.mlflow_store import children
from support.trial_links import spec_for, weights

FOLDS, EPOCHS = 3, 2


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass
class FragileLink:
    """Keeps the progress of a trial, stops it at a message, or ends its process there."""

    killed_after: int | None = None
    stopped_after: int | None = None
    progress: dict[int, Progress] = field(default_factory=dict)
    messages: list[TrialMessage] = field(default_factory=list)

    def send(self, message: TrialMessage) -> None:
        self._take(message)
        self.progress.update({e.index: e for e in getattr(message, "history", ())})

    def ask(self, message: Progress | FoldEnded) -> Decision:
        if isinstance(message, Progress):
            self.progress[message.index] = message
        self._take(message)
        return Decision.SAVE_AND_STOP if self.stop_wanted() else Decision.CONTINUE

    def stop_wanted(self) -> bool:
        return self.stopped_after is not None and len(self.messages) >= self.stopped_after

    def _take(self, message: TrialMessage) -> None:
        if len(self.messages) == self.killed_after:
            raise Killed
        self.messages.append(message)

    @property
    def curve(self) -> list[tuple[int, int | None, dict[str, float]]]:
        return [(i, e.fold, e.metrics) for i, e in sorted(self.progress.items())]


def spec(folder: Path) -> TrialSpec:
    line = ["data=diabetes", f"study.folds={FOLDS}", f"trainer.max_epochs={EPOCHS}", "model.dropout=0.3"]
    return spec_for(folder, *line, every_s=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[FragileLink, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    link = FragileLink()
    assert fit_folds(spec(folder), link) == Finished(7, "complete")
    return link, weights(folder)


def test_a_trial_trains_on_each_fold_from_its_own_seed(whole: tuple[FragileLink, object]) -> None:
    curve = whole[0].curve
    assert [(index, fold) for index, fold, _ in curve] == [(i, i // EPOCHS) for i in range(FOLDS * EPOCHS)]
    assert len({metrics["val/loss"] for _, _, metrics in curve}) == FOLDS * EPOCHS


def cuts() -> Iterator[tuple[str, int]]:
    # Of a fold: two Progress, a StateSaved between them, and a FoldEnded.
    for after in range(FOLDS * 4 - 1):
        yield "killed_after", after
    for after in range(1, FOLDS * 4 - 1):
        yield "stopped_after", after


@pytest.mark.parametrize(
    ("how", "after"),
    [
        cut
        if cut in (("killed_after", 4), ("killed_after", 6), ("stopped_after", 7))
        else pytest.param(*cut, marks=pytest.mark.long)
        for cut in cuts()
    ],
)
def test_a_trial_with_folds_that_is_cut_anywhere_ends_with_the_same_bits(
    tmp_path: Path, whole: tuple[FragileLink, dict[str, torch.Tensor]], how: str, after: int
) -> None:
    cut = FragileLink()
    setattr(cut, how, after)
    if how == "killed_after":
        with pytest.raises(Killed):
            fit_folds(spec(tmp_path), cut)
    else:
        outcome = fit_folds(spec(tmp_path), cut).outcome
        # A fast machine ends the last epoch before the trial looks whether to stop.
        assert outcome == "saved" or (outcome == "complete" and after == FOLDS * 4 - 2)
    resumed = FragileLink()
    assert fit_folds(spec(tmp_path), resumed).outcome == "complete"
    # The supervisor may have lost what the killed process reported; it gets all of it again.
    assert resumed.curve == whole[0].curve
    assert all(torch.equal(tensor, whole[1][name]) for name, tensor in weights(tmp_path).items())
    trained = {m.fold for m in resumed.messages if isinstance(m, Progress)}
    done = {m.fold for m in cut.messages if isinstance(m, FoldEnded)}
    assert not trained & done, "a complete fold is trained again"


@pytest.mark.long
def test_folds_that_stop_early_have_indices_without_gaps_before_and_after_a_cut(tmp_path: Path) -> None:
    line = ["data=diabetes", "study.folds=3", "trainer.max_epochs=8", "optimizer.lr=0.1", "callbacks=early_stopping"]
    line += ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.monitor=val/r2"]
    line += ["callbacks.early_stopping.mode=max"]
    whole, cut, resumed = FragileLink(), FragileLink(stopped_after=12), FragileLink()
    assert fit_folds(spec_for(tmp_path / "whole", *line, every_s=0), whole).outcome == "complete"
    lengths = [sum(fold == k for _, fold, _ in whole.curve) for k in range(3)]
    assert len(set(lengths)) > 1, lengths
    assert [index for index, _, _ in whole.curve] == list(range(sum(lengths)))
    assert fit_folds(spec_for(tmp_path / "cut", *line, every_s=0), cut).outcome == "saved"
    assert fit_folds(spec_for(tmp_path / "cut", *line, every_s=0), resumed).outcome == "complete"
    assert resumed.curve == whole.curve


STUDY = ("data=diabetes", "sampler=random", "study.confirm.seeds=0", "trainer.max_epochs=2", "slots=1")


def score(record: TrialRecord, fold: int) -> float:
    return [e.metrics["val/r2"] for e in record.history if e.fold == fold][-1]


def test_a_study_takes_the_mean_over_the_folds_and_keeps_the_network_of_the_first(
    tune: Callable[..., api.Result],
) -> None:
    result = tune(*STUDY, "study.folds=3", "study.trials=2", "scheduler=none")
    for record in result.records:
        assert record.objective == statistics.fmean(score(record, fold) for fold in range(3))
    best, paths = max(result.records, key=lambda r: r.objective or -math.inf), result.plan.paths
    assert [p.name for p in paths.checkpoint(best.number).iterdir()] == ["weights.ckpt"]
    kept = torch.load(paths.checkpoint(best.number) / "weights.ckpt", weights_only=True)["overnight"]
    assert (kept["config"]["data"]["fold"], kept["config"]["data"]["folds"]) == (0, 3)
    run = children(result.plan.settings.location.paths.root)[best.number]
    assert run.data.metrics["fold-2/val/r2"] == pytest.approx(score(best, 2))
    assert "val/r2" not in run.data.metrics


def seen(home: Path) -> list[TrialRecord]:
    found, _ = view(study_location([f"home={home}"]))
    return [] if found is None else list(found.records)


def values_of(records: list[TrialRecord]) -> list[tuple[object, ...]]:
    return [
        (r.number, r.state, r.params, r.objective, [(e.index, e.fold, e.metrics) for e in r.history]) for r in records
    ]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_study_with_folds_ends_like_an_undisturbed_one_and_is_rebuilt_from_mlflow(
    tmp_path: Path, tune: Callable[..., api.Result]
) -> None:
    line = (
        *STUDY,
        "study.folds=5",
        "study.trials=5",
        "checkpoint.every_s=0",
        "scheduler=median",
        "scheduler.startup_trials=1",
    )
    whole = tune(*line)
    homes = tmp_path / "killed"
    command = ("tune", f"home={homes}", "pictures.when=never", "preflight=never", *line)
    for trial, fold in ((0, 1), (1, 3)):
        process = start(*command, start_new_session=True)
        while not any(
            r.done if r.number > trial else r.number == trial and r.history and (r.history[-1].fold or 0) >= fold
            for r in seen(homes)
        ):
            assert process.poll() is None or all(r.done for r in seen(homes))
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(*command).wait() == 0
    assert values_of(seen(homes)) == values_of(list(whole.records))
    assert {"complete", "pruned"} <= {r.state for r in whole.records}
    assert any(len({e.fold for e in r.history}) == 4 for r in whole.records if r.state == "pruned"), "none by the test"

    before = seen(homes)
    for file in homes.glob("optuna.db*"):
        file.unlink()
    (lost,) = lost_studies(study_location([f"home={homes}"]))
    rebuild(study_location([f"home={homes}"]), lost)
    assert values_of(seen(homes)) == values_of(before)
