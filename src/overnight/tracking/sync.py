"""The mirror: one thread writes, some seconds' worth at a time, and works by level rather than by event.

Given a trial's record it writes whatever MLflow does not hold yet, and ends the run last of all. So a run that is ended
is whole, and going on, healing and plain progress are one and the same thing.
"""

from __future__ import annotations

import contextlib
import getpass
import math
import os
import sys
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from overnight.config import credentials
from overnight.config.paths import trial_name
from overnight.config.trees import config_text
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, config_of, title
from overnight.study.storage.database import Unreachable
from overnight.study.storage.leased import Ownership, Peers
from overnight.tracking import pages
from overnight.tracking.provenance import study_files
from overnight.tracking.reconcile import STATUS, Run, final_objective, logged_steps, params_of, reconcile
from overnight.tracking.store import client, in_short, parent_of

WRITE_EVERY_S = 1.0
_ASKED_AGAIN_S = 2.0  # an answer that took longer may be to a second question
# Of a running trial, as each write takes as much CPU as a small network's twenty steps; at a server it takes as much
# there, for everybody.
PROGRESS_EVERY_S, PROGRESS_TO_SERVER_EVERY_S = 3.0, 10.0
TRY_AGAIN_S = 5.0  # after it could not be written
TRIES_AT_THE_END, TRIES_OF_MANY = 3, 60  # a second apart at least, and as long as MLflow's client takes to give up
# MLflow's limits for one log_batch and for one tag.
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100
_TAG_CHARS = 7900  # of 8000: MLflow would cut off the end, where a traceback says what happened


