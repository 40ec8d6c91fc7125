"""A user's own Hydra tree, and the YAML of their LightningCLI, become a plan without a change."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from overnight.config.problems import ConfigError
from overnight.report.advice import next_command, train_command
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.search.plan_code import find_missing
from overnight.search.record import TrialRecord
from overnight.study.plan_trust import for_machine
from support.paths import ROOT

pytestmark = pytest.mark.usefixtures("no_src")

# As in lightning-hydra-template.
TRAIN = """
# @package _global_
defaults:
  - _self_
  - data: blobs
  - model: net
  - callbacks: default
  - logger: null
  - trainer: default
  - paths: default
  - hydra: default
  - experiment: null
  - hparams_search: null
  - optional local: default
task_name: train
train: true
seed: null
"""
FILES = {
    "train.yaml": TRAIN,
    "data/blobs.yaml": "_target_: src.blobs.Blobs\ndata_dir: ${paths.data_dir}\nbatch_size: 32\nfeatures: 4\n",
    "model/net.yaml": """
_target_: src.nets.LitNet
optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 0.001}
net: {_target_: src.nets.Dense, inputs: "${data.features}", width: 8, half: "${half}"}
""",
    "model/deep.yaml": "defaults: [net]\nnet: {depth: 3}\n",
    "callbacks/default.yaml": """
defaults: [early]
checkpoint:
  _target_: lightning.pytorch.callbacks.ModelCheckpoint
  dirpath: ${paths.output_dir}
  monitor: val/acc
  mode: max
""",
    "callbacks/early.yaml": "early: {_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss}\n",
    "trainer/default.yaml": "_target_: lightning.pytorch.trainer.Trainer\nmax_epochs: 10\ndevices: 4\n",
    "logger/wandb.yaml": "wandb: {_target_: lightning.pytorch.loggers.WandbLogger, key: '${oc.env:NO_SUCH_KEY}'}\n",
    "paths/default.yaml": """
root_dir: ${oc.env:PROJECT_ROOT}
data_dir: ${paths.root_dir}/data
output_dir: ${hydra:runtime.output_dir}
""",
    "hydra/default.yaml": """
defaults: [override hydra_logging: colorlog, override job_logging: colorlog]
run: {dir: "${paths.root_dir}/${now:%Y}"}
""",
    "experiment/wide.yaml": "# @package _global_\nmodel: {net: {width: 64}}\nseed: 7\n",
    "hparams_search/optuna.yaml": """
# @package _global_
defaults: [override /hydra/sweeper: optuna]
optimized_metric: val/acc_best
hydra:
  mode: MULTIRUN
  sweeper:
    direction: maximize
    n_trials: 20
    n_jobs: 1
    sampler: {_target_: optuna.samplers.TPESampler, seed: 1234, n_startup_trials: 6}
    params:
      model.optimizer.lr: interval(0.0001, 0.1)
      data.batch_size: choice(32, 64)
""",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the layout of the template; its code is never imported."""
    monkeypatch.delenv("PROJECT_ROOT", raising=False)
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    write(tmp_path, {})
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in (FILES | files).items():
        path = root / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "half: ${oc.select:unknown,4}\n" if name == "train.yaml" else text)


def plan_of(project: Path, *overrides: str, name: str = "train", **options: Any) -> Plan:
    return build_plan(overrides, project / "configs", config_name=name, **options)


def problems_of(project: Path, *overrides: str, name: str = "train") -> list[str]:
    with pytest.raises(ConfigError) as error:
        plan_of(project, *overrides, name=name)
    return error.value.problems


