"""Use the winner of a study: its config, its checkpoint, its network in MLflow's registry, and its predictions."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.config import shell
from overnight.config.paths import trial_name
from overnight.config.problems import ConfigError
from overnight.config.trees import flatten
from overnight.config.values import fingerprint
from overnight.protocol import Exported, ExportSpec, Failure, Predictions, PredictSpec
from overnight.report import finding, finished, winner_config
from overnight.runner import trial_process
from overnight.search.formatting import format_value
from overnight.search.plan import CONFIRM_SUFFIX, LOCATION_KEYS, TRAIN_STUDY, Plan, config_dir_option
from overnight.search.record import TrialRecord, config_of
from overnight.study.snapshot import StudyView, view
from overnight.study.storage.access import is_read_only
from overnight.system import forkserver
from overnight.tracking import registry, tags
from overnight.tracking.store import describe_error

EXPORT_TIMEOUT_S = 300.0
PREDICT_TIMEOUT_S = 3600.0  # a folder may hold very many images
_WEIGHTS = "weights.ckpt"


@dataclass(frozen=True)
class Checkpoint:
    """Weights that were kept.

    Attributes:
        study: The Optuna study of the trial that trained them; it may be a confirmation.
        number: The number of that trial.
        trial: The trial of the search with the same configuration.
    """

    path: Path
    study: str
    number: int
    trial: TrialRecord


def find_checkpoint(view: StudyView, number: int | None = None) -> Checkpoint:
    """Find the weights of a trial, or of the winner: of its first confirmation if there is one.

    Raises:
        ConfigError: There are none; the message says what to do.
    """
    where, best = view.plan.settings.location.paths, finding.from_view(view).best if view.name != TRAIN_STUDY else None
    if number is not None and not 0 <= number < len(view.records):
        known = f"it has trials 0 to {len(view.records) - 1}" if view.records else "it has no trials yet"
        raise ConfigError([f"trial: must be one of {view.name}'s, got {number}; {known}"])
    if number is None and best is None:
        remedy = (
            f"name one of its trials, e.g. {view.name}/0" if view.name == TRAIN_STUDY else "`overnight tune` resumes it"
        )
        raise ConfigError([f"study: must have a winner, and {view.name} ({view.state}) has none; {remedy}"])
    trial = view.records[number] if number is not None else best
    assert trial is not None
    found = [(view.name, trial.number)]
    if number is None and view.confirmation is not None:
        again = (r for r in view.confirmation.records if r.confirms is not None and r.confirms.trial == trial.number)
        found = [*((view.confirmation.name, r.number) for r in again if r.state == "complete"), *found]
    for study, n in found:
        path = where.study(study).checkpoint(n) / _WEIGHTS
        if path.exists():
            return Checkpoint(path, study, n, trial)
    folder = config_dir_option(view.plan) if view.plan.start.tree is None else []
    words = ["overnight", "train", *folder, f"+experiment={winner_config.option_name(view.plan.experiment)}"]
    remedy = f"`{shell.join([*words, *view.plan.settings.location.overrides])}` trains the winner again"
    if number is not None:
        remedy = f"use {view.plan.experiment} for its winner"
    raise ConfigError(
        [
            f"study: {view.name}'s {trial_name(trial.number)} has no weights: study.keep_checkpoints keeps "
            f"those of the best {view.plan.settings.study.keep_checkpoints}; {remedy}"
        ]
    )


def write_config(view: StudyView) -> list[str]:
    """Write the config of the winner to the home and return messages for the user."""
    best = finding.from_view(view).best
    if best is None:
        return []
    try:
        changed = winner_config.write(view.plan, best)
    except (OSError, ConfigError) as error:  # the result is valid without the file
        return [
            f"the config of the winner could not be written to {view.plan.settings.location.paths.winners}: {error}"
        ]
    return [f"{path} was changed by hand and is kept" for path in changed]


def explain_retraining(plan: Plan, record: TrialRecord) -> str | None:
    """Say why a run of `train` with the configuration of a winner has another value than the study.

    Args:
        plan: Of +experiment=best_STUDY.
        record: The run.

    Returns:
        One sentence; None where the configuration is another one, or where the run has the seed of the winner.
    """
    prefix = winner_config.option_name("")
    if not plan.name.startswith(prefix) or record.objective is None:
        return None
    try:
        study, _ = view(plan.settings.location, plan.name.removeprefix(prefix))
    except ConfigError:  # it is of another version
        return None
    found = finding.from_view(study) if study is not None else None
    if study is None or found is None or (best := found.best) is None or best.objective is None:
        return None
    if _trained(config_of(best, study.plan)) != _trained(config_of(record, plan)):
        return None
    metric, folds = study.plan.settings.study.metric, study.plan.settings.study.folds
    if found.winner is not None and found.winner.estimate is not None:
        estimate = found.winner.estimate
        had = f"{finding.format_estimate(estimate, metric)} over {finding.count_seeds(estimate.n)}"
    elif folds is None and study.plan.trial_seed(best.number) == plan.trial_seed(0):
        return None
    else:
        had = f"{format_value(best.objective, metric)} on one seed"
    now = format_value(record.objective, metric)
    return (
        f"{study.name} had {had} with this configuration ({trial_name(best.number)}). `overnight train` uses another "
        f"seed{' and no folds' if folds else ''}, so its value differs. On the CPU, the same "
        f"command gives {now} again; no command trains with the seeds of {study.name}."
    )


def _trained(config: dict[str, Any]) -> str:
    """Return what of a configuration a score depends on, to compare it."""
    return fingerprint({k: v for k, v in flatten(config).items() if k not in LOCATION_KEYS})


def register(view: StudyView, timeout_s: float = EXPORT_TIMEOUT_S) -> str:
    """Register the winner's network in MLflow under the name of the study, as its champion.

    A network that is registered already is not written again. The forkserver must be warm.

    Args:
        timeout_s: Seconds after which the export is ended.

    Returns:
        A message for the user.
    """
    try:
        checkpoint = find_checkpoint(view)
    except ConfigError as error:
        return f"no model in MLflow's registry: {error}"
    location, named = view.plan.settings.location, f"models:/{view.name}@{registry.CHAMPION}"
    digest = hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(dir=location.paths.root, prefix="model.") as folder:
        try:
            if registry.champion_tags(location, view.name).get(tags.WEIGHTS) == digest:
                return f"model: {named}"
            spec = ExportSpec(checkpoint.path, Path(folder), location.paths.cache, location.paths.data_locks)
            exported = trial_process.run_one_shot(spec, location.paths.study(view.name).logs / "model.log", timeout_s)
            if not isinstance(exported, Exported) or exported.file is None:
                if isinstance(exported, Failure):
                    return _not_registered(exported.problems[0], checkpoint, finished.TRIED_AGAIN)
                return _not_registered(getattr(exported, "error", ""), checkpoint)
            version_tags = {
                tags.STUDY: view.name,
                tags.UID: view.uid,
                tags.WINNER: trial_name(checkpoint.trial.number),
                tags.WEIGHTS: digest,
            }
            registry.register(view, exported, version_tags, finding.summary_sentence(finding.from_view(view)))
        except Exception as error:  # of MLflow, SQLAlchemy or the network
            return _not_registered(describe_error(error), checkpoint, finished.TRIED_AGAIN)
    return f"model: {named}"


def _not_registered(reason: str, checkpoint: Checkpoint, *more: str) -> str:
    return "; ".join([f"no model in MLflow's registry: {reason}", f"its weights are kept in {checkpoint.path}", *more])


def predict(view: StudyView, number: int | None, path: Path, invert: bool = False) -> tuple[Checkpoint, Predictions]:
    """Predict images or rows with a trained network. Raises ConfigError with every mistake in them."""
    checkpoint, location = find_checkpoint(view, number), view.plan.settings.location
    if not path.exists():
        raise ConfigError([f"FILE: must be an image, a folder of images or a .csv file, got {str(path)!r}, which does "
                           f"not exist; correct the path"])  # fmt: skip
    forkserver.warm_up()
    logs = location.paths.study(view.name.removesuffix(CONFIRM_SUFFIX)).logs
    cache, locks = location.paths.cache, location.paths.data_locks
    with tempfile.TemporaryDirectory() as scratch:
        if is_read_only(location):
            logs, cache, locks = Path(scratch), Path(scratch, "cache"), Path(scratch, "locks")
        spec = PredictSpec(checkpoint.path, path.absolute(), invert, cache, locks)
        reply = trial_process.run_one_shot(spec, logs / "predict.log", PREDICT_TIMEOUT_S)
    if not isinstance(reply, Predictions):
        raise ConfigError(
            reply.problems if isinstance(reply, Failure) else ["predict: must return predictions, got another message"]
        )
    return checkpoint, reply
