"""MLflow mirrors the ledger: the only room that imports it.

One thread writes, a second's worth at a time, and works by level rather than by event: given a trial's record it
writes whatever MLflow does not hold yet, and ends the run last of all. So a run that is ended is whole, and going on,
healing and plain progress are one and the same thing.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import traceback
import urllib.parse
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight import settings as settings_module
from overnight.messages import Exported
from overnight.paths import trial_name
from overnight.plan import Plan
from overnight.records import TrialRecord, config_of, title
from overnight.settings import Place
from overnight.storage import create_whole
from overnight.study import StudyView
from overnight.survey import STATUS, STUDY_FILES, Run, final_objective, logged_steps, study_runs, survey

if TYPE_CHECKING:
    from mlflow import MlflowClient

WRITE_EVERY_S = 1.0
TRY_AGAIN_S = 5.0  # after it could not be written
TRIES_AT_THE_END = 3
# MLflow's limits for one log_batch, for one param value and for one tag.
_BATCH_METRICS, _BATCH_PARAMS, _PARAM_CHARS = 1000, 100, 6000
_TAG_CHARS = 7900  # of 8000: MLflow would cut off the end, where a traceback says what happened
_PACKAGES = (
    "overnight",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "optuna",
    "mlflow",
    "hydra-core",
    "numpy",
    "scikit-learn",
)


class Tracker:
    """Mirrors one study into MLflow from a thread of its own; `mirror` and `close` are for the supervisor.

    deep: have the survey at the start look at every step. search_uid: of the search that this study confirms; its runs
    then lie below that one's parent.
    """

    def __init__(
        self, plan: Plan, uid: str, *, with_parent: bool = True, deep: bool = False, search_uid: str | None = None
    ) -> None:
        self._plan, self._uid, self._with_parent, self._deep = plan, uid, with_parent, deep
        self._search_uid = search_uid
        self._pending: dict[int, TrialRecord] = {}
        self._pictures: dict[int, Path] = {}  # trial -> the folder that holds its pictures
        self._unshown: set[int] = set()
        self._ledger: list[TrialRecord] = []
        self._lock, self._wake, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._ending: str | None = None
        self._weights: str | None = None
        self._best: TrialRecord | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._runs: dict[int, Run] = {}
        self.experiment_id = ""
        self.parent_run_id: str | None = None
        self.trouble: str | None = None
        self.ready = False  # experiment and parent run are known

    # For the supervisor

    def start(self, records: Iterable[TrialRecord]) -> None:
        """Open the store and bring it up to `records`, all that the ledger holds."""
        self._ledger = list(records)
        self._thread.start()

    def mirror(self, record: TrialRecord) -> None:
        """Have MLflow show the trial as it stands now; returns at once."""
        with self._lock:
            self._pending[record.number] = record
        self._wake.set()

    def show(self, number: int, folder: Path) -> None:
        """Have MLflow hold a trial's pictures, the folder's PNGs and their words; returns at once."""
        with self._lock:
            self._pictures[number] = folder
            self._unshown.add(number)
        self._wake.set()

    def close(self, ending: str, best: TrialRecord | None, weights: str | None, within_s: float | None = None) -> None:
        """Write what is left and end the parent run as `ending`, FINISHED, FAILED or KILLED; waits for it.

        weights: the file of the best trial's weights, kept with its run. within_s: give up then. `trouble` says what
        could not be written; the ledger has it all, and the next start writes it.
        """
        self._best, self._weights, self._ending = best, weights, ending
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(within_s if within_s is None else max(within_s, 0.0))
        if self._thread.is_alive():
            self.trouble = self.trouble or "there was no time left"

    # In the thread

    def _work(self) -> None:
        tries = 0
        opened = False
        while True:
            self._wake.wait()
            self._wake.clear()
            ending = self._ending
            try:
                if not opened:
                    self._open()
                    opened = True
                self._write_pending()
                self._write_pictures()
                if ending is not None:
                    self._finish(ending)
                    self.trouble = None
                    return
                self.trouble = None
            except Exception as error:  # MLflow's, SQLAlchemy's, the network's: all are waited out alike
                self.trouble = in_short(error)
                tries += ending is not None
                if tries >= TRIES_AT_THE_END:
                    print(traceback.format_exc(), file=sys.stderr)
                    return
                self._wake.set()
            if self._ending is not None and self.trouble:
                time.sleep(WRITE_EVERY_S)
            else:
                self._closing.wait(TRY_AGAIN_S if self.trouble else WRITE_EVERY_S)

    def _open(self) -> None:
        self._client = client(self._plan.settings.place)
        self.experiment_id = self._experiment()
        if self._search_uid is not None:
            self._open_below(self._search_uid)
        found = survey(
            self._client, self.experiment_id, self._uid, self._ledger, deep=self._deep, below=self.parent_run_id
        )
        for run_id in found.strays:
            self._client.delete_run(run_id)
        self._runs = found.runs
        if self._search_uid is None and self._with_parent:
            self._open_parent(found.parent)
        self.ready = True
        with self._lock:
            for record in self._ledger:
                if record.number in found.lacking:
                    self._pending.setdefault(record.number, record)
        self._ledger = []

    def _experiment(self) -> str:
        name, study = self._plan.experiment, self._plan.settings.study
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        return str(
            self._client.create_experiment(
                name,
                artifact_location=f"{self._plan.settings.place.artifact_root}/{urllib.parse.quote(name)}",
                tags={
                    "mlflow.experiment.primaryMetric.name": study.metric,
                    "mlflow.experiment.primaryMetric.greaterIsBetter": str(study.direction == "maximize"),
                },
            )
        )

    def _open_parent(self, run: Any) -> None:
        plan, held = self._plan, set()
        if run is None:
            run = self._client.create_run(
                self.experiment_id,
                start_time=_ms(min((r.started_at for r in self._ledger if r.started_at), default=None)),
                run_name=plan.name,
                tags={**self._base_tags(), "overnight.role": "study", "overnight.state": "running"},
            )
        else:
            held = {file.path for file in self._client.list_artifacts(run.info.run_id)}
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._client.set_tag(run.info.run_id, "overnight.state", "running")
        self.parent_run_id = str(run.info.run_id)
        note = (
            f"A study of {plan.settings.study.metric}, to {plan.settings.study.direction}: "
            f"[its trials, best first]({self._trials_page()})"
        )
        self._client.set_tag(self.parent_run_id, "mlflow.note.content", note)
        self._client.set_experiment_tag(self.experiment_id, "mlflow.note.content", note)
        for file, text in _study_files(plan).items():
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

    def _trials_page(self) -> str:
        """The flat, sorted list: MLflow nests the trials below their parent, closed, unless it sorts by a metric."""
        query = {
            "workflowType": "machine_learning",
            # Less the confirmations, which lie below the same parent.
            "searchFilter": f"tags.`overnight.role` = 'trial' AND tags.mlflow.parentRunId = '{self.parent_run_id}'",
            "orderByKey": "metrics.`objective`",
            "orderByAsc": str(self._plan.settings.study.direction == "minimize").lower(),
        }
        return f"#/experiments/{self.experiment_id}/runs?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"

    def _base_tags(self) -> dict[str, str]:
        return {
            "overnight.study": self._plan.experiment,
            "overnight.uid": self._uid,
            "mlflow.user": _user(),
            "mlflow.source.name": "overnight",
            "mlflow.source.type": "LOCAL",
        }

    def _write_pending(self) -> None:
        while True:
            with self._lock:
                if not self._pending:
                    return
                number, record = next(iter(self._pending.items()))
            self._write(record)
            with self._lock:
                if self._pending.get(number) is record:  # otherwise a newer one came in while this was written
                    del self._pending[number]

    def _write(self, record: TrialRecord) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run = self._runs.get(record.number) or self._create(record)
        if not run.configured:
            text = settings_module.config_text(config_of(record, self._plan))
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
        params = [Param(k, str(v)[:_PARAM_CHARS]) for k, v in record.params.items() if k not in run.params]
        tags = {
            "overnight.state": record.state,
            "overnight.reason": record.reason,
            "overnight.notes": "; ".join(record.notes)[-_TAG_CHARS:],
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
        run.params.update(record.params)
        if record.state == "failed" and record.detail:
            self._client.log_text(run.run_id, record.detail, "error.txt")
            note = f"{record.reason}\n```\n{record.detail[-_TAG_CHARS:]}\n```"
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

    def _create(self, record: TrialRecord) -> Run:
        tags = {**self._base_tags(), "overnight.role": "trial", self._number_tag: str(record.number)}
        if record.confirms is not None:
            tags["overnight.role"] = "confirmation"
            tags["overnight.confirms"] = trial_name(record.confirms.trial)
            tags["overnight.seed"] = str(record.confirms.seed)
        created = self._client.create_run(
            self.experiment_id, start_time=_ms(record.started_at), tags=tags, run_name=title(record)
        )
        run = self._runs[record.number] = Run(created.info.run_id, "RUNNING", steps={})
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
        state = {"FINISHED": "done", "FAILED": "failed", "KILLED": "paused"}[ending]
        self._client.set_tag(self.parent_run_id, "overnight.state", state)
        self._client.set_terminated(self.parent_run_id, ending)


@dataclass(frozen=True)
class Answer:
    """What a study has come to, for its parent run.

    winner: number of the confirmed trial; mean and half_width: of its interval. confirmation: uid of the ledger study
    that confirmed it; tests: number of a confirmation -> metrics on the test set. files: for the parent run.
    """

    sentence: str
    winner: int | None = None
    mean: float | None = None
    half_width: float | None = None
    confirmation: str | None = None
    tests: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def publish(place: Place, experiment_name: str, uid: str, answer: Answer) -> str | None:
    """Have MLflow show an answer, as often as this is called; what kept it from that, or None."""
    try:
        mlflow = client(place)
        experiment = mlflow.get_experiment_by_name(experiment_name)
        parent = parent_of(mlflow, experiment.experiment_id, uid) if experiment is not None else None
        if experiment is not None and parent is not None:
            _show_tests(mlflow, experiment.experiment_id, answer)
            _show_answer(mlflow, parent, answer)
    except Exception as error:  # MLflow's, SQLAlchemy's, the network's: the next start says it again
        return in_short(error)
    return None


def _show_tests(client: MlflowClient, experiment_id: str, answer: Answer) -> None:
    """Log test metrics on the runs that they are of, each once."""
    for run in study_runs(client, experiment_id, answer.confirmation) if answer.confirmation is not None else ():
        metrics = answer.tests.get(int(run.data.tags.get("overnight.confirmation", -1)), {})
        for name, value in metrics.items():
            if math.isfinite(value) and name not in run.data.metrics:
                client.log_metric(run.info.run_id, name, value)


def _show_answer(client: MlflowClient, parent: str, answer: Answer) -> None:
    run = client.get_run(parent)
    for name, value in (("confirmed/mean", answer.mean), ("confirmed/half_width", answer.half_width)):
        if value is not None and run.data.metrics.get(name) != value:
            client.log_metric(parent, name, value)
    client.set_tag(parent, "overnight.answer", answer.sentence)
    if answer.winner is not None:
        client.set_tag(parent, "overnight.winner", trial_name(answer.winner))
    note = run.data.tags.get("mlflow.note.content", "")
    client.set_tag(parent, "mlflow.note.content", f"**{answer.sentence}**\n\n{note.rpartition(chr(10))[2]}")
    for file in answer.files:
        client.log_artifact(parent, file)


def runs_of(place: Place, trials: Iterable[tuple[str, int | None]]) -> list[str]:
    """MLflow's ids of these trials' runs, each given as its ledger's uid and its number; fewer where it lacks some."""
    if place.given_tracking_uri is None and not place.where.tracking_store.exists():
        return []
    mlflow, found = client(place), []
    experiments = [e.experiment_id for e in mlflow.search_experiments()]
    for uid, number in trials:
        wanted = f"tags.`overnight.uid` = '{uid}' and tags.`overnight.trial` = '{number}'"
        found += [str(run.info.run_id) for run in mlflow.search_runs(experiments, wanted, max_results=1)]
    return found