def test_a_tree_gives_data_model_trainer_and_callbacks(project: Path) -> None:
    plan = plan_of(project, "hparams_search=optuna", "trainer.max_epochs=2")
    config = plan.config({})
    assert config["data"]["data_dir"] == f"{project}/data"
    assert config["model"]["net"] == {"_target_": "src.nets.Dense", "inputs": 4, "width": 8, "half": 4}
    assert config["model"]["optimizer"] == {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.001}
    assert config["trainer"]["max_epochs"] == 2
    assert plan.settings.trainer.max_epochs == 2
    assert {*config["callbacks"]} == {"early", "checkpoint"}
    assert config["callbacks"]["checkpoint"]["dirpath"] == f"{project}/mlruns/output"
    assert plan.name == "blobs-net"
    assert not (project / "mlruns").exists()


def test_the_sweeper_gives_space_metric_direction_trials_sampler_and_seed(project: Path) -> None:
    plan = plan_of(project, "hparams_search=optuna")
    study = plan.settings.study
    assert plan.space.describe() == {"model.optimizer.lr": "0.0001 to 0.1", "data.batch_size": "choice(32, 64)"}
    assert (study.metric, study.direction, study.trials) == ("val/acc_best", "maximize", 20)
    assert (plan.settings.sampler.name, plan.settings.sampler.startup_trials, plan.settings.seed) == ("tpe", 6, 1234)
    assert plan.start.tree is not None
    assert "study.trials=20 (from hydra.sweeper.n_trials)" in plan.start.tree.taken
    assert any("trainer.devices" in text for text in plan.start.tree.unused)


def test_our_keys_on_the_command_line_win_over_what_the_tree_says(project: Path) -> None:
    plan = plan_of(
        project, "hparams_search=optuna", "study.trials=4", "sampler=random", "seed=3", "overnight.study.retries=0",
        "study.metric=val/loss", "study.direction=minimize", "home=elsewhere", "study.name=mine",
    )  # fmt: skip
    assert (plan.settings.study.trials, plan.settings.sampler.name, plan.settings.seed) == (4, "random", 3)
    assert (plan.settings.study.metric, plan.settings.study.direction) == ("val/loss", "minimize")
    assert (plan.settings.study.retries, plan.settings.home, plan.name) == (0, "elsewhere", "mine")
    assert plan.config({})["callbacks"]["checkpoint"]["dirpath"] == f"{project}/elsewhere/output"


def test_hydras_own_settings_of_the_sweeper_can_be_overridden(project: Path) -> None:
    plan = plan_of(project, "hparams_search=optuna", "hydra.sweeper.n_trials=9", "model.optimizer.lr=0.01")
    assert plan.settings.study.trials == 9
    assert list(plan.space.keys()) == ["data.batch_size"]
    assert plan.config({})["model"]["optimizer"]["lr"] == 0.01


def test_the_older_form_of_the_optuna_sweepers_space_is_read(project: Path) -> None:
    space = {"model.net.width": {"type": "int", "low": 4, "high": 16}, "data.batch_size": {"type": "categorical",
             "choices": [32, 64]}}  # fmt: skip
    text = f"# @package _global_\ndefaults: [override /hydra/sweeper: optuna]\noptimized_metric: val/acc\nhydra: " \
           f"{{sweeper: {{direction: maximize, search_space: {json.dumps(space)}}}}}\n"  # fmt: skip
    write(project, {"hparams_search/old.yaml": text})
    plan = plan_of(project, "hparams_search=old")
    assert plan.space.describe() == {"model.net.width": "4 to 16", "data.batch_size": "choice(32, 64)"}


def test_the_metric_of_a_tree_without_a_sweeper_is_what_its_checkpoints_monitor(project: Path) -> None:
    plan = plan_of(project, "model.net.width=4,8", "experiment=wide")
    assert (plan.settings.study.metric, plan.settings.study.direction, plan.settings.seed) == ("val/acc", "maximize", 7)
    assert plan.space.describe() == {"model.net.width": "choice(4, 8)"}


