"""A worker checks the plans of others, and imports nothing that its operator does not trust."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overnight.config import import_allowlist
from overnight.config.search_path import ConfigSearchPath
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.study import plan_trust

# As a _target_, each of these would run code, or return something that does.
GADGETS = [
    "os.system",
    "torch.load",
    "torch.hub.load",
    "builtins.open",
    "builtins.eval",
    "posix.system",
    "subprocess.Popen",
    "functools.partial",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "torch.nn.modules.os.system",
    "torch.serialization.os.system",
    "torch.optim.Adam.__init__.__globals__",
    "overnight.data.os.system",
    "overnight.data.split.os.system",
    "overnight.data.cache.load",
    "overnight.models.mlp.MLP.load_from_checkpoint",
    "overnight.runner.notifier._start",
    "overnight.trial.targets.find",
    "overnight.cli.main.main",
]
# A package that the operator trusts. What it does not define itself is not trusted.
SOURCES = {
    "__init__.py": "import os\nfrom .nets import Net\nfrom my_nets.nets import *\n",
    "nets.py": """
import os, subprocess as tools
from os import system as fit
from os.path import *
import torch as t

open((os.environ.get("CANARY") or os.devnull), "a").write("imported")  # shows whether it was imported

class Net:
    build = os.system
    @classmethod
    def small(cls): return cls()

class Loud(Net): pass

try:
    from my_nets.other import Maybe
except ImportError:
    class Maybe: pass

