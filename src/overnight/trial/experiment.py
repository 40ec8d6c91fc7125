"""`self.logger.experiment`: the calls of TensorBoard's SummaryWriter and of MLflow's client that modules make.

TensorBoard's calls take the step as `global_step`. MLflow's take the run id first; it must be `self.logger.run_id`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.trial import media

if TYPE_CHECKING:
    from overnight.trial.logger import TrialLogger


class TensorBoardCalls:
    """What TensorBoard's SummaryWriter is called for. Arguments without a meaning here are accepted."""

    _logger: TrialLogger

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None, *_: Any, **__: Any) -> None:
        self._logger.log_metrics({tag: scalar_value}, global_step)

    def add_scalars(
        self, main_tag: str, tag_scalar_dict: Mapping[str, Any], global_step: int | None = None, *_: Any
    ) -> None:
        self._logger.log_metrics({f"{main_tag}/{tag}": v for tag, v in tag_scalar_dict.items()}, global_step)

    def add_image(
        self, tag: str, img_tensor: Any, global_step: int | None = None, walltime: Any = None, dataformats: str = "CHW"
    ) -> None:
        self._logger.keep("images", tag, global_step, ".png", media.image_png(img_tensor, dataformats))

    def add_images(
        self, tag: str, img_tensor: Any, global_step: int | None = None, walltime: Any = None, dataformats: str = "NCHW"
    ) -> None:
        self._logger.keep("images", tag, global_step, ".png", media.grid_png(img_tensor, dataformats))

    def add_figure(
        self, tag: str, figure: Any, global_step: int | None = None, close: bool = True, walltime: Any = None
    ) -> None:
        several = figure if isinstance(figure, list | tuple) else [figure]
        for number, each in enumerate(several):
            end = f"-{number}.png" if len(several) > 1 else ".png"
            self._logger.keep("figures", tag, global_step, end, media.figure_png(each, close))

    def add_histogram(
        self, tag: str, values: Any, global_step: int | None = None, bins: Any = "tensorflow", *_: Any, **__: Any
    ) -> None:
        self._logger.keep("histograms", tag, global_step, ".json", media.histogram_json(values, bins))

    def add_text(self, tag: str, text_string: Any, global_step: int | None = None, walltime: Any = None) -> None:
        self._logger.keep("text", tag, global_step, ".txt", str(text_string).encode())

    def add_hparams(
        self, hparam_dict: Mapping[str, Any], metric_dict: Mapping[str, Any], *_: Any, global_step: int = 0, **__: Any
    ) -> None:
        self._logger.log_hyperparams(hparam_dict)
        self._logger.log_metrics(metric_dict, global_step)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class MlflowCalls:
    """What MLflow's client is called for, for the run of the trial."""

    _logger: TrialLogger

    def log_metric(
        self, run_id: str, key: str, value: Any, timestamp: int | None = None, step: int | None = None, **_: Any
    ) -> None:
        self._check(run_id)
        self._logger.log_metrics({key: value}, step)

    def log_param(self, run_id: str, key: str, value: Any, **_: Any) -> None:
        self._check(run_id)
        self._logger.log_hyperparams({key: value})

    def set_tag(self, run_id: str, key: str, value: Any, **_: Any) -> None:
        self._check(run_id)
        self._logger.log.add_tag(key, value)

    def log_figure(self, run_id: str, figure: Any, artifact_file: str, **_: Any) -> None:
        self._check(run_id)
        if artifact_file.endswith(".html") and hasattr(figure, "to_html"):  # of Plotly
            self._logger.log.add_file(artifact_file, figure.to_html(include_plotlyjs="cdn").encode())
        else:
            self._logger.log.add_file(artifact_file, media.figure_png(figure))

    def log_image(
        self, run_id: str, image: Any, artifact_file: str | None = None, key: str | None = None,
        step: int | None = None, **_: Any,
    ) -> None:  # fmt: skip
        self._check(run_id)
        if artifact_file is not None:
            self._logger.log.add_file(artifact_file, media.image_png(image))
        else:
            self._logger.log_image(key or "image", image, step)

    def log_artifact(self, run_id: str, local_path: str | Path, artifact_path: str | None = None) -> None:
        self._check(run_id)
        self._logger.log_artifact(local_path, artifact_path)

    def log_dict(self, run_id: str, dictionary: Any, artifact_file: str) -> None:
        self._check(run_id)
        text = json.dumps(dictionary, indent=2, default=media.plain)
        if artifact_file.endswith((".yaml", ".yml")):
            import yaml

            text = yaml.safe_dump(json.loads(text), sort_keys=False)
        self._logger.log.add_file(artifact_file, text.encode())

    def log_text(self, run_id: str, text: Any, artifact_file: str) -> None:
        self._check(run_id)
        self._logger.log.add_file(artifact_file, str(text).encode())

    def log_table(self, run_id: str, data: Any, artifact_file: str) -> None:
        self._check(run_id)
        self._logger.log.add_file(artifact_file, media.table_json(None, data))

    def _check(self, run_id: str) -> None:
        if run_id != self._logger.run_id:
            raise ValueError(
                f"self.logger.experiment: must get the trial's own run id, got {run_id!r}; pass self.logger.run_id"
            )


class Experiment(TensorBoardCalls, MlflowCalls):
    """What `self.logger.experiment` is in a trial."""

    def __init__(self, logger: TrialLogger) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        known = sorted(n for kind in (TensorBoardCalls, MlflowCalls) for n in vars(kind) if not n.startswith("_"))
        raise AttributeError(
            f"self.logger.experiment has no {name} in a trial of overnight; it has {', '.join(known)}; "
            "write a file and pass it to self.logger.log_artifact instead"
        )