# A model --------------------------------------------------------------------------------------------------------------


def write_model(folder: Path, made: Exported, logged: Any, run_id: str) -> None:
    """A model as MLflow's flavour for torch lays one out, written without torch, which this side never imports.

    The network is torch.export's pt2 file, of which MLflow loads only those that hold no pickle.
    """
    import mlflow
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of MLflow's, at MLflow's own type hints
        from mlflow.models import Model, ModelSignature
        from mlflow.models.utils import _save_example
        from mlflow.pyfunc import add_to_model
        from mlflow.types import Schema, TensorSpec

    assert made.file is not None, "there is something to register"
    pair = [np.array(v, dtype=d) for v, d in zip((made.example, made.answers), made.dtypes, strict=True)]
    rows, answers = (Schema([TensorSpec(a.dtype, (-1, *a.shape[1:]))]) for a in pair)
    model = Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
    model.signature = ModelSignature(rows, answers)
    model.metadata = {"rows": made.takes, "answers": made.says}
    _save_example(model, pair[0], str(folder))
    (folder / "data").mkdir()
    shutil.copy(made.file, folder / "data" / "model.pt2")
    model.add_flavor("pytorch", model_data="data", pytorch_version=made.torch, code=None)
    add_to_model(
        model, loader_module="mlflow.pytorch", data="data", python_env="python_env.yaml", model_config={"device": None}
    )
    model.save(str(folder / "MLmodel"))
    requirements = [
        f"mlflow=={mlflow.__version__}",
        f"torch=={made.torch.partition('+')[0]}",
        f"numpy=={np.__version__}",
    ]
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    wants = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(json.dumps(wants))  # which is YAML too


