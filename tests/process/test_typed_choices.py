"""Choices and other values keep their type from the configuration through the study storage to every place of use."""

from __future__ import annotations

import csv
import json
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from overnight.cli import manage
from overnight.config.problems import ConfigError
from overnight.config.trees import to_yaml
from overnight.config.values import from_text, same, to_text
from overnight.protocol import Progress
from overnight.report import advice, confirm, winner_config
from overnight.search.build_plan import build_plan
from overnight.search.formatting import describe_params
from overnight.search.plan import Plan
from overnight.search.record import config_of
from overnight.study.open import open_study
from overnight.study.snapshot import StudyView, view
from overnight.tracking.run_update import params_of
from support.yaml_values import HOSTILE

ALIKE: list[Any] = [False, 0, 1, 1.0, None]
GRID = ("sampler=grid", "study.trials=99", "study.confirm.seeds=0")


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A configuration folder with a model of one's own."""
    (tmp_path / "conf" / "model").mkdir(parents=True)
    model = {"_target_": "mine.Net", "note": "plain", "weights": {0: 1.0, 1: 3.0}, "limit": float("inf"), "length": 5}
    (tmp_path / "conf" / "model" / "net.yaml").write_text(to_yaml({**model, "extra": None, "literal": "\\${x}"}))
    return tmp_path / "conf"


def planned(conf: Path, space: dict[str, Any], *overrides: str) -> Plan:
    (conf / "search").mkdir(exist_ok=True)
    (conf / "search" / "net.yaml").write_text(to_yaml(space))
    return build_plan([f"home={conf.parent / 'home'}", "model=net", *overrides], conf)


def choices(options: list[Any]) -> dict[str, Any]:
    return {"type": "categorical", "choices": options}


def played(plan: Plan, trials: int = 99, **options: bool) -> StudyView:
    """The study after every trial was completed, with the number of the trial as its score."""
    session, _ = open_study(plan, **options)
    with closing(session):
        for _ in range(trials):
            if (assignment := session.queue.ask()) is None:
                break
            n = assignment.number
            session.writer.record(Progress(n, 0, {"val/accuracy": n / 1000}, 1000.0, 0.1))
            session.writer.complete(n)
    seen, _ = view(plan.settings.location, plan.name)
    assert seen is not None
    return seen


def tried(seen: StudyView, key: str) -> list[Any]:
    """The values of a model's key that the trials were trained with."""
    return [config_of(r, seen.plan)["model"][key] for r in seen.records]


def is_permutation(found: list[Any], expected: list[Any]) -> bool:
    return same(sorted(map(to_text, found)), sorted(map(to_text, expected)))


@pytest.mark.parametrize("options", [ALIKE, ["plain", *HOSTILE]], ids=["alike in Python", "hostile texts"])
def test_a_grid_trains_every_choice_once_and_every_place_shows_what_it_trained(conf: Path, options: list[Any]) -> None:
    key = "extra" if options is ALIKE else "note"
    escaped = [o.replace("${", "\\${") if isinstance(o, str) and "\\" not in o else o for o in options]
    options = [o for o in escaped if not isinstance(o, str) or "${a}" not in o]  # interpolations of no known key
    literal = [o.replace("\\${", "${") if isinstance(o, str) else o for o in options]
    # An entry of a search file is resolved twice, when it is read and with its trial.
    seen = played(planned(conf, {f"model.{key}": choices(options)}, *GRID))
    trained = tried(seen, key)
    assert is_permutation(trained, literal)

    in_mlflow = [params_of(r, seen.plan)[f"model.{key}"] for r in seen.records]
    manage.export(seen, conf.parent / "trials.csv")
    with open(conf.parent / "trials.csv", newline="") as file:
        in_csv = [row[f"params.model.{key}"] for row in csv.DictReader(file)]
    assert in_csv == in_mlflow
    for texts in (in_mlflow, in_csv):
        found = [seen.plan.config({f"model.{key}": from_text(text)})["model"][key] for text in texts]
        assert same(found, trained)
    assert len({describe_params(r.params) for r in seen.records}) == len(options)
    assert not any("\n" in describe_params(r.params) for r in seen.records)


def as_bash_runs(line: str) -> list[str]:
    """The arguments that a command of ours gets when bash runs a line."""
    script = f'overnight() {{ printf "%s\\0" "$@"; }}\n{line}'
    return subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.decode().split("\0")[1:-1]


def plan_of_line(line: str, conf: Path) -> Plan:
    words = as_bash_runs(line)
    at = words.index("--config-dir")
    assert words.pop(at) + words.pop(at) == f"--config-dir{conf}"
    return build_plan(words, conf)


@pytest.mark.long
def test_the_printed_lines_say_the_same_values_after_bash_and_hydra(conf: Path) -> None:
    options = [o for o in HOSTILE if "${" not in o] + ["\\${x}", None, True, 1, 1.0, [1, "a b"], {"a": {0: 1.5}}]
    space = {"model.extra": choices(options), "model.length": "int(interval(1, 9))"}
    seen = played(planned(conf, space, "study.trials=12", "sampler=random", "trainer.max_epochs=3"))
    best = seen.records[-1]
    after = plan_of_line(advice.next_command(seen.plan, seen.records, best), conf)
    (before,), (now,) = seen.plan.space.parameters_of("model.extra"), after.space.parameters_of("model.extra")
    assert now == before
    assert same(now.options, before.options)
    assert after.space.parameters_of("model.length")
    of_each_kind = {type(config_of(r, seen.plan)["model"]["extra"]): r for r in seen.records}
    for record in of_each_kind.values():
        again = plan_of_line(advice.train_command(seen.plan, record), conf)
        assert same(again.config({}), config_of(record, seen.plan))


