"""A class that can't be imported is one sentence, in the dry run, in a trial and in the command that trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from overnight.protocol import Finished
from overnight.runner.trial_process import run_alone
from overnight.trial import targets
from support.user_trials import spec_for


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "__main__.Net",
            "must be in a module, which each trial imports, got '__main__.Net' of the script",
        ),
        ("my_nett.Net", "there is no module my_nett in "),
        ("user_networks.Plainn", "has no Plainn; did you mean Plain?"),
        ("user_networks.torch.nope", "has no nope"),
        ("user_networks.__doc__.a", "has no a; "),
        ("", "importing  raised ValueError"),
        (".a", "importing  raised ValueError"),
        ("raises_at_import.Net", "importing raises_at_import raised ZeroDivisionError: division by zero"),
        ("exits_at_import.Net", "importing exits_at_import raised SystemExit: 3"),
    ],
)
def test_a_class_that_is_not_found_is_one_sentence(
    target: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raises_at_import.py").write_text("1 / 0\n")
    (tmp_path / "exits_at_import.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(targets.TargetError) as error:
        targets.find("model", target)
    assert str(error.value).startswith("model._target_: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_trial_reports_the_sentence_without_a_traceback(tmp_path: Path) -> None:
    trial, _ = run_alone(spec_for(tmp_path / "c", "__main__.Net"), tmp_path / "log")
    assert isinstance(trial.finished, Finished)
    assert trial.finished.outcome == "failed"
    assert trial.finished.detail.startswith("model._target_: must be in a module")
    assert "Traceback" not in trial.finished.detail
