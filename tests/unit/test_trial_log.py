"""The log of a trial: what the calls of a module write, what the supervisor reads of it, and when."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from overnight.tracking.logged import Part, unwritten
from overnight.trial import limited_log
from overnight.trial.experiment import Experiment
from overnight.trial.logger import TrialLogger
from support.user_trials import spec_for


class NoBase:
    """Stands for Lightning's Logger."""


def logger_in(folder: Path, saved: Any = None) -> TrialLogger:
    from dataclasses import replace

    return TrialLogger(replace(spec_for(folder, "net"), logged=folder), saved)


def read(folder: Path, mark: str = "", whole: bool = True, steps: Any = None) -> list[Part]:
    return list(unwritten(folder, mark, whole, lambda name: (steps or {}).get(name, set())))


def values(parts: list[Part]) -> list[tuple[str, int, float]]:
    return [(m.name, m.step, m.value) for part in parts for m in part.metrics]


def opened(folder: Path, name: str) -> Any:
    content = (folder / "files" / name).read_bytes()
    if name.endswith(".png"):
        return Image.open(io.BytesIO(content))
    return json.loads(content) if name.endswith(".json") else content.decode()


def write_all(logger: TrialLogger) -> None:
    from matplotlib.figure import Figure

    board, run = logger.experiment, logger.run_id
    board.add_scalar("a", torch.tensor(1.5), 3)
    board.add_scalars("b", {"x": 1, "y": np.float32(2)}, global_step=4)
    board.add_image("chw", torch.ones(3, 5, 7), 1)
    board.add_image("hwc", np.zeros((5, 7, 3), np.uint8), 1, dataformats="HWC")
    board.add_images("grid", torch.rand(4, 1, 6, 6), 2)
    board.add_figure("figure", Figure((1, 1)), 2)
    board.add_histogram("weights", torch.arange(10.0), 5)
    board.add_text("says", "hello", 6)
    board.add_hparams({"lr": 0.1}, {"score": 2.0})
    board.flush()
    board.log_metric(run, "c", 7.0, step=9)
    board.log_param(run, "depth", 3)
    board.set_tag(run, "kind", "test")
    board.log_figure(run, Figure((1, 1)), "plots/mine.png")
    board.log_image(run, np.zeros((3, 4)), "dark.png")
    board.log_image(run, Image.new("RGB", (2, 3)), key="seen", step=8)
    board.log_dict(run, {"a": torch.ones(2)}, "dict.json")
    board.log_dict(run, {"a": [1]}, "dict.yaml")
    board.log_text(run, "text", "notes/one.txt")
    board.log_table(run, pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), "table.json")
    logger.log_table("rows", ["a"], [[1]], step=1)
    logger.log_image("two", [np.zeros((2, 2)), np.ones((2, 2))], step=1)
    logger.log_text("own", "text", 1)
    logger.log_figure("own", Figure((1, 1)), 1)
    logger.log_hyperparams({"net": {"width": 8}})
    logger.finalize("success")


