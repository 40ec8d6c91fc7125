"""Writes the runs of trials: finds or creates the run of a trial, and writes what it lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from overnight.config.paths import trial_name
from overnight.search.formatting import trial_title
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.tracking import bulk, logged, tags
from overnight.tracking.dataset import as_input
from overnight.tracking.reconcile import logged_steps, trial_run
from overnight.tracking.run_update import LoggedMetric, RunUpdate, TrialRun, missing
from overnight.tracking.store import describe_error, milliseconds

# MLflow's client repeats a request that is not answered. After so long a repeated request may have created two runs.
_MAY_BE_REPEATED_S = 2.0
# So many values of a trial's log at once are followed by a pause, so that they cost no more than a share of a core.
_MANY_VALUES, _SHARE_OF_CORE = 1000, 0.1
# MLflow's codes for a request that will never be taken.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class RunWriter:
    """Brings the runs of one study's trials up to their records.

    Args:
        runs: Trial number -> the run that MLflow has of it.
        number_tag: The tag that holds a trial's number: tags.TRIAL or tags.CONFIRMATION.
        pause: Waits for some seconds; returns at once where the study ends.
    """

    def __init__(
        self,
        client: Any,
        plan: Plan,
        uid: str,
        experiment_id: str,
        parent_run_id: str | None,
        number_tag: str,
        runs: dict[int, TrialRun],
        pause: Callable[[float], object] = lambda _: None,
    ) -> None:
        self._client, self._plan, self._uid = client, plan, uid
        self._experiment_id, self._parent_run_id, self._number_tag = experiment_id, parent_run_id, number_tag
        self.runs, self._pause = runs, pause
        self._unknown: set[int] = set()  # trials whose runs must be searched for in MLflow
        self.refused: dict[str, str] = {}  # what MLflow does not take, as "trial-0007: metric NAME" -> why

    def write(self, record: TrialRecord, *, recheck: bool = False) -> None:
        """Write what the trial's run lacks.

        Args:
            recheck: Whether another process may have created or written the run since the last write.
        """
        if recheck:
            self._unknown.add(record.number)
        if record.number in self._unknown:  # also where the search after a slow creation has failed
            self.runs.pop(record.number, None)
        run = self.runs.get(record.number) or self._find(record.number) or self._create(record)
        self._unknown.discard(record.number)
        if run.steps is None:
            run.steps = logged_steps(self._client, run.run_id, record)
        self._write_logged(run, record)
        self._apply(run, record.number, missing(run, record, self._plan, self._parent_run_id))

    def write_samples(self, number: int, samples: Sequence[LoggedMetric]) -> None:
        """Write system metrics of a trial to its run."""
        from mlflow.entities import Metric

        self._client.log_batch(self.runs[number].run_id, [Metric(*sample) for sample in samples])

    def _apply(self, run: TrialRun, number: int, update: RunUpdate) -> None:
        """Make the writes of `update`, and note in `run` what it holds after each."""
        client, run_id = self._client, run.run_id
        if update.dataset is not None:
            client.log_inputs(run_id, [as_input(update.dataset)])
        if update.config is not None:
            client.log_text(run_id, update.config, "config.yaml")
            run.has_config = True
        if update.delete_reason:
            for tag in client.get_run(run_id).data.tags.keys() & {tags.REASON, tags.NOTES}:
                client.delete_tag(run_id, tag)
            run.has_reason = False
        if update.resume:
            client.update_run(run_id, status="RUNNING")
            run.status = "RUNNING"
        steps, run.steps = run.steps or {}, None  # unknown if the call fails, as part of it may have been written
        self._log(run, number, update)
        for metric in update.metrics:
            steps.setdefault(metric.name, set()).add(metric.step)
        run.steps = steps
        run.params.update(update.params)
        run.has_reason = run.has_reason or tags.REASON in update.tags
        if update.error is not None:
            client.log_text(run_id, update.error, "error.txt")
            client.set_tag(run_id, tags.NOTE, update.note)
        if update.end_status is not None:
            client.set_terminated(run_id, update.end_status, milliseconds(update.ended_at))
            run.status = update.end_status

    def _log(self, run: TrialRun, number: int, update: RunUpdate) -> None:
        """Log metrics, params and tags. What MLflow refuses is noted in `refused` and does not cost the rest."""
        self._log_batch(run, number, update.metrics, update.params, update.tags)

    def _write_logged(self, run: TrialRun, record: TrialRecord) -> None:
        """Write what the trial's code has logged: all of a trial that is done, else what a saved state covers."""
        folder = self._plan.paths.trial_log(record.number)
        for part in logged.unwritten(folder, run.logged, record.done, partial(self._steps_of, run.run_id)):
            for name in part.files:
                below = str(PurePosixPath(logged.ARTIFACTS, name).parent)
                self._client.log_artifact(run.run_id, str(folder / "files" / name), below)
            started = time.thread_time()
            rest = bulk.insert(self._client, run.run_id, part.metrics)
            self._log_batch(run, record.number, rest, part.params, part.tags)
            self._client.set_tag(run.run_id, tags.LOGGED, part.mark)
            run.logged = part.mark
            if len(part.metrics) > _MANY_VALUES:
                self._pause((time.thread_time() - started) * (1 / _SHARE_OF_CORE - 1))

    def _steps_of(self, run_id: str, name: str) -> set[int]:
        return {m.step for m in self._client.get_metric_history(run_id, name)}

    def _log_batch(
        self,
        run: TrialRun,
        number: int,
        metrics: Iterable[LoggedMetric],
        params: Mapping[str, str],
        texts: Mapping[str, str],
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        entries: list[Any] = [
            *(Metric(*metric) for metric in metrics),
            *(Param(name, text) for name, text in params.items()),
            *(RunTag(name, text) for name, text in texts.items()),
        ]

        def write(some: Sequence[Any]) -> None:
            kinds = ([e for e in some if isinstance(e, kind)] for kind in (Metric, Param, RunTag))
            self._client.log_batch(run.run_id, *kinds)

        for entry, why in refused_by(write, entries):
            self.refused[f"{trial_name(number)}: {type(entry).__name__.lower()} {entry.key}"] = why

    def _find(self, number: int) -> TrialRun | None:
        """Find the run of a trial that another process or a repeated request may have created. Keep the first one."""
        if number not in self._unknown:
            return None
        condition = tags.matching({tags.UID: self._uid, self._number_tag: str(number)})
        found = self._client.search_runs([self._experiment_id], condition, order_by=["attributes.start_time ASC"])
        for duplicate in found[1:]:
            self._client.delete_run(duplicate.info.run_id)
        if not found:
            return None
        self.runs[number] = trial_run(found[0])
        return self.runs[number]

    def _create(self, record: TrialRecord) -> TrialRun:
        run_tags = {**tags.common(self._plan.experiment, self._uid), self._number_tag: str(record.number)}
        run_tags[tags.ROLE] = "trial" if record.confirms is None else "confirmation"
        if record.confirms is not None:
            run_tags[tags.CONFIRMS] = trial_name(record.confirms.trial)
            run_tags[tags.SEED] = str(record.confirms.seed)
        self._unknown.add(record.number)  # until the answer arrives: the run may exist although the request failed
        started = time.monotonic()
        created = self._client.create_run(
            self._experiment_id,
            start_time=milliseconds(record.first_started_at),
            tags=run_tags,
            run_name=trial_title(record),
        )
        run = self.runs[record.number] = TrialRun(created.info.run_id, "RUNNING", steps={})
        if time.monotonic() - started > _MAY_BE_REPEATED_S:
            return self._find(record.number) or run
        return run


def refused_by(write: Callable[[Sequence[Any]], None], entries: Sequence[Any]) -> list[tuple[Any, str]]:
    """Write entries in as few calls as possible, and return those that MLflow refuses, each with its reason.

    Raises:
        Exception: Another error than a refusal, or a refusal of everything, which is the fault of no single entry.
    """
    from mlflow.exceptions import MlflowException

    refused: list[tuple[Any, str]] = []
    remaining = [entries]
    while remaining:
        some = remaining.pop(0)
        try:
            write(some)
        except MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            if len(some) > 1:
                remaining += [some[: len(some) // 2], some[len(some) // 2 :]]
                continue
            refused.append((some[0], describe_error(error)))
            if len(refused) == len(entries):
                raise
    return refused


def log_plots(client: Any, run_id: str, folder: Path) -> None:
    """Log the plots of a folder that a run lacks. A file of another size is another plot."""
    logged = {a.path.rpartition("/")[2]: a.file_size for a in client.list_artifacts(run_id, "pictures")}
    for file in sorted((*folder.glob("*.png"), *folder.glob("*.md"))):
        if logged.get(file.name) != file.stat().st_size:
            client.log_artifact(run_id, str(file), "pictures")