# The store ------------------------------------------------------------------------------------------------------------


def quiet_environment() -> dict[str, str]:
    """What keeps MLflow from phoning home and from warning of its own plans."""
    return {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}


def exists(place: Place) -> bool:
    """Whether there is a store to ask, or a server that would have one."""
    return place.given_tracking_uri is not None or place.where.tracking_store.exists()


def client(place: Place) -> MlflowClient:
    """A client on the tracking store; the embedded one is created first where there is none."""
    for name, value in quiet_environment().items():
        os.environ.setdefault(name, value)
    if not exists(place):
        _create_store(place)
    from mlflow import MlflowClient

    # Its store logs a page of traceback at every try, which a full disk or a server that restarts makes many.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=place.tracking_uri)


def _create_store(place: Place) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def create(fresh: Path) -> None:
        store = SqlAlchemyStore(f"sqlite:///{fresh}", place.artifact_root)
        store.engine.dispose()
        SqlAlchemyStore._engine_map.pop(store.db_uri, None)

    place.where.root.mkdir(parents=True, exist_ok=True)
    create_whole(place.where.tracking_store, create)


def parent_of(client: MlflowClient, experiment_id: str, uid: str) -> str | None:
    """The id of a study's parent run."""
    for run in study_runs(client, experiment_id, uid):
        if run.data.tags.get("overnight.role") == "study":
            return str(run.info.run_id)
    return None