@pytest.mark.long
def test_the_config_of_the_winner_says_the_same_values(conf: Path) -> None:
    space = {"model.extra": choices(["\\${x}", "null", 1.0, {"a": {0: 1.5}}]), "model.length": "1,2"}
    seen = played(planned(conf, space, "study.trials=8"))
    for record in seen.records:
        winner_config.write(seen.plan, record)
        again = build_plan([f"home={conf.parent / 'home'}", "+experiment=best_digits-net"], conf)
        assert same(again.config({}), config_of(record, seen.plan))
        assert again.space.describe() == seen.plan.space.describe()


@pytest.mark.long
def test_a_value_that_no_command_can_hold_leads_to_the_config_of_the_winner(conf: Path) -> None:
    seen = played(planned(conf, {"model.extra": choices([{"it's": 1}, {"null": 2}])}, "study.trials=3"))
    best = seen.records[-1]
    winner_config.write(seen.plan, best)
    assert "+experiment=best_digits-net" in advice.train_command(seen.plan, best)
    again = plan_of_line(advice.train_command(seen.plan, best), conf)
    assert same(again.config({}), config_of(best, seen.plan))
    after = plan_of_line(advice.next_command(seen.plan, seen.records, best), conf)
    assert after.space == seen.plan.space
    assert after.name == "digits-net-2"


def test_a_stored_plan_and_its_confirmation_keep_keys_and_numbers_that_json_lacks(conf: Path) -> None:
    plan = planned(conf, {"model.extra": choices([{0: "a"}, {"0": "a"}, float("nan"), b"x"])}, *GRID)
    restored = Plan.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False)))
    assert same(restored.to_json(), plan.to_json())
    assert restored.differences(plan) == []
    seen = played(plan)
    for record in seen.records:
        model = config_of(record, seen.plan)["model"]
        assert same({k: model[k] for k in ("weights", "limit")}, {"weights": {0: 1.0, 1: 3.0}, "limit": float("inf")})
    assert len({confirm._key(seen.plan, r) for r in seen.records}) == len(seen.records)
    with closing(open_study(confirm.confirmation_plan(plan, seen.records), comparable=False)[0]) as session:
        for record in seen.records:
            session.queue.add_confirmation(
                config_of(record, plan), record.params, confirm.Confirms(record.number, 1, 7)
            )
        for record in seen.records:
            assignment = session.queue.ask()
            assert assignment is not None
            assert same(assignment.config, config_of(record, plan))
            assert same(session.read(assignment.number).params, record.params)


@pytest.mark.long
def test_a_resumed_study_has_the_choices_that_were_trained_and_extends_by_others(conf: Path) -> None:
    line = ("sampler=grid", "study.trials=99", "study.confirm.seeds=0")
    first = played(planned(conf, {"model.extra": choices([0, 1.0])}, *line))
    assert is_permutation(tried(first, "extra"), [None, 0, 1.0])
    wider = planned(conf, {"model.extra": choices([False, 0, 1, 1.0, None])}, *line)
    with pytest.raises(ConfigError, match="--extend"):
        open_study(wider)
    seen = played(wider, extend=True)
    assert same(tried(seen, "extra")[:3], tried(first, "extra"))
    assert is_permutation(tried(seen, "extra"), [False, 0, 1, 1.0, None])
    with pytest.raises(ConfigError, match="does not contain all of"):
        open_study(planned(conf, {"model.extra": choices([0, True, 1.0, None])}, *line), extend=True)


def test_entries_to_try_first_are_told_apart_by_type(conf: Path) -> None:
    entries = "study.enqueue=[{model.extra:1},{model.extra:1.0},{model.extra:true},{model.extra:1},{model.extra:'1'}]"
    plan = planned(conf, {"model.extra": choices([1, 1.0, True, "1", None])}, entries, "study.trials=6")
    assert same(tried(played(plan, 5), "extra"), [None, 1, 1.0, True, "1"])
    assert same(tried(played(plan, 1), "extra")[:5], [None, 1, 1.0, True, "1"])


def test_keys_with_names_of_ours_are_in_every_line(conf: Path) -> None:
    plan = planned(
        conf, {"model.length": "3,4", "data.batch_size": "8,16", "optimizer.lr": "0.1,0.2"}, "study.trials=2"
    )
    seen = played(plan)
    assert describe_params(seen.records[0].params) == "length=5 batch_size=32 lr=0.001"
    assert describe_params({"model.lr": 0.5, "optimizer.lr": 1}) == "model.lr=0.5 optimizer.lr=1"
    assert describe_params({"m.sizes.length": 2, "m.sizes.0": 8, "m.sizes.1": 9}) == "sizes=8-9"
    assert describe_params({"m.sizes.length": 2}) == "length=2"
    assert "model.length=" in advice.next_command(seen.plan, seen.records, seen.records[1])


def test_a_study_of_another_format_is_refused_in_a_sentence(conf: Path) -> None:
    data = planned(conf, {"model.extra": "1,2"}).to_json()
    for older in ({**data, "format": 1}, {k: v for k, v in data.items() if k != "format"}):
        with pytest.raises(ConfigError, match="plan: must have format 3, got"):
            Plan.from_json(older)