def test_every_call_of_tensorboard_and_mlflow_arrives(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.bin").write_bytes(b"abc")
    logger, folder = logger_in(tmp_path / "log"), tmp_path / "log"
    write_all(logger)
    logger.experiment.log_artifact(logger.run_id, str(tmp_path / "elsewhere" / "a.bin"), "more")
    logger.log_artifact(tmp_path / "elsewhere")
    logger.finalize("success")
    (part,) = read(folder)
    assert values([part]) == [
        ("by_step/a", 3, 1.5), ("by_step/b/x", 4, 1.0), ("by_step/b/y", 4, 2.0), ("by_step/score", 0, 2.0),
        ("by_step/c", 9, 7.0),
    ]  # fmt: skip
    assert part.params == {"hparams/lr": "0.1", "hparams/depth": "3", "hparams/net/width": "8"}
    assert part.tags == {"kind": "test"}
    assert part.files == [
        "images/chw/step-0000001.png", "images/hwc/step-0000001.png", "images/grid/step-0000002.png",
        "figures/figure/step-0000002.png", "histograms/weights/step-0000005.json", "text/says/step-0000006.txt",
        "plots/mine.png", "dark.png", "images/seen/step-0000008.png", "dict.json", "dict.yaml", "notes/one.txt",
        "table.json", "tables/rows/step-0000001.json", "images/two/step-0000001-0.png",
        "images/two/step-0000001-1.png", "text/own/step-0000001.txt", "figures/own/step-0000001.png", "more/a.bin",
        "elsewhere/a.bin",
    ]  # fmt: skip
    assert opened(folder, "images/chw/step-0000001.png").size == (7, 5)
    assert opened(folder, "images/chw/step-0000001.png").getpixel((0, 0)) == (255, 255, 255)
    assert opened(folder, "images/hwc/step-0000001.png").size == (7, 5)
    assert opened(folder, "images/two/step-0000001-1.png").getextrema() == (255, 255)
    assert opened(folder, "table.json") == {"columns": ["a", "b"], "data": [[1, "x"], [2, "y"]]}
    assert opened(folder, "dict.json") == {"a": [1.0, 1.0]}
    assert sum(row[2] for row in opened(folder, "histograms/weights/step-0000005.json")["data"]) == 10
    assert opened(folder, "text/says/step-0000006.txt") == "hello"


def test_what_cannot_be_answered_names_what_can() -> None:
    experiment = logger_in(Path("/nonexistent")).experiment
    assert isinstance(experiment, Experiment)
    with pytest.raises(
        AttributeError, match=r"has no add_video .* it has add_figure, .*log_text, set_tag; write a file"
    ):
        experiment.add_video("v", None)
    with pytest.raises(ValueError, match=r"must get the trial's own run id, got 'abc'; pass self.logger.run_id"):
        experiment.log_metric("abc", "x", 1.0)
    with pytest.raises(ValueError, match="must not be a tag of overnight or MLflow"):
        experiment.set_tag("trial-0007", "overnight.state", "complete")


def test_a_trial_that_logs_nothing_has_no_file(tmp_path: Path) -> None:
    logger = logger_in(tmp_path / "log")
    logger.log.file.commit(logger.log.file.state())
    logger.finalize("success")
    assert not (tmp_path / "log").exists()
    assert read(tmp_path / "log") == []


def test_only_what_a_saved_state_covers_is_read_of_a_trial_that_has_not_ended(tmp_path: Path) -> None:
    logger = logger_in(tmp_path)
    logger.log_metrics({"a": 1}, 0)
    state = logger.log.file.state()
    assert read(tmp_path, whole=False) == []
    logger.log_metrics({"a": 2}, 1)
    logger.log.file.commit(state)
    logger.log.file.flush()
    (part,) = read(tmp_path, whole=False)
    assert values([part]) == [("by_step/a", 0, 1.0)]
    assert values(read(tmp_path, part.mark)) == [("by_step/a", 1, 2.0)]


def test_a_trial_that_resumes_neither_doubles_nor_loses_values(tmp_path: Path) -> None:
    first = logger_in(tmp_path)
    for step in range(5):
        first.log_metrics({"a": step}, step)
    state = first.log.file.state()
    first.log.file.commit(state)
    (part,) = read(tmp_path, whole=False)
    first.log_metrics({"a": 5}, 5)
    first.log.file.flush()  # and then it is killed
    second = logger_in(tmp_path, state)
    for step in range(5, 8):
        second.log_metrics({"a": step}, step)
    second.finalize("success")
    rest = read(tmp_path, part.mark)
    assert [step for _, step, _ in values([part, *rest])] == list(range(8))
    assert second.log.file.amounts.values == 8


@pytest.mark.parametrize("saved", ["nothing", "less"])
def test_a_trial_that_starts_again_logs_no_step_twice(tmp_path: Path, saved: str) -> None:
    first = logger_in(tmp_path)
    first.log_metrics({"a": 0}, 0)
    early = first.log.file.state()
    first.log_metrics({"a": 1}, 1)
    first.log.file.commit(first.log.file.state())
    (part,) = read(tmp_path, whole=False)
    second = logger_in(tmp_path, early if saved == "less" else None)
    for step in range(1 if saved == "less" else 0, 4):
        second.log_metrics({"a": step}, step)
    second.finalize("success")
    rest = read(tmp_path, part.mark, steps={"by_step/a": {0, 1}})
    assert values(rest) == [("by_step/a", 2, 2.0), ("by_step/a", 3, 3.0)]


def test_an_incomplete_last_line_is_left_out(tmp_path: Path) -> None:
    logger = logger_in(tmp_path)
    logger.log_metrics({"a": 1}, 0)
    logger.finalize("failed")
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(b'["m",1,2,{"a":')
    assert values(read(tmp_path)) == [("by_step/a", 0, 1.0)]


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    logger = logger_in(tmp_path)
    logger.log_metrics({"a": float("nan"), "b": float("inf")}, 0)
    logger.log_metrics({"a": 1.0, "b": float("inf")}, 1)
    logger.finalize("success")
    assert values(read(tmp_path)) == [("by_step/a", 1, 1.0)]


def test_what_exceeds_a_limit_is_left_out_with_one_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_log, "MOST_VALUES", 2)
    monkeypatch.setattr(limited_log, "MOST_FILES", 1)
    monkeypatch.setattr(limited_log, "MOST_FILE_BYTES", 10)
    logger = logger_in(tmp_path)
    for step in range(4):
        logger.log_metrics({"a": step}, step)
        logger.experiment.log_text(logger.run_id, "long" * 9, "long.txt")
        logger.experiment.log_text(logger.run_id, "short", f"{step}.txt")
    logger.finalize("success")
    (part,) = read(tmp_path)
    assert len(part.metrics) == 2
    assert part.files == ["0.txt"]
    assert [*logger.log.notes.values()] == [
        "did not log long.txt, which has 0 MB; a file may have 0",
        "logged more than 1 files; the later ones are left out",
        "logged more than 2 values; the later ones are left out",
    ]


@pytest.mark.parametrize("name", ["../../outside.txt", "/etc/outside.txt", "a/../../b\\..\\c:d.txt", "..", ""])
def test_a_file_stays_below_the_folder_of_the_trial(tmp_path: Path, name: str) -> None:
    logger = logger_in(tmp_path / "log")
    logger.experiment.log_text(logger.run_id, "text", name)
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "log.jsonl"]
    assert file.is_relative_to(tmp_path / "log" / "files")