def test_an_interpolation_of_a_searched_key_follows_the_search(project: Path) -> None:
    write(project, {"train.yaml": TRAIN + "vars: {inputs: '${data.features}'}\n", "model/net.yaml":
          "_target_: src.LitNet\ninputs: ${vars.inputs}\ndir: ${paths.data_dir}\n"
          "epochs: ${trainer.max_epochs}\n"})  # fmt: skip
    plan = plan_of(project, "data.features=4,8")
    model = plan.config({"data.features": 8, "trainer.max_epochs": 3})["model"]
    assert model == {"_target_": "src.LitNet", "inputs": 8, "dir": f"{project}/data", "epochs": 3}


def test_an_interpolation_of_a_dropped_argument_keeps_its_value(project: Path) -> None:
    write(project, {"model/net.yaml": "_target_: src.LitNet\ndevices: ${trainer.devices}\n"})
    assert plan_of(project, "data.features=4,8").config({})["model"]["devices"] == 4


def test_an_optional_config_of_the_machine_is_read(project: Path) -> None:
    write(project, {"local/default.yaml": "# @package _global_\ndata: {batch_size: 7}\n"})
    assert plan_of(project, "model.net.width=4,8").config({})["data"]["batch_size"] == 7


def test_models_of_the_tree_can_be_searched(project: Path) -> None:
    plan = plan_of(project, "model=net,deep", "model.net.width=16")
    assert plan.config({"model": "deep"})["model"]["net"] == {
        "_target_": "src.nets.Dense", "inputs": 4, "width": 16, "half": 4, "depth": 3,
    }  # fmt: skip
    assert "depth" not in plan.config({"model": "net"})["model"]["net"]


def test_nodes_with_other_names_are_found_or_named(project: Path) -> None:
    files = {
        "train.yaml": "defaults: [_self_]\ndm: {_target_: src.Blobs, size: 3}\nbackbone: {_target_: src.nets.Dense}\n"
        "nets: {lit: {_target_: src.LitNet, width: 8, size: '${dm.size}', again: '${nets.lit.width}'}}\n",
    }
    write(project, files)
    plan = plan_of(project, "overnight.keys.model=nets.lit", "study.metric=val/acc", "nets.lit.width=4,8")
    assert plan.config({"model.width": 4})["model"] == {"_target_": "src.LitNet", "width": 4, "size": 3, "again": 4}
    plan = plan_of(project, "overnight.keys.model=nets.lit", "study.metric=val/acc", "model.width=5", "data.size=4,5")
    assert plan.config({"data.size": 5})["model"] == {"_target_": "src.LitNet", "width": 5, "size": 5, "again": 5}


def test_settings_may_be_in_the_tree_itself(project: Path) -> None:
    write(project, {"train.yaml": TRAIN + "overnight: {study: {trials: 3, name: here}, scheduler: none}\n"})
    plan = plan_of(project, "model.net.width=4,8", "study.name=there")
    assert (plan.settings.study.trials, plan.name, plan.settings.scheduler.name) == (3, "there", "none")


def test_a_key_that_no_trial_needs_may_fail_to_resolve_and_the_others_are_kept(project: Path) -> None:
    plan = plan_of(project, "model.net.width=4,8", "logger=wandb", "task_name=mine")
    assert plan.start.tree is not None
    assert plan.start.tree.rest["task_name"] == "mine"
    assert any(text.startswith("logger") for text in plan.start.tree.unused)
    assert "task_name" not in plan.config({})


def test_environment_variables_are_not_kept_with_the_study(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "hunter2")
    write(project, {"train.yaml": TRAIN + "service: {url: example.org, token: '${oc.env:SERVICE_TOKEN}'}\n"})
    plan = plan_of(project, "model.net.width=4,8", "study.metric=val/acc")
    assert plan.start.tree is not None
    assert plan.start.tree.rest["service"] == {"url": "example.org", "token": "${oc.env:SERVICE_TOKEN}"}
    assert "hunter2" not in json.dumps(plan.to_json())


