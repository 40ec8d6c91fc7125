"""The plan of a study: its settings, its search space, and the configuration of every point of the space.

A plan is complete and checked. The study storage keeps it as JSON, so that a study is resumed with the configuration
it was started with, without conf/ and without a command line. `build_plan` makes one from overrides.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from overnight.config.paths import StudyLocation, StudyPaths
from overnight.config.problems import ConfigError
from overnight.config.settings import SEARCHABLE, Settings, from_json, to_json
from overnight.config.trainer import length_arguments, unit_of
from overnight.config.trees import flatten, look_up, with_values
from overnight.config.user_tree import TreeUse
from overnight.config.values import fingerprint, to_text
from overnight.config.values import from_json as values_from_json
from overnight.config.values import to_json as values_to_json
from overnight.search.budget import Budget, budget_of
from overnight.search.distributions import random_value
from overnight.search.seeds import derive_seed
from overnight.search.space import SearchSpace
from overnight.system.devices import slot_devices

# How a plan and the choices of its trials are stored. A study of another format is refused, as its values would be
# read as others.
FORMAT = 3
# Keys that say where files are located. They do not affect a score.
LOCATION_KEYS = ("data.root",)
# Seeds of a confirmation by default: with fewer, the 95% interval of a mean is several times as wide.
CONFIRM_SEEDS = 5
# The study, and the MLflow experiment, of `overnight train`.
TRAIN_STUDY = "train"
# The confirmation of a study is a study of its own in the Optuna storage, with this suffix.
CONFIRM_SUFFIX = ".confirm"


@dataclass(frozen=True)
class FirstTrial:
    """A configuration that is tried before anything is sampled.

    Attributes:
        entry: The values that were asked for; empty for the baseline.
        values: Searched key -> value, for every key.
        point: Parameter name -> value, for the values inside the space.
        outside: The keys whose values are outside the space.
    """

    entry: dict[str, Any]
    values: dict[str, Any]
    point: dict[str, Any]
    outside: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """Where a study was started.

    Attributes:
        import_path: The folders on the import path that belong to neither Python nor its packages, absolute.
        tree: What was read from the user's own tree; None where the configs are laid out as ours.
    """

    import_path: tuple[str, ...] = ()
    tree: TreeUse | None = None

    def to_json(self) -> dict[str, Any]:
        return {"import_path": list(self.import_path), "tree": asdict(self.tree) if self.tree is not None else None}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Start:
        given = data["tree"] or {}
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return Start(tuple(data["import_path"]), TreeUse(**fields) if fields else None)


@dataclass(frozen=True)
class Plan:
    """Everything that the trials of a study depend on.

    Attributes:
        groups: The config groups that are searched.
        choices: Config group -> option of the baseline.
        variants: For each combination of options of `groups`, in their order, the composed tree before interpolation.
        warm_start: Searched key -> value of each configuration from study.warm_start_from, the best one first.
        config_dir: The user's config folder, an absolute path. It is only used to print commands.
        start: Where the study was started. No score depends on it.
    """

    settings: Settings
    space: SearchSpace
    groups: tuple[str, ...]
    choices: dict[str, str]
    variants: dict[tuple[str, ...], dict[str, Any]]
    warm_start: tuple[dict[str, Any], ...] = ()
    config_dir: str | None = None
    start: Start = Start()
    _resolved: dict[tuple[str, ...], dict[str, Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # the config of each combination, once it is composed

    @property
    def name(self) -> str:
        return self.settings.study_name

    @property
    def paths(self) -> StudyPaths:
        return self.settings.location.paths.study(self.name)

    @property
    def experiment(self) -> str:
        """The MLflow experiment, which a search and its confirmation share."""
        return self.name.removesuffix(CONFIRM_SUFFIX)

    @functools.cached_property
    def pauses(self) -> bool:
        """Whether the scheduler pauses trials and resumes them. The budget then counts epochs, or validations."""
        return self.settings.scheduler.name in ("halving", "own") and self.obstacle_to_pauses is None

    @functools.cached_property
    def obstacle_to_pauses(self) -> str | None:
        """Why no scheduler can pause the trials; None where one can.

        Rungs are numbers of epochs, or of validations, that all trials share. So each trial must have the same number,
        in one piece, and it must be known before one has trained.
        """
        if self.settings.study.folds is not None:
            return f"study.folds={self.settings.study.folds} trains a trial in parts"
        lengths = {f"trainer.{name}" for name in length_arguments(vars(self.settings.trainer))}
        searched = [p.key for p in self.space.parameters if p.key in lengths]
        if searched:
            return f"{' and '.join(searched)} {'are' if len(searched) > 1 else 'is'} searched"
        if self.settings.trainer.units is None:
            return (
                "only the data tell how many validations a trial has; give trainer.val_check_interval as a share of an "
                "epoch, or as a number of batches with trainer.check_val_every_n_epoch=null, trainer.max_epochs=-1 and "
                "trainer.max_steps"
            )
        return None

    @property
    def unit(self) -> Literal["epoch", "validation"]:
        """What the progress of a trial is counted in."""
        return unit_of(vars(self.settings.trainer))

    @property
    def units(self) -> int:
        """The epochs, or validations, of a whole trial. They are known where a scheduler pauses trials."""
        units = self.settings.trainer.units
        assert units is not None, "the number of validations is not known"
        return units

    @functools.cached_property
    def budget(self) -> Budget:
        """How many trials a search may start, and how many epochs they may train together."""
        if self.settings.sampler.name != "grid":
            return budget_of(self.settings, self.pauses)
        points = self.n_points + sum(bool(first.outside) for first in self.first_trials())
        return budget_of(self.settings, self.pauses, points)

    @functools.cached_property
    def n_points(self) -> float:
        """The number of points in the space; inf where a float is searched."""
        return self.space.size(self.baseline)

    @property
    def confirm_seeds(self) -> int:
        """Seeds of the confirmation. By default five, or none where that would be more trials than the search has."""
        confirm = self.settings.study.confirm
        if confirm.seeds is not None:
            return confirm.seeds
        trainings = min(self.budget.trials, self.budget.trainings) if self.pauses else self.budget.trials
        return CONFIRM_SEEDS if trainings >= CONFIRM_SEEDS * (confirm.top + 1) else 0

    @property
    def finalists(self) -> int:
        """The number of trials that a search trains to the end at least, if its budget is enough."""
        return self.settings.study.confirm.top if self.confirm_seeds else 1

    @property
    def confirmation_trials(self) -> int:
        """The largest number of trials of the confirmation; 0 where nothing is searched."""
        return self.confirm_seeds * (self.settings.study.confirm.top + 1) if self.space.parameters else 0

    def trial_seed(self, number: int) -> int:
        """The seed that trial `number` trains with."""
        return derive_seed(self.settings.seed, "trial", number)

    def config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Data, model, optimizer, schedule and trainer of a trial: the baseline with `values` (key -> value)."""
        variant = self.variants.get(_combination(self, values)) or self.variants[_combination(self, {})]
        return with_values(variant, {k: v for k, v in values.items() if k not in self.groups})

    def baseline(self, key: str, values: Mapping[str, Any] | None = None) -> Any:
        """The value of a key in the baseline; of a config group, its option.

        Args:
            values: Searched key -> value. Options of config groups in it take the place of the baseline's.

        Raises:
            KeyError: There is no such key.
        """
        if key in self.choices and "." not in key:
            return self.choices[key]
        combination = _combination(self, values or {})
        if combination not in self._resolved:
            self._resolved[combination] = self.config(dict(zip(self.groups, combination, strict=True)))
        return look_up(self._resolved[combination], key)

    def first_trials(self) -> list[FirstTrial]:
        """The distinct configurations of the baseline, study.enqueue and study.warm_start_from, in this order."""
        found: dict[str, FirstTrial] = {}
        for first in map(self.first_trial, [{}, *self.settings.study.enqueue, *self.warm_start]):
            found.setdefault(fingerprint(first.values), first)
        return list(found.values())

    def first_trial(self, entry: Mapping[str, Any]) -> FirstTrial:
        """The baseline with the values of `entry` (searched key -> value)."""

        def value_of(key: str, values: Mapping[str, Any]) -> Any:
            return entry[key] if key in entry else self.baseline(key, {**entry, **values})

        return FirstTrial(dict(entry), *self.space.find(value_of))

    def relocated(self, location: StudyLocation) -> Plan:
        """The plan of the same study at `location`, which differs once a home was moved or is mounted elsewhere."""
        return replace(self, settings=replace(self.settings, home=location.home, found_location=location))

    def differences(self, old: Plan) -> list[str]:
        """Why trials of `old` and of this plan are not comparable, one line each; empty where they are.

        Budget, slots, home, data.root, scheduler, sampler, retries and the like may differ: no score depends on them.
        """
        # A trial uses the baseline's value where a condition does not hold, so that value counts as well.
        searched = {p.key for plan in (self, old) for p in plan.space.parameters if not p.when}
        is_now, was = _score_inputs(self, searched), _score_inputs(old, searched)
        changed = {k for k in {*is_now, *was} if is_now.get(k) != was.get(k)}
        return [
            f"{key}: was {was.get(key, 'absent')}, is {is_now.get(key, 'absent')}"
            for key in dict.fromkeys([*was, *is_now])
            # A change in the baseline's combination of config groups is not repeated for every other combination.
            if key in changed and ("] " not in key or key.partition("] ")[2] not in changed)
        ]

    def to_json(self) -> dict[str, Any]:
        """The plan as the study storage keeps it."""
        content = {
            "settings": to_json(self.settings),
            "space": self.space.to_json(),
            "groups": list(self.groups),
            "choices": self.choices,
            "variants": [[list(k), v] for k, v in self.variants.items()],
            "warm_start": list(self.warm_start),
            "config_dir": self.config_dir,
            "start": self.start.to_json(),
        }
        return {"format": FORMAT, **values_to_json(content)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            ConfigError: The plan can't be read.
        """
        if data.get("format") != FORMAT:
            raise ConfigError(
                [
                    f"plan: must have format {FORMAT}, got {data.get('format', 'none')}; read this study with the "
                    "version of overnight that wrote it, or start another with study.name=NAME"
                ]
            )
        try:
            data = values_from_json(data)
            return Plan(
                from_json(data["settings"]),
                SearchSpace.from_json(data["space"]),
                tuple(data["groups"]),
                dict(data["choices"]),
                {tuple(k): v for k, v in data["variants"]},
                tuple(data["warm_start"]),
                data["config_dir"],
                Start.from_json(data["start"]) if "start" in data else Start(),
            )
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise ConfigError([f"plan: {type(error).__name__}: {error}"]) from error


def random_point(plan: Plan, rng: random.Random) -> dict[str, Any]:
    """A random point of a plan's space, searched key -> value."""
    return plan.space.draw(lambda _, dist: random_value(dist, rng), plan.baseline)


def config_of_params(plan: Plan, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a trial whose parameters have these values, by parameter name or by display name.

    Keys without a parameter keep the value of the baseline.
    """
    return plan.config(plan.space.values_of(params, plan.baseline))


def devices_of(plan: Plan) -> list[str]:
    """A device of this machine for each slot of a study."""
    return slot_devices(plan.settings.slots, plan.settings.trainer.accelerator)


def config_dir_option(plan: Plan) -> list[str]:
    """The words that a printed command needs to find the user's configs, and the classes beside their folder."""
    if plan.config_dir is None or not Path(plan.config_dir).is_dir():
        return []
    folder = Path(plan.config_dir)
    shown = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    name = ["--config-name", plan.start.tree.config_name] if plan.start.tree is not None else []
    return ["--config-dir", shown, *name]


def _score_inputs(plan: Plan, searched: set[str]) -> dict[str, str]:
    """Everything that a score depends on as text, by flat key. The `searched` keys have their distribution."""
    study = plan.settings.study
    flat = {
        "study.metric": study.metric,
        "study.direction": study.direction,
        "study.objective": study.objective,
        "study.folds": study.folds,
        "seed": plan.settings.seed,
    }
    baseline = tuple(plan.choices[g] for g in plan.groups)
    for combination in sorted(plan.variants):
        config = plan.config(dict(zip(plan.groups, combination, strict=True)))
        prefix = "" if combination == baseline else f"[{','.join(combination)}] "
        parts = {node: config[node] for node in SEARCHABLE if node in config}
        flat |= {f"{prefix}{k}": v for k, v in flatten(parts).items()}
    flat = {k: v for k, v in flat.items() if k.rpartition(" ")[2] not in {*searched, *LOCATION_KEYS}}
    texts = {key: to_text(value) for key, value in flat.items()}
    return {**texts, **{f"search.{key}": draw for key, draw in plan.space.describe().items()}}


def _combination(plan: Plan, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The options of the searched config groups that these values choose."""
    return tuple(str(values.get(g, plan.choices[g])) for g in plan.groups)
