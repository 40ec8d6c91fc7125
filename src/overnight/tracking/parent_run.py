"""The run of a study in MLflow, above the runs of its trials."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from overnight.config.paths import trial_name
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.tracking import names, pages, tags
from overnight.tracking.dataset import as_input, dataset_of
from overnight.tracking.duration import end_of_study
from overnight.tracking.provenance import study_files
from overnight.tracking.run_update import rounded
from overnight.tracking.run_writer import log_plots
from overnight.tracking.store import find_experiment, find_parent, milliseconds

_STATES = {"FINISHED": "complete", "FAILED": "failed", "KILLED": "paused"}


def open_experiment(client: Any, plan: Plan, uid: str) -> str:
    """Find, restore or create the experiment of the search with this uid; returns the experiment's id."""
    found = find_experiment(client, plan.experiment, uid)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    root = plan.settings.location.artifact_root  # None at a server, which chooses the place itself
    study = plan.settings.study
    return str(
        client.create_experiment(
            plan.experiment,
            artifact_location=f"{root}/{urllib.parse.quote(plan.experiment)}" if root is not None else None,
            tags={
                "mlflow.experiment.primaryMetric.name": names.metric_name(study.metric),
                "mlflow.experiment.primaryMetric.greaterIsBetter": str(study.direction == "maximize"),
                "mlflow.experimentKind": "custom_model_development",  # the other kind is for language models
            },
        )
    )


def _with_old_result(note: str, run: Any) -> str:
    """Return a new note of a run with the result that its old note shows. The tag may be of an earlier launch."""
    sentence, old_note = run.data.tags.get(tags.REPORT), run.data.tags.get(tags.NOTE, "")
    is_shown = sentence is not None and old_note.startswith(pages.note_with_result(sentence, ""))
    return pages.note_with_result(sentence, note) if is_shown else note


class ParentRun:
    """The run of a study. `run_id` is None before it is opened, and where the study has none."""

    def __init__(self, client: Any, plan: Plan, uid: str, experiment_id: str) -> None:
        self._client, self._plan, self._uid, self._experiment_id = client, plan, uid, experiment_id
        self.run_id: str | None = None

    def open(self, run: Any | None, started_at: float | None, *, keep_result: bool = False) -> None:
        """Resume the study's run, or create it; and write its notes, its saved views and its files.

        Args:
            run: MLflow's run of the study, if it has one.
            started_at: When the study started, in seconds since 1970.
            keep_result: Whether the notes go on to show the result that they have. A launch publishes a new one.
        """
        client, files = self._client, set()
        if run is None:
            run = client.create_run(
                self._experiment_id,
                start_time=milliseconds(started_at),
                run_name=self._plan.name,
                tags={**tags.common(self._plan.experiment, self._uid), tags.ROLE: "study", tags.STATE: "running"},
            )
        else:
            files = {file.path for file in client.list_artifacts(run.info.run_id)}
            self._resume(run.info.run_id, "running")
        self.run_id = run_id = str(run.info.run_id)
        client.log_inputs(run_id, [as_input(dataset_of(self._plan.config({}), self._plan.choices.get("data")))])
        note = pages.note(self._plan, self._uid, self._experiment_id, run_id)
        client.set_tag(run_id, tags.NOTE, _with_old_result(note, run) if keep_result and run is not None else note)
        client.set_experiment_tag(self._experiment_id, tags.NOTE, note)
        for tag, view in pages.views(self._plan, self._uid).items():
            client.set_experiment_tag(self._experiment_id, tag, view)
        for file, text in study_files(self._plan).items():
            if file not in files or file != "environment.json":  # the environment of the first start stays
                client.log_text(run_id, text, file)

    def open_for_confirmation(self, search_uid: str) -> None:
        """Resume the run of the search that this study confirms, if MLflow has it."""
        self.run_id = find_parent(self._client, self._experiment_id, search_uid)
        if self.run_id is not None:
            self._resume(self.run_id, "confirming")

    def _resume(self, run_id: str, state: str) -> None:
        self._client.update_run(run_id, status="RUNNING")
        self._client.set_tag(run_id, tags.STATE, state)

    def write_best(self, best: TrialRecord, plots: Path | None, step: int) -> None:
        """Write the best trial of the study.

        Args:
            plots: The folder that holds the plots of the best trial.
            step: A step greater than that of any earlier call. MLflow shows the value of the greatest step.
        """
        if self.run_id is None:
            return
        if plots is not None:
            log_plots(self._client, self.run_id, plots)
        if best.objective is not None:
            objective = rounded(best.objective)
            if self._client.get_run(self.run_id).data.metrics.get(names.BEST_OBJECTIVE) != objective:
                self._client.log_metric(self.run_id, names.BEST_OBJECTIVE, objective, step=step)
            self._client.set_tag(self.run_id, tags.BEST, trial_name(best.number))

    def clear_best(self) -> None:
        """Forget the best trial of a study that has none any more. MLflow deletes no metric, so its value stays."""
        if self.run_id is not None and tags.BEST in self._client.get_run(self.run_id).data.tags:
            self._client.delete_tag(self.run_id, tags.BEST)

    def end(self, status: str, records: Iterable[TrialRecord]) -> None:
        """End the run.

        Args:
            status: MLflow's FINISHED, FAILED or KILLED.
            records: The known trials of the study and of its confirmation. Their work is the duration of the run. It
                never shrinks, because a process may not know every trial.
        """
        if self.run_id is not None:
            self._client.set_tag(self.run_id, tags.STATE, _STATES[status])
            info = self._client.get_run(self.run_id).info
            end_ms = milliseconds(end_of_study(info.start_time / 1000, records))
            self._client.set_terminated(self.run_id, status, max(end_ms, info.end_time or 0))
