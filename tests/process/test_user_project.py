"""A project of somebody else is tuned without a change, and its code is found again from any folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from support.paths import ROOT, SUPPORT

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

TUNE = ["tune", "--config-dir", "configs", "--config-name", "train", "hparams_search=mnist_optuna"]
TINY = ["trainer.max_epochs=2", "study.confirm.seeds=0", "pictures.when=never", "slots=1"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("somebodys") / "project"
    shutil.copytree(SUPPORT / "user_project", folder)
    images = folder.parent / "images"
    images.mkdir()
    for brightness in (30, 210):
        Image.new("L", (28, 28), brightness).save(images / f"{brightness}.png")
    done = overnight(folder, *TUNE, *TINY, "study.trials=2")
    assert "2 of 2 trials done (2 complete)" in done.stdout
    return folder


def overnight(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "overnight", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_nothing_but_the_home_is_written_to_the_project(project: Path) -> None:
    written = {p.relative_to(project).parts[0] for p in project.rglob("*") if "__pycache__" not in p.parts}
    assert written - {p.name for p in (SUPPORT / "user_project").iterdir()} == {"mlruns"}


def test_the_same_line_goes_on(project: Path) -> None:
    done = overnight(project, *TUNE, *TINY, "study.trials=3")
    assert "3 of 3 trials done (3 complete)" in done.stdout
    assert "not used of configs/train.yaml: trainer.default_root_dir" in done.stdout


def test_the_winner_predicts_and_trains_again_from_any_folder(project: Path) -> None:
    home, elsewhere = f"home={project / 'mlruns'}", project.parent
    predicted = overnight(elsewhere, "predict", "mnist-mnist", "images", home).stdout
    assert [line.split()[:2] for line in predicted.splitlines() if ".png" in line] == [
        ["210.png", "1"],
        ["30.png", "0"],
    ]
    best = overnight(elsewhere, "status", "mnist-mnist", home).stdout.partition("val/acc_best ")[2].split(",")[0]
    trained = overnight(elsewhere, "train", "+experiment=best_mnist-mnist", home).stdout
    assert f"complete, val/acc_best {best}" in trained


def test_a_folder_of_the_code_that_is_missing_is_named(project: Path) -> None:
    moved = project.rename(project.parent / "moved")
    try:
        done = overnight(moved.parent, "predict", "mnist-mnist", "images", f"home={moved / 'mlruns'}", code=2)
        assert f"the study was started with {project}" in done.stderr
        words = ["predict", "--config-dir", str(moved / "configs"), "mnist-mnist", "images", f"home={moved / 'mlruns'}"]
        assert "210.png" in overnight(moved.parent, *words).stdout
    finally:
        moved.rename(project)


@pytest.mark.parametrize(("folder", "name", "metric"), [("lightning_cli", "config", "val_acc"),
                                                        ("plain_script", "tune", "val/accuracy")])  # fmt: skip
def test_the_examples_of_the_other_doors_learn(tmp_path: Path, folder: str, name: str, metric: str) -> None:
    shutil.copytree(ROOT / "examples" / folder, tmp_path / folder)
    words = ["--config-dir", ".", "--config-name", name, "study.trials=2", "model.width=64,128", "trainer.max_epochs=4"]
    done = overnight(tmp_path / folder, "tune", *words, *TINY[1:])
    best = done.stdout.partition(f"best: {metric} ")[2].split("%")[0]
    assert float(best) > 80