class MlflowSync:
    """Mirrors one study into MLflow from a thread of its own; `submit` and `close` are for the supervisor.

    deep: have the survey at the start look at every step. search_uid: of the search that this study confirms; its runs
    then lie below that one's parent. company: where others mirror the study too: each writes the runs of the trials
    that are its own.
    """

    def __init__(
        self,
        plan: Plan,
        uid: str,
        *,
        with_parent: bool = True,
        deep: bool = False,
        search_uid: str | None = None,
        peers: Peers | None = None,
    ) -> None:
        self._plan, self._uid, self._with_parent, self._deep = plan, uid, with_parent, deep
        self._search_uid, self._peers = search_uid, peers
        self._unsure: set[int] = set()  # trials whose runs others may have written to
        self._synced: set[int] = set()
        self._pending: dict[int, TrialRecord] = {}
        self._pictures: dict[int, Path] = {}  # trial -> the folder that holds its pictures
        self._unshown: set[int] = set()
        self._stored_records: list[TrialRecord] = []
        self._lock, self._wake, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._ending: str | None = None
        self._weights: str | None = None
        self._best: TrialRecord | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._runs: dict[int, Run] = {}
        self._written_at: dict[int, float] = {}
        self.experiment_id = ""
        self.parent_run_id: str | None = None
        self.error: str | None = None
        self.ready = False  # experiment and parent run are known

    # For the supervisor

    def start(self, records: Iterable[TrialRecord]) -> None:
        """Open the store and bring it up to `records`, all that the ledger holds."""
        self._stored_records = list(records)
        self._thread.start()

    def submit(self, record: TrialRecord) -> None:
        """Have MLflow show the trial as it stands now; returns at once."""
        with self._lock:
            self._pending[record.number] = record
            self._synced.discard(record.number)
        self._wake.set()

    def recheck(self, number: int) -> None:
        """Somebody else may have written a trial's run since this last looked."""
        with self._lock:
            self._unsure.add(number)

    def take_synced(self) -> set[int]:
        """The trials that have ended, or wait, and whose runs say so by now; each told once."""
        with self._lock:
            synced, self._synced = self._synced, set()
            return synced

    def attach_plots(self, number: int, folder: Path) -> None:
        """Have MLflow hold a trial's pictures, the folder's PNGs and their words; returns at once."""
        with self._lock:
            self._pictures[number] = folder
            self._unshown.add(number)
        self._wake.set()

    def close(
        self,
        ending: str,
        best: TrialRecord | None,
        weights: str | None,
        within_s: float | None = None,
        meanwhile: Callable[[], bool] = lambda: True,
    ) -> None:
        """Write what is left and end the parent run as `ending`, FINISHED, FAILED or KILLED; waits for it.

        weights: the file of the best trial's weights, kept with its run. within_s: give up then. meanwhile: called
        every second; False to give up. `error` says what could not be written; the ledger has it all, and the next
        start writes it.
        """
        self._best, self._weights, self._ending = best, weights, ending
        self._closing.set()
        self._wake.set()
        until = time.monotonic() + (math.inf if within_s is None else max(within_s, 0.0))
        while self._thread.is_alive() and time.monotonic() < until and meanwhile():
            self._thread.join(min(1.0, until - time.monotonic()))
        if self._thread.is_alive():
            self.error = self.error or "there was no time left"

    # In the thread

    def _work(self) -> None:
        tries = 0
        opened = False
        while True:
            self._wake.wait(WRITE_EVERY_S if self._pending else None)
            self._wake.clear()
            ending = self._ending
            try:
                if not opened:
                    self._open()
                    opened = True
                self._write_pending(ending is not None)
                self._write_pictures()
                if ending is not None:
                    self._finish(ending)
                    self.error = None
                    return
                self.error = None
            except Exception as error:  # MLflow's, SQLAlchemy's, the network's: all are waited out alike
                self.error = in_short(error)
                tries += ending is not None
                # Who works on alone writes it at the next start; a study of many may have none.
                if tries >= (TRIES_AT_THE_END if self._peers is None else TRIES_OF_MANY):
                    print(credentials.redacted(traceback.format_exc()), file=sys.stderr)
                    return
                self._wake.set()
            if self._ending is not None and self.error:
                time.sleep(WRITE_EVERY_S)
            else:
                self._closing.wait(TRY_AGAIN_S if self.error else WRITE_EVERY_S)

    def _open(self) -> None:
        self._client = client(self._plan.settings.location)
        with self._peers.lock("mlflow") if self._peers is not None else contextlib.nullcontext():
            self._find_or_create()

    def _find_or_create(self) -> None:
        self.experiment_id = self._experiment()
        if self._search_uid is not None:
            self._open_below(self._search_uid)
        found = reconcile(
            self._client,
            self.experiment_id,
            self._uid,
            self._plan,
            self._stored_records,
            deep=self._deep,
            below=self.parent_run_id,
        )
        for run_id in found.strays if self._peers is None else ():  # others make runs that this one knows nothing of
            self._client.delete_run(run_id)
        self._runs = found.runs
        if self._search_uid is None and self._with_parent:
            self._open_parent(found.parent)
        self.ready = True
        with self._lock:
            for record in self._stored_records:
                if record.number in found.lacking and self._ownership(record.number) != "foreign":
                    self._pending.setdefault(record.number, record)
        self._stored_records = []

    def _experiment(self) -> str:
        name, study = self._plan.experiment, self._plan.settings.study
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        root = self._plan.settings.location.artifact_root  # a server keeps artifacts where it likes
        return str(
            self._client.create_experiment(
                name,
                artifact_location=f"{root}/{urllib.parse.quote(name)}" if root is not None else None,
                tags={
                    "mlflow.experiment.primaryMetric.name": study.metric,
                    "mlflow.experiment.primaryMetric.greaterIsBetter": str(study.direction == "maximize"),
                    "mlflow.experimentKind": "custom_model_development",  # not one of language models
                },
            )
        )

    def _open_parent(self, run: Any) -> None:
        plan, held = self._plan, set()
        if run is None:
            run = self._client.create_run(
                self.experiment_id,
                start_time=_ms(min((r.started_at for r in self._stored_records if r.started_at), default=None)),
                run_name=plan.name,
                tags={**self._base_tags(), "overnight.role": "study", "overnight.state": "running"},
            )
        else:
            held = {file.path for file in self._client.list_artifacts(run.info.run_id)}
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._client.set_tag(run.info.run_id, "overnight.state", "running")
        self.parent_run_id = str(run.info.run_id)
        note = pages.note(plan, self._uid, self.experiment_id, self.parent_run_id)
        self._client.set_tag(self.parent_run_id, "mlflow.note.content", note)
        self._client.set_experiment_tag(self.experiment_id, "mlflow.note.content", note)
        for tag, view in pages.views(plan, self._uid, self.parent_run_id).items():
            self._client.set_experiment_tag(self.experiment_id, tag, view)
        for file, text in study_files(plan).items():
            if file not in held or file != "environment.json":  # where it began stays
                self._client.log_text(self.parent_run_id, text, file)

    def _open_below(self, search_uid: str) -> None:
        """Find the search's parent run, and have it say that it is being confirmed."""
        self.parent_run_id = parent_of(self._client, self.experiment_id, search_uid)
        if self.parent_run_id is not None:
            self._client.update_run(self.parent_run_id, status="RUNNING")
            self._client.set_tag(self.parent_run_id, "overnight.state", "confirming")

    @property
    def _number_tag(self) -> str:
        """Of a run's number in its ledger study. Whoever counts a search's trials must not count confirmations."""
        return "overnight.trial" if self._search_uid is None else "overnight.confirmation"

    def _base_tags(self) -> dict[str, str]:
        return {
            "overnight.study": self._plan.experiment,
            "overnight.uid": self._uid,
            "mlflow.user": _user(),
            "mlflow.source.name": "overnight",
            "mlflow.source.type": "LOCAL",
        }

    def _write_pending(self, everything: bool) -> None:
        """Write what begins or ends a trial, and of the running ones what was not written for some seconds."""
        while (record := self._next(everything)) is not None:
            number, mine = record.number, self._ownership(record.number) == "owned"
            if mine:
                self._write(record)
            self._written_at[number] = time.monotonic()
            with self._lock:
                if self._pending.get(number) is record:  # otherwise a newer one came in while this was written
                    del self._pending[number]
                    if mine and record.state != "running":
                        self._synced.add(number)
        if everything and self._pending:
            raise Unreachable("the ledger is away, and with it the word on whose trials these are")

    def _next(self, everything: bool) -> TrialRecord | None:
        at_server = self._plan.settings.location.server is not None
        since = time.monotonic() - (PROGRESS_TO_SERVER_EVERY_S if at_server else PROGRESS_EVERY_S)
        with self._lock:
            for record in self._pending.values():
                if self._ownership(record.number) == "uncertain":
                    continue
                if everything or record.state != "running" or self._written_at.get(record.number, since) <= since:
                    return record
        return None

    def _ownership(self, number: int) -> Ownership:
        """Whose a trial's run is to write: what others do with theirs, they say themselves."""
        return "owned" if self._peers is None else self._peers.ownership(number)

    def _write(self, record: TrialRecord) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run = self._run_of(record)
        if not run.configured:
            text = config_text(config_of(record, self._plan))
            self._client.log_text(run.run_id, text, "config.yaml")
            run.configured = True
        if run.reason is not None and record.reason is None:  # it is not bad any more
            held = self._client.get_run(run.run_id).data.tags
            for tag in ("overnight.reason", "overnight.notes"):
                if tag in held:
                    self._client.delete_tag(run.run_id, tag)
            run.reason = None
        if run.steps is None:
            run.steps = logged_steps(self._client, run.run_id, record)
        if run.status != "RUNNING" and record.state == "running":
            self._client.update_run(run.run_id, status="RUNNING")
            run.status = "RUNNING"
        metrics = [
            Metric(name, value, round(e.at * 1000), e.epoch)
            for e in record.history
            for name, value in e.metrics.items()
            if math.isfinite(value) and e.epoch not in run.steps.get(name, ())
        ]
        objective = final_objective(record)
        if objective is not None and "objective" not in run.steps:
            metrics.append(Metric("objective", objective, _ms(record.ended_at), record.history[-1].epoch))
        wanted = params_of(record, self._plan)
        params = [Param(name, text) for name, text in wanted.items() if name not in run.params]
        tags = {
            "overnight.state": record.state,
            "overnight.reason": record.reason,
            "overnight.notes": _kept("; ".join(record.notes)),
            "mlflow.parentRunId": self.parent_run_id,
        }
        for start in range(0, max(len(metrics), 1), _BATCH_METRICS):
            part = metrics[start : start + _BATCH_METRICS]
            self._client.log_batch(
                run.run_id,
                part,
                params[:_BATCH_PARAMS] if start == 0 else [],
                [RunTag(k, v) for k, v in tags.items() if v] if start == 0 else [],
            )
            for metric in part:
                run.steps.setdefault(metric.key, set()).add(metric.step)
        for start in range(_BATCH_PARAMS, len(params), _BATCH_PARAMS):
            self._client.log_batch(run.run_id, params=params[start : start + _BATCH_PARAMS])
        run.params.update(wanted)
        if record.state == "failed" and record.detail:
            self._client.log_text(run.run_id, record.detail, "error.txt")
            note = f"{record.reason}\n```\n{_kept(record.detail)}\n```"
            self._client.set_tag(run.run_id, "mlflow.note.content", note)
        status = STATUS[record.state]
        if run.status != status:
            self._client.set_terminated(run.run_id, status, _ms(record.ended_at))
            run.status = status

    def _write_pictures(self) -> None:
        with self._lock:
            numbers = sorted(self._unshown & self._runs.keys())
        for number in numbers:
            self._hang(self._runs[number].run_id, self._pictures[number])
            with self._lock:
                self._unshown.discard(number)

    def _hang(self, run_id: str, folder: Path) -> None:
        """Log what a run lacks of a folder's pictures; a file of another size is another picture."""
        held = {a.path.rpartition("/")[2]: a.file_size for a in self._client.list_artifacts(run_id, "pictures")}
        for file in sorted((*folder.glob("*.png"), *folder.glob("*.md"))):
            if held.get(file.name) != file.stat().st_size:
                self._client.log_artifact(run_id, str(file), "pictures")

    def _run_of(self, record: TrialRecord) -> Run:
        with self._lock:
            if record.number in self._unsure:
                self._runs.pop(record.number, None)
        run = self._runs.get(record.number) or self._found(record) or self._create(record)
        with self._lock:
            self._unsure.discard(record.number)
        return run

    def _found(self, record: TrialRecord) -> Run | None:
        """The run of a trial that was another process's, or of one whose creation may have been answered twice; where
        there are several, the first."""
        if record.number not in self._unsure:
            return None
        asked = f"tags.`overnight.uid` = '{self._uid}' and tags.`{self._number_tag}` = '{record.number}'"
        found = self._client.search_runs([self.experiment_id], asked, order_by=["attributes.start_time ASC"])
        for stray in found[1:]:
            self._client.delete_run(stray.info.run_id)
        if not found:
            return None
        first = found[0]
        tags = first.data.tags
        run = Run(
            first.info.run_id, first.info.status, None, set(first.data.params), reason=tags.get("overnight.reason")
        )
        self._runs[record.number] = run
        return run

    def _create(self, record: TrialRecord) -> Run:
        tags = {**self._base_tags(), "overnight.role": "trial", self._number_tag: str(record.number)}
        if record.confirms is not None:
            tags["overnight.role"] = "confirmation"
            tags["overnight.confirms"] = trial_name(record.confirms.trial)
            tags["overnight.seed"] = str(record.confirms.seed)
        self._unsure.add(record.number)  # until it is answered: a server that restarts may do it, and be asked again
        began = time.monotonic()
        created = self._client.create_run(
            self.experiment_id, start_time=_ms(record.started_at), tags=tags, run_name=title(record)
        )
        run = self._runs[record.number] = Run(created.info.run_id, "RUNNING", steps={})
        if time.monotonic() - began > _ASKED_AGAIN_S:  # MLflow's client asks again by itself
            return self._found(record) or run
        return run

    def _finish(self, ending: str) -> None:
        best = self._best if self._search_uid is None else None
        if best is not None and best.number in self._runs and self._weights is not None:
            self._client.log_artifact(self._runs[best.number].run_id, self._weights, "weights")
        if self.parent_run_id is None:
            return
        if best is not None and best.number in self._pictures:
            self._hang(self.parent_run_id, self._pictures[best.number])
        if best is not None and best.objective is not None:
            if self._client.get_run(self.parent_run_id).data.metrics.get("objective") != best.objective:
                # MLflow shows the value of the greatest step, and trials don't become the best in order.
                self._client.log_metric(self.parent_run_id, "objective", best.objective, step=len(self._runs))
            self._client.set_tag(self.parent_run_id, "overnight.best", trial_name(best.number))
        if ending == "KILLED" and self._peers is not None and self._peers.count_peers():
            return  # it is this process that stopped, not the study
        state = {"FINISHED": "done", "FAILED": "failed", "KILLED": "paused"}[ending]
        self._client.set_tag(self.parent_run_id, "overnight.state", state)
        self._client.set_terminated(self.parent_run_id, ending)


def _kept(text: str) -> str:
    """As much of a text as a tag takes; a PostgreSQL takes no NUL, which people's errors may hold."""
    return text[-_TAG_CHARS:].replace("\0", "\N{REPLACEMENT CHARACTER}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user may have no name
        return str(os.getuid())


def _ms(seconds: float | None) -> int:
    return round((seconds if seconds is not None else time.time()) * 1000)