def in_short(error: BaseException) -> str:
    """What is at the bottom of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user may have no name
        return str(os.getuid())


def _ms(seconds: float | None) -> int:
    return round((seconds if seconds is not None else time.time()) * 1000)


def _study_files(plan: Plan) -> dict[str, str]:
    """What the parent run keeps: the configuration as written, the search space, and where it all ran."""
    written = {**plan.config({}), **settings_module.to_json(plan.settings)}
    texts = (
        settings_module.config_text(written),
        settings_module.config_text(plan.space.describe()),
        json.dumps(_environment(), indent=2),
    )
    return dict(zip(STUDY_FILES, texts, strict=True))


def _environment() -> dict[str, Any]:
    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "packages": {p: version(p) for p in _PACKAGES},
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "host": platform.node(), "cores": os.cpu_count()},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": sys.argv,
    }


def _git(*arguments: str) -> str | None:
    """What git says of the folder we were started in; None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# The pages ------------------------------------------------------------------------------------------------------------


def ui_command(place: Place, port: int) -> tuple[list[str], Mapping[str, str]]:
    """How to serve MLflow's pages on 127.0.0.1: arguments, and the environment that goes with them."""
    client(place)  # creates the embedded store where there is none yet
    root = place.artifact_root
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        place.tracking_uri,
        "--default-artifact-root",
        root,
        "--artifacts-destination",
        root,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "_MLFLOW_"))}
    return command, {
        **kept,
        **quiet_environment(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }


def page_of(view: StudyView | None, address: str) -> str:
    """The page of a study's runs; without the last part MLflow would open its view for language models."""
    if view is None or view.experiment_id is None:
        return address
    return f"{address}/#/experiments/{view.experiment_id}/runs?workflowType=machine_learning"
