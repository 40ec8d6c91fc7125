"""A trial that is cut between two epochs goes on as if it had not been, whatever its parts keep and wherever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overnight.protocol import Decision, Finished, Resumed, TrialSpec
from overnight.trial.dry_run import dry_run_batch
from overnight.trial.fit import fit
from support.trial_links import ListLink, weights
from support.user_trials import spec_for

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found 1 module\\(s\\) in eval mode"),
    pytest.mark.filterwarnings("ignore:The ``compute`` method of metric"),
    pytest.mark.filterwarnings("ignore:The lr scheduler dict contains the key"),
]
PARTS = "user_package.parts."
EPOCHS = 5


def parts_spec(folder: Path, model: dict[str, Any], data: dict[str, Any], objective: Any = "last") -> TrialSpec:
    spec = spec_for(
        folder, f"{PARTS}Net", f"{PARTS}Data", arguments=model, of_data=data, epochs=EPOCHS, metric="val/loss"
    )
    return TrialSpec(**{**vars(spec), "direction": "minimize", "objective": objective})


def same_weights(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else len(a) == len(b) and all(map(torch.equal, a, b))

    return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)


def assert_cut_equals_uncut(
    folder: Path, model: dict[str, Any], data: dict[str, Any], cuts: list[int], objective: str = "last"
) -> None:
    whole = ListLink()
    assert fit(parts_spec(folder / "whole", model, data, objective), whole).outcome == "complete"
    curve = []
    for cut in cuts:
        link = ListLink({cut: Decision.SAVE_AND_STOP})
        assert fit(parts_spec(folder / "cut", model, data, objective), link).outcome == "saved"
        curve += link.curve
    last = ListLink()
    finished = fit(parts_spec(folder / "cut", model, data, objective), last)
    assert finished.outcome == "complete", finished.detail
    assert isinstance(last.messages[0], Resumed)
    assert curve + last.curve == whole.curve
    assert same_weights(weights(folder / "cut"), weights(folder / "whole"))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "layers that were unfrozen by a callback": ({"unfreeze": "callback"}, {}, [1, 3]),
    "layers that were unfrozen by hand": ({"unfreeze": "group"}, {}, [2]),
    "torchmetrics that no checkpoint holds": ({"metrics": True}, {}, [1]),
    "the generator of a DataLoader": ({}, {"order": "loader"}, [0, 2]),
    "a sampler and a dataset with generators": ({}, {"order": "numpy", "noise": True}, [2]),
    "attributes of all kinds": ({"attributes": True, "draws": True}, {}, [0, 3]),
    "an exponential average": ({"average": "ema", "metrics": True}, {}, [2]),
    "stochastic weight averaging": ({"average": "swa", "batch_norm": True}, {}, [3]),
    "an average of one's own": ({"average": "own", "batch_norm": True}, {}, [1]),
    "gradients that outlive an epoch": ({"manual": True}, {}, [2]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trial_resumes_with(tmp_path: Path, case: str) -> None:
    assert_cut_equals_uncut(tmp_path, *CASES[case])


@pytest.mark.long
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    model=st.fixed_dictionaries(
        {
            "unfreeze": st.sampled_from(["never", "switch", "group", "callback"]),
            "average": st.sampled_from(["none", "ema", "ema by epoch", "mean", "own"]),
            "schedule": st.sampled_from(["none", "step", "plateau"]),
            "metrics": st.booleans(),
            "attributes": st.booleans(),
            "batch_norm": st.booleans(),
            "manual": st.booleans(),
            "draws": st.booleans(),
            "every": st.integers(1, 3),
        }
    )
    | st.fixed_dictionaries(
        {
            "average": st.sampled_from(["swa", "swa, linear"]),
            "schedule": st.sampled_from(["none", "step"]),
            "metrics": st.booleans(),
            "attributes": st.booleans(),
            "batch_norm": st.booleans(),
            "draws": st.booleans(),
        }
    ),
    data=st.fixed_dictionaries(
        {
            "order": st.sampled_from(["global", "loader", "torch", "numpy", "legacy", "python"]),
            "noise": st.booleans(),
        }
    ),
    cuts=st.sets(st.integers(0, EPOCHS - 2), min_size=1).map(sorted),
    objective=st.sampled_from(["last", "best"]),
)
def test_any_combination_of_parts_resumes_to_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory,
    model: dict[str, Any],
    data: dict[str, Any],
    cuts: list[int],
    objective: str,
) -> None:
    assert_cut_equals_uncut(tmp_path_factory.mktemp("trial"), model, data, cuts, objective)


def test_what_cannot_be_saved_is_named_by_a_dry_run_and_by_a_trial_that_resumes(tmp_path: Path) -> None:
    spec = parts_spec(tmp_path, {}, {})
    spec.config["model"]["_target_"] = f"{PARTS}KeepsObjects"
    names = ("model.seen", "model.numbers", "model.unlabelled", "model.by_name")
    assert dry_run_batch(spec, []).unsaved == names
    fit(spec, ListLink({1: Decision.SAVE_AND_STOP}))
    assert fit(spec, ListLink()).notes == (f"resumed without {', '.join(names)}",)


@pytest.mark.parametrize(("every", "epochs"), [(1, EPOCHS), (2, EPOCHS), (EPOCHS, EPOCHS + 1), (1, -1)])
def test_loaders_that_the_trainer_asks_for_again_are_named(tmp_path: Path, every: int, epochs: int) -> None:
    spec = parts_spec(tmp_path, {}, {"order": "loader"})
    limit = {"max_steps": 3 * EPOCHS} if epochs == -1 else {}
    spec.config["trainer"] = {"max_epochs": epochs, "reload_dataloaders_every_n_epochs": every, **limit}
    names = tuple(f"the state of the reloaded {name}" for name in ("train_dataloader", "val_dataloader"))
    assert dry_run_batch(spec, []).unsaved == names
    fit(spec, ListLink({1: Decision.SAVE_AND_STOP}))
    assert fit(spec, ListLink()).notes == (f"resumed without {', '.join(names)}",)


@pytest.mark.parametrize(
    ("data", "every"),
    [("user_package.parts.Data", 0), ("user_package.parts.Data", EPOCHS), ("overnight.data.digits.Digits", 1)],
)
def test_loaders_that_stay_or_that_are_ours_are_not_named(tmp_path: Path, data: str, every: int) -> None:
    model = f"{PARTS}Net" if data.startswith(PARTS) else "user_networks.Plain"
    spec = spec_for(tmp_path, model, data, metric="val/loss")
    spec.config["trainer"] = {"max_epochs": EPOCHS, "reload_dataloaders_every_n_epochs": every}
    assert dry_run_batch(spec, []).unsaved == ()


def fit_as_a_new_process(folder: Path, target: str, link: ListLink) -> Finished:
    """Train or resume a trial with the variables of its module and class as they are after an import."""
    from user_package import parts

    parts.COUNTS["steps"] = parts.CountsElsewhere.epochs = 0
    spec = parts_spec(folder, {}, {})
    spec.config["model"]["_target_"] = f"{PARTS}{target}"
    return fit(spec, link)


@pytest.mark.parametrize("target", ["CountsElsewhere", "LooksAhead", "KeepsItsSchedulers", "KeepsAnOptimizer"])
def test_a_trial_resumes_with_what_is_kept_beside_lightning(tmp_path: Path, target: str) -> None:
    fit_as_a_new_process(tmp_path / "whole", target, whole := ListLink())
    curve = []
    for cut in (1, 2, None):
        link = ListLink({cut: Decision.SAVE_AND_STOP} if cut is not None else {})
        assert fit_as_a_new_process(tmp_path / "cut", target, link).notes == ()
        curve += link.curve
    assert curve == whole.curve
    assert same_weights(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_a_trial_that_resumed_names_what_it_lacks_however_many_epochs_and_cuts_follow(tmp_path: Path) -> None:
    fit_as_a_new_process(tmp_path, "ExchangesParts", ListLink({2: Decision.SAVE_AND_STOP}))
    names = "model.loss, model.backbone.1, model.net.2._forward_hooks"
    for decisions in ({3: Decision.SAVE_AND_STOP}, {}):
        finished = fit_as_a_new_process(tmp_path, "ExchangesParts", ListLink(decisions))
        assert finished.notes == (f"resumed without {names}",)


def test_a_network_that_loses_parameters_does_not_resume_without_them(tmp_path: Path) -> None:
    fit_as_a_new_process(tmp_path, "RemovesParameters", ListLink({1: Decision.SAVE_AND_STOP}))
    finished = fit_as_a_new_process(tmp_path, "RemovesParameters", ListLink())
    assert finished.reason == "checkpoint_unusable"
    assert "the parameter weight was removed" in finished.detail


@pytest.mark.parametrize("part", ["metrics", "attributes", "draws", "manual"])
def test_a_dry_run_of_what_can_be_saved_names_nothing(tmp_path: Path, part: str) -> None:
    assert dry_run_batch(parts_spec(tmp_path, {part: True}, {"order": "numpy", "noise": True}), []).unsaved == ()


# The weights that are kept


def measured_again(folder: Path, model: dict[str, Any]) -> float:
    """Return the validation loss of the kept weights."""
    from user_package.parts import Data, Net

    data, net = Data(), Net(**model)
    data.setup("fit")
    net.load_state_dict(weights(folder), strict=False)
    net.eval()
    with torch.no_grad():
        losses = [float(torch.nn.functional.cross_entropy(net(x), y)) for x, y in data.val_dataloader()]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("objective", ["last", "best"])
@pytest.mark.parametrize("average", ["none", "ema", "ema by epoch", "mean", "swa", "swa, linear", "own"])
def test_the_kept_weights_are_those_that_gave_the_objective(tmp_path: Path, average: str, objective: str) -> None:
    for batch_norm in (False, True):
        model = {"average": average, "batch_norm": batch_norm, "every": 1 if average.startswith("swa") else 2}
        fit(parts_spec(tmp_path / str(batch_norm), model, {}, objective), link := ListLink())
        values = [e.metrics["val/loss"] for e in link.epochs if "val/loss" in e.metrics]
        expected = min(values) if objective == "best" else values[-1]
        assert measured_again(tmp_path / str(batch_norm), model) == pytest.approx(expected, abs=1e-6)