def test_a_plan_of_a_tree_is_stored_whole(project: Path) -> None:
    plan = plan_of(project, "hparams_search=optuna", "logger=wandb")
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.config({}) == plan.config({})
    assert str(project) in again.start.import_path


CLI: dict[str, Any] = {
    "seed_everything": 42,
    "trainer": {
        "max_epochs": 5,
        "accelerator": "auto",
        "logger": None,
        "callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "mode": "min"}}],
    },
    "model": {"class_path": "nets.LitNet", "init_args": {"width": 8, "net": {"class_path": "nets.Dense"}}},
    "data": {"class_path": "nets.Blobs", "init_args": {"batch_size": 32}},
    "optimizer": {"class_path": "Adam", "init_args": {"lr": 0.001}},
    "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}},
}


def test_the_yaml_of_lightning_cli_is_read(project: Path) -> None:
    (project / "configs" / "cli.yaml").write_text(yaml.dump(CLI))
    plan = plan_of(project, "model.init_args.width=4,8", "optimizer.lr=interval(1e-4,1e-1)", "trainer.max_epochs=2",
                   "data.init_args.batch_size=16", name="cli")  # fmt: skip
    config = plan.config({"model.width": 4})
    assert config["model"] == {"_target_": "nets.LitNet", "width": 4, "net": {"_target_": "nets.Dense"}}
    assert config["data"] == {"_target_": "nets.Blobs", "batch_size": 16}
    assert config["optimizer"] == {"_target_": "torch.optim.Adam", "lr": 0.001}
    assert config["schedule"] == {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2}
    assert config["callbacks"] == {"early_stopping": {"_target_": "lightning.pytorch.callbacks.EarlyStopping",
                                                 "monitor": "val_loss", "mode": "min"}}  # fmt: skip
    assert (plan.settings.study.metric, plan.settings.study.direction) == ("val_loss", "minimize")
    assert (plan.settings.seed, plan.settings.trainer.max_epochs, plan.name) == (42, 2, "Blobs-LitNet")
    assert list(plan.space.keys()) == ["model.width", "optimizer.lr"]


def test_a_cli_whose_classes_are_in_its_script_needs_them_named(project: Path) -> None:
    cli = {**CLI, "model": {"width": 8}}
    (project / "configs" / "cli.yaml").write_text(yaml.dump(cli))
    assert "LightningModule" in problems_of(project, name="cli")[0]
    plan = plan_of(project, "+model.class_path=nets.LitNet", "model.width=4,8", name="cli")
    assert plan.config({"model.width": 4})["model"] == {"_target_": "nets.LitNet", "width": 4}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["hparams_search=optina"], "hparams_search: must be one of optuna, got 'optina'; did you mean optuna?"),
        (["model.net.wdth=3"], "model.net.wdth: no such key; did you mean model.net.width?"),
        (["study.trails=3"], "study.trails: no such key; did you mean study.trials?"),
        (["overnight.keys.model=nets"], "overnight.keys.model: must be a key of configs/train.yaml, got 'nets'"),
        (["overnight.keys.modle=model"], "overnight.keys.modle: must be one of data, model, trainer, callbacks"),
        (["tsak_name=x"], "tsak_name: no such key in configs/train.yaml; did you mean task_name?"),
        (["model.net.width=a"], "model.net.width: must be a number, got 'a'"),
        (["study.trials=1,2"], "study.trials: only keys of"),
        (["~data"], "data: configs/train.yaml must have a LightningDataModule with its _target_ or class_path"),
        (["hydra.sweeper.n_trails=3"], "configs/train.yaml: must compose"),
    ],
)
def test_mistakes_are_reported_in_one_line(project: Path, overrides: list[str], expected: str) -> None:
    (line,) = problems_of(project, *overrides)
    assert line.startswith(expected)
    assert "\n" not in line


