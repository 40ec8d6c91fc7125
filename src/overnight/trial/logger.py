"""The logger of a trial, `self.logger` in a module. What it gets goes to MLflow, through a file of the trial."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from overnight.protocol import TrialSpec
from overnight.trial import lightning_packages, media
from overnight.trial.experiment import Experiment
from overnight.trial.limited_log import LimitedLog


class TrialLogger:
    """A Logger of the model's Lightning package.

    Args:
        spec: the trial.
        saved: the state of its log in the state that the trial resumes from; see LogFile.

    Attributes:
        log: what it writes to.
        trainer: counts the steps that are not given.
    """

    def __init__(self, spec: TrialSpec, saved: dict[str, int] | None = None) -> None:
        super().__init__()
        self._spec, self.log = spec, LimitedLog(spec.logged, saved)
        self._experiment = Experiment(self)
        self.trainer: Any = None

    @property
    def experiment(self) -> Experiment:
        return self._experiment

    @property
    def name(self) -> str:
        return self._spec.study

    @property
    def version(self) -> str:
        return f"trial-{self._spec.number:04d}"

    @property
    def run_id(self) -> str:
        """The id to pass to the calls of `experiment` that take one."""
        return self.version

    @property
    def save_dir(self) -> str:
        return str(self._spec.checkpoint_folder)

    log_dir = save_dir

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.log.add_values(metrics, self._step(step))

    def log_hyperparams(self, params: Any, *_: Any, **more: Any) -> None:
        """Log parameters: a mapping or a Namespace."""
        self.log.add_params({**(params if isinstance(params, Mapping) else vars(params)), **more})

    def log_image(self, key: str, images: Any, step: int | None = None, **_: Any) -> None:
        several = images if isinstance(images, list | tuple) else [images]
        for number, image in enumerate(several):
            end = f"-{number}.png" if len(several) > 1 else ".png"
            self.keep("images", key, step, end, media.image_png(image))

    def log_figure(self, key: str, figure: Any, step: int | None = None) -> None:
        self.keep("figures", key, step, ".png", media.figure_png(figure))

    def log_text(self, key: str, text: Any, step: int | None = None) -> None:
        self.keep("text", key, step, ".txt", str(text).encode())

    def log_table(
        self,
        key: str,
        columns: Sequence[Any] | None = None,
        data: Any = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        self.keep("tables", key, step, ".json", media.table_json(columns, data if dataframe is None else dataframe))

    def log_artifact(self, local_path: str | Path, artifact_path: str | None = None) -> None:
        """Log a file, or all files of a folder. artifact_path: the folder of the run that it goes to."""
        source, below = Path(local_path), Path(artifact_path or "")
        if not source.exists():
            raise FileNotFoundError(f"log_artifact: there is no file {source}")
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if file.is_file():
                self.log.add_file(str(below / file.relative_to(source.parent)), file)

    def keep(self, kind: str, key: str, step: int | None, end: str, content: bytes) -> None:
        """Keep a file that belongs to a step."""
        self.log.add_file(f"{kind}/{key}/step-{self._step(step):07d}{end}", content)

    def finalize(self, status: str) -> None:  # noqa: ARG002
        self.log.file.flush()

    def _step(self, step: int | None) -> int:
        return int(step) if step is not None else int(self.trainer.global_step) if self.trainer is not None else 0


def attach(logger: TrialLogger, trainer: Any, *owners: Any) -> None:
    """Prepare a Trainer with a logger for training.

    The Trainer passes to loggers what `self.log` gets, by epoch and by step. The epochs are reported anyway, so that
    the logger gets the steps only. It does not get what `save_hyperparameters` keeps, because the run has the whole
    configuration.

    Args:
        owners: the model and the data module.
    """
    logger.trainer = trainer
    connector = trainer._logger_connector

    def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
        if metrics and connector._first_loop_iter is not None:
            if step is None:
                step = trainer.fit_loop.epoch_loop._batches_that_stepped
            logger.log_metrics(metrics, step)

    connector.log_metrics = log_metrics
    for owner in owners:
        owner._log_hyperparams = False


def make_logger(lightning: Any, spec: TrialSpec, saved: dict[str, int] | None = None) -> Any:
    """Return a TrialLogger of a Lightning package. See TrialLogger."""
    base = importlib.import_module(f"{lightning.__name__}.loggers").Logger
    return lightning_packages.subclass(TrialLogger, base)(spec, saved)
