"""The examples work without changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from overnight.protocol import Decision, Resumed, TrialSpec
from overnight.runner.trial_spec import trial_spec
from overnight.search.build_plan import build_plan
from overnight.trial.fit import fit
from support.paths import ROOT, SUPPORT
from support.trial_links import ListLink, weights

CONVNET = ROOT / "examples" / "convnet"


@pytest.fixture(autouse=True)
def _import_path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


def spec_for(folder: Path) -> TrialSpec:
    made = build_plan(["model=convnet", "data=shifted_digits", "trainer.max_epochs=3"], CONVNET / "conf")
    assert len(made.space.parameters) == 7
    return trial_spec(made, 0, made.config({}), 1, "cpu", folder=folder)


@pytest.mark.long
def test_the_convnet_learns_its_digits_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    fit(spec_for(tmp_path / "whole"), whole := ListLink())
    assert whole.epochs[-1].metrics["val/accuracy"] > 0.8  # 0.89 to 0.91, depending on the processor
    fit(spec_for(tmp_path / "cut"), first := ListLink({1: Decision.SAVE_AND_STOP}))
    fit(spec_for(tmp_path / "cut"), second := ListLink())
    assert isinstance(second.messages[0], Resumed)
    assert first.curve + second.curve == whole.curve
    ours, uncut = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], uncut[name]) for name in uncut)


@pytest.mark.usefixtures("no_src")
def test_a_project_like_lightning_hydra_template_trains_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = SUPPORT / "user_project"
    monkeypatch.setenv("PROJECT_ROOT", str(project))
    overrides = ["hparams_search=mnist_optuna", "trainer.max_epochs=2", f"home={tmp_path}"]
    plan = build_plan(overrides, project / "configs", config_name="train")
    params = {"model.optimizer.lr": 0.01, "data.batch_size": 64, "model.net.lin1_size": 128}
    assert {*params} < {*plan.space.names()}
    fit(trial_spec(plan, 0, plan.config(params), 1, "cpu", folder=tmp_path), link := ListLink())
    assert link.epochs[-1].metrics["val/acc_best"] > 0.9


@pytest.mark.long
def test_the_notebook_runs_and_draws_its_figure(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = ROOT / "examples" / "tune_from_python.ipynb"
    # nbclient runs in a process of its own: the kernel's sockets and event loop raise warnings here.
    code = (
        "import sys, nbformat, nbclient; notebook = nbformat.read(sys.argv[1], 4); "
        "nbclient.NotebookClient(notebook, timeout=240).execute(); nbformat.write(notebook, 'run.ipynb')"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(notebook)], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    outputs = [o for cell in nbformat.read(tmp_path / "run.ipynb", 4).cells for o in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "Trial(number=" in str(outputs)