def test_a_tree_that_does_not_exist_is_a_mistake(project: Path) -> None:
    assert problems_of(project, name="trian") == [
        f"--config-name: must be a config in {project}/configs, got 'trian'; there are train"
    ]
    with pytest.raises(ConfigError, match="--config-name: needs --config-dir"):
        build_plan((), None, config_name="train")
    with pytest.raises(ConfigError, match="--config-dir: must be a folder"):
        build_plan((), project / "nowhere", config_name="train")


def test_one_file_may_hold_the_classes_the_settings_and_the_search_space() -> None:
    plan = build_plan((), ROOT / "examples" / "plain_script", config_name="tune")
    assert (plan.name, plan.settings.study.trials, plan.settings.trainer.max_epochs) == ("digits-plain", 20, 10)
    assert plan.space.describe()["model.lr"] == "0.0001 to 0.1, log"
    assert list(plan.space.keys()) == ["model.width", "model.lr", "data.batch_size"]


def test_code_that_is_not_found_is_named_with_the_folder_that_is_gone(project: Path) -> None:
    plan = plan_of(project, "hparams_search=optuna")
    gone = replace(plan, start=replace(plan.start, import_path=("/no/such/folder",)))
    (line,) = [text for text in find_missing(gone) if "src" in text]
    assert line == (
        "data._target_: must name a class that can be imported, and there is no module src: the study was started "
        "with /no/such/folder, which is missing; put it back, or name the folder of your configs with --config-dir"
    )
    package = project / "src"
    package.mkdir()
    (package / "__init__.py").touch()
    sys.path.append(str(project))
    importlib.invalidate_caches()
    assert find_missing(gone) == []


def test_a_worker_reads_no_folder_that_a_plan_names(project: Path) -> None:
    plan = plan_of(project, "hparams_search=optuna", f"import_path={project}")
    on_worker = for_machine(plan, replace(plan.settings, import_path=None))
    assert on_worker.start.import_path == ()
    assert on_worker.settings.import_path is None


def test_the_command_line_is_kept_without_what_the_tree_itself_says(project: Path) -> None:
    write(project, {"train.yaml": TRAIN + "overnight: {study: {trials: 3}}\n"})
    line = ("experiment=wide", "model.optimizer.lr=0.1", "overnight.study.trials=4", "overnight.keys.model=model")
    tree = plan_of(project, "model.net.width=4,8", *line).start.tree
    assert tree is not None
    assert tree.overrides == line


def test_any_sampler_of_optuna_in_a_tree_is_the_sampler_of_the_study(project: Path) -> None:
    text = FILES["hparams_search/optuna.yaml"].replace(
        "TPESampler, seed: 1234, n_startup_trials: 6", "NSGAIISampler, seed: 5, population_size: 8"
    )
    write(project, {"hparams_search/optuna.yaml": text})
    settings = plan_of(project, "hparams_search=optuna").settings
    assert settings.sampler.target == {"_target_": "optuna.samplers.NSGAIISampler", "population_size": 8}
    assert settings.seed == 5
    assert plan_of(project, "hparams_search=optuna", "sampler=tpe").settings.sampler.name == "tpe"


def test_the_printed_commands_of_a_study_of_a_tree_compose(project: Path) -> None:
    plan = plan_of(project, "hparams_search=optuna", "model=net,deep", "trainer.max_epochs=2", "study.trials=4")
    params = {"model": "deep", "model.optimizer.lr": 0.05, "data.batch_size": 64}
    best = TrialRecord(1, "complete", params, (), 0.9, None, "", 0.0, 1.0)
    words = shlex.split(train_command(plan, best))
    assert words[:6] == ["overnight", "train", "--config-dir", "configs", "--config-name", "train"]
    again = plan_of(project, *words[6:], searching=False)
    assert again.config({}) == plan.config(params)
    words = shlex.split(next_command(plan, [best], best))
    following = plan_of(project, *words[6:])
    assert following.name == "blobs-net-2"
    assert following.settings.study.trials == 4
    assert {"model.optimizer.lr", "data.batch_size"} <= {*following.space.keys()}