run = os.system
def make(): return Net()
""",
    "other.py": "from .circle import Maybe\n",
    "circle.py": "from .other import Maybe\n",
}


@pytest.fixture
def my_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_nets").mkdir()
    for name, text in SOURCES.items():
        (tmp_path / "my_nets" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(import_allowlist.PACKAGES, "my_nets")
    return tmp_path


def frozen(change: Callable[[dict[str, Any]], Any], *overrides: str) -> Plan:
    """Return a plan as the study storage has it, after an attacker has applied `change` to its JSON."""
    data = json.loads(_composed(overrides))
    change(data)
    return Plan.from_json(data)


@functools.cache
def _composed(overrides: tuple[str, ...]) -> str:
    return json.dumps(build_plan(overrides).to_json())


def model_of(data: dict[str, Any]) -> dict[str, Any]:
    return data["variants"][0][1]["model"]


@pytest.mark.parametrize("gadget", GADGETS)
def test_a_target_that_can_run_code_is_refused(gadget: str) -> None:
    (problem,) = plan_trust.find_problems(frozen(lambda data: model_of(data).update(_target_=gadget), "search=none"))
    assert problem.startswith("model._target_: must be under a package that this worker's operator trusts (overnight's")
    assert f"got {gadget}; the operator can add its package to OVERNIGHT_TRUSTED_PACKAGES" in problem


@pytest.mark.parametrize(
    "target",
    ["", ".os.system", "os..system", "os:system", "${oc.env:HOME}", "${model.activation}", 7, ["os.system"], None],
)
def test_a_target_that_is_not_a_plain_name_is_refused(target: Any) -> None:
    problems = plan_trust.find_problems(frozen(lambda data: model_of(data).update(_target_=target), "search=none"))
    assert any(
        f"model._target_: must be the name of a class, written out, such as package.module.Class, got {target!r}" == t
        for t in problems
    )


def test_nested_targets_are_all_reported_at_once() -> None:
    def hide(data: dict[str, Any]) -> None:
        model_of(data)["layers"] = [{"rest": [[{"_target_": "os.system", "_partial_": True}]]}]
        model_of(data)["_args_"] = [{"_target_": "hydra.utils.get_method", "path": "os.system"}]
        data["variants"][0][1]["trainer"]["callbacks"] = [{"_target_": "builtins.open"}]

    problems = plan_trust.find_problems(frozen(hide))
    for key in ("model.layers.0.rest.0.0._target_", "model._args_.0._target_", "trainer.callbacks.0._target_"):
        assert sum(line.startswith(f"{key}: must be under") for line in problems) == 1
    assert any(line.startswith("trainer.callbacks: must be one of max_epochs") for line in problems)


def test_every_variant_of_a_searched_group_is_checked() -> None:
    def change(data: dict[str, Any]) -> None:
        (sgd,) = [tree for options, tree in data["variants"] if options == ["sgd"]]
        sgd["optimizer"]["_target_"] = "os.system"

    (problem,) = plan_trust.find_problems(frozen(change))
    assert problem.startswith("optimizer._target_: must be under")


def test_the_values_of_a_search_are_checked() -> None:
    (problem,) = plan_trust.find_problems(build_plan(["search=none", "optimizer._target_=torch.optim.Adam,os.system"]))
    assert problem.startswith("search.optimizer._target_: must be under")

    def options(data: dict[str, Any]) -> None:
        data["space"][0].update(key="model.head", options=[{"_target_": "os.system"}, [{"_target_": "torch.load"}]])

    option_problems = plan_trust.find_problems(frozen(options, "search=none", "model.activation=relu,gelu"))
    assert [line.partition(":")[0] for line in option_problems] == [
        "search.model.head._target_",
        "search.model.head.0._target_",
    ]
    drawn = plan_trust.find_problems(
        frozen(lambda k: k["space"][0].update(key="model._target_"), "search=none", "model.dropout=interval(0,1)")
    )
    assert drawn == [
        "search.model._target_: must be the name of a class, written out, such as package.module.Class, got 0.0"
    ]
    bracketed = plan_trust.find_problems(
        frozen(lambda k: k["space"][0].update(key="model[_target_]"), "search=none", "model.activation=relu,gelu")
    )
    (problem,) = bracketed
    assert problem.startswith(
        "search.model[_target_]: must be a dotted key of data, model, optimizer, schedule, callbacks, trainer"
    )


def test_enqueued_and_warm_start_values_are_checked() -> None:
    def change(data: dict[str, Any]) -> None:
        data["settings"]["study"]["enqueue"] = [{"optimizer.lr": 0.1}, {"model._target_": "os.system"}]
        data["warm_start"] = [{"model": {"_target_": "torch.load", "f": "x.pt"}}]

    problems = plan_trust.find_problems(frozen(change))
    assert [line.partition(":")[0] for line in problems] == [
        "study.enqueue[1].model._target_",
        "study.warm_start_from[0].model._target_",
    ]


def test_a_plan_cannot_read_the_workers_secrets_or_run_commands() -> None:
    def change(data: dict[str, Any]) -> None:
        model_of(data)["a"] = "${oc.env:OVERNIGHT_STORAGE_URL}"
        model_of(data)["b"] = r"\${oc.env:HOME}"
        model_of(data)["c"] = "${oc.env:${model.activation}}"
        model_of(data)["fine"] = "${optimizer.lr} of ${oc.env:OVERNIGHT_DATA,./data}"
        data["settings"]["notify"] = {"command": "touch canary"}

    problems = plan_trust.find_problems(frozen(change))
    assert [line.partition(":")[0] for line in problems] == ["model.a", "model.b", "model.c", "notify"]
    assert "touch" not in problems[-1], "a command may hold a secret"


def test_a_sampler_that_loads_pickles_needs_the_operators_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    study = build_plan(["sampler=cma_es"])
    (problem,) = plan_trust.find_problems(study)
    assert problem.startswith("sampler: must not be cma_es for a worker")
    monkeypatch.setenv(import_allowlist.PACKAGES, "cmaes")
    assert plan_trust.find_problems(study) == []


@pytest.mark.long
def test_everything_in_overnight_is_trusted() -> None:
    for group in ("data", "model", "optimizer", "schedule", "callbacks"):
        options = ConfigSearchPath().options(group)
        study = build_plan(["search=none", f"{group}={','.join(options)}"])
        assert len(study.variants) == len(options)
        assert plan_trust.find_problems(study) == []
    for experiment in ConfigSearchPath().options("experiment"):
        assert plan_trust.find_problems(build_plan([f"+experiment={experiment}"])) == [], experiment
    assert {"overnight.models.mlp.MLP", "torch.optim.SGD"} < import_allowlist.shipped_names()


@pytest.mark.parametrize(
    "target",
    [
        "my_nets.nets.Net",
        "my_nets.Net",
        "my_nets.Loud",
        "my_nets.nets.make",
        "my_nets.nets.Net.small",
    ],
)
@pytest.mark.usefixtures("my_nets")
def test_definitions_of_a_trusted_package_are_trusted(target: str) -> None:
    assert import_allowlist.target_problem("model._target_", target) is None


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("my_nets.os.system", "got my_nets.os.system, which is os.system"),
        ("my_nets.nets.os.system", "which is os.system"),
        ("my_nets.nets.fit", "got my_nets.nets.fit, which is os.system"),
        ("my_nets.nets.tools.Popen", "which is subprocess.Popen"),
        ("my_nets.nets.t.load", "which is torch.load"),
        ("my_nets.nets.join", "does not define join"),  # `from os.path import *`
        ("my_nets.nets.run", "which my_nets.nets assigns"),
        ("my_nets.nets.Net.build", "does not itself define build"),
        ("my_nets.Loud.small", "does not itself define small"),  # inherited
        ("my_nets.nets.make.__globals__", "does not itself define __globals__"),
        ("my_nets.nets.__builtins__.eval", "does not define __builtins__"),
        ("my_nets.nets", "which is a module"),
        ("my_nets.nets.Maybe", "is imported in a circle"),
        ("my_nets.nowhere.Net", "does not define nowhere"),
        ("my_nets_of_another.Net", "must be under a package"),
    ],
)
@pytest.mark.usefixtures("my_nets")
def test_imports_of_a_trusted_package_are_refused(target: str, reason: str) -> None:
    problem = import_allowlist.target_problem("model._target_", target)
    assert problem is not None
    assert reason in problem


def test_large_packages_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(import_allowlist.PACKAGES, "torch.nn, torchvision.models")
    for name in ("torch.nn.ReLU", "torch.nn.modules.linear.Linear", "torchvision.models.resnet18"):
        assert import_allowlist.target_problem("model._target_", name) is None, name
    for name in ("torch.nn.modules.torch.load", "torchvision.models.resnet.partial", "torchvision.io.read_file"):
        assert import_allowlist.target_problem("model._target_", name), name


def test_the_operators_list_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(import_allowlist.PACKAGES, "my nets, os, torch, hydra.utils,,my_nets")
    problems = plan_trust.find_problems(build_plan())
    assert [line.rpartition("got ")[2].partition(";")[0] for line in problems] == [
        "'my nets'",
        "os",
        "torch",
        "hydra.utils",
    ]
    assert import_allowlist.trusted_packages() == ("my_nets",)


SCRIPT = """
import json, sys
from pathlib import Path
from overnight.study import plan_trust as trust
from overnight.search.plan import Plan
problems = trust.find_problems(Plan.from_json(json.loads(Path("plan.json").read_text())))
print(json.dumps([problems, sorted(sys.modules)]))
"""


def test_the_check_imports_nothing_untrusted(my_nets: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        model_of(data)["parts"] = [
            {"_target_": name} for name in ("antigravity.webbrowser", "my_nets.nets.fit", "my_nets.Net")
        ]
        model_of(data)["command"] = f"touch {my_nets / 'canary'}"
        model_of(data)["_target_"] = "my_nets.os.system"

    (my_nets / "plan.json").write_text(json.dumps(frozen(change).to_json()))
    env = {**os.environ, "CANARY": str(my_nets / "canary"), "PYTHONPATH": os.pathsep.join([str(my_nets), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=my_nets, env=env, capture_output=True, text=True, check=True
    )
    problems, modules = json.loads(done.stdout)
    assert len(problems) == 3
    assert not {"my_nets", "antigravity", "webbrowser", "torch", "pytorch_lightning"} & set(modules)
    assert not (my_nets / "canary").exists()


def test_a_trials_own_configuration_is_checked_when_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from overnight.trial.components import build

    config = build_plan(["data=mnist", "data.root=/elsewhere", "search=none"]).config({})
    evil = json.loads(json.dumps(config))
    evil["model"].update({"_target_": "os.system", "command": f"touch {tmp_path / 'canary'}", "x": "${model.y}"})
    monkeypatch.setenv("OVERNIGHT_DATA", str(tmp_path / "here"))
    monkeypatch.setenv(import_allowlist.GUARDED, "")
    assert str(build(config)[0]._root) == "/elsewhere"
    import_allowlist.enable_guard()
    data, model = build(config)
    assert (str(data._root), type(model).__name__) == (str(tmp_path / "here"), "MLP")
    with pytest.raises(import_allowlist.UntrustedError) as caught:
        build(evil)
    target, looked_up = str(caught.value).splitlines()
    assert target.startswith("model._target_: must be under a package")
    assert looked_up.startswith("model.x: must be resolved already, got '${model.y}'")
    assert not (tmp_path / "canary").exists()


def test_a_worker_uses_its_own_machine_settings() -> None:
    foreign = build_plan(["home=/launcher", "slots=7", "study.trials=9", "min_free_mib=1", "trial.stall_s=5"])
    own = build_plan(["home=/worker", "slots=2"]).settings
    mine = plan_trust.for_machine(foreign, own)
    assert (mine.settings.home, mine.settings.slots, mine.settings.min_free_mib) == ("/worker", 2, own.min_free_mib)
    assert (mine.settings.study.trials, mine.settings.trial.stall_s) == (9, 5)
    assert mine.config_dir is None
    assert mine.differences(foreign) == []
