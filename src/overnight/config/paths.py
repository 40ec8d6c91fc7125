"""All paths: below a home, of the stores, and of conf/."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from overnight.config import credentials, literal

Folder = str | Path | None  # as a caller names one
# Letters of all scripts stay as they are, and so do the surrogates that stand for undecodable bytes of a file name.
_SPECIAL_IN_URL = re.compile(r"[^\w/.~+\ud800-\udfff-]")


def conf_dir() -> Path:
    """The folder of the configs that come with overnight: in the wheel, or beside src/ in a checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "conf"


def sqlite_url(path: Path) -> str:
    """The address of a SQLite file, for SQLAlchemy, Optuna and MLflow. Every such address is built here.

    Characters with a meaning in an address are percent-encoded. The address of such a path names the driver too:
    MLflow takes the rest of `sqlite:///...` for a path, without decoding it, and would create that folder.
    """
    encoded = _SPECIAL_IN_URL.sub(lambda match: quote(match[0]), str(path))
    return f"sqlite:///{path}" if encoded == str(path) else f"sqlite+pysqlite:///{encoded}"


def trial_name(number: int) -> str:
    """The name of a trial in MLflow, on disk and on the screen: trial-0007."""
    return f"trial-{number:04d}"


@dataclass(frozen=True)
class HomePaths:
    """Paths below a home, the only folder that overnight writes to. Asking for a path creates nothing."""

    root: Path

    @property
    def optuna_db(self) -> Path:
        return self.root / "optuna.db"

    @property
    def mlflow_db(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def cache(self) -> Path:
        """Decoded data sets, which every trial maps into memory."""
        return self.root / "cache"

    @property
    def locks(self) -> Path:
        """The lock of each study, and a file that names the process that holds it."""
        return self.root / "locks"

    @property
    def data_locks(self) -> Path:
        """The locks of prepare_data, one for each class."""
        return self.locks / "data"

    @property
    def set_aside(self) -> Path:
        """Files that no study knows. They are moved here, not deleted."""
        return self.root / "set-aside"

    @property
    def winners(self) -> Path:
        """A config folder that every command searches: each study writes the config of its winner there."""
        return self.root / "winners"

    @property
    def ui_server(self) -> Path:
        """Names the process and the port of MLflow's server while `overnight ui` runs it."""
        return self.locks / "ui-server.json"

    def study(self, name: str) -> StudyPaths:
        return StudyPaths(self.root, name)


@dataclass(frozen=True)
class StudyPaths:
    """Paths of one study below its home. Asking for a path creates nothing."""

    root: Path
    name: str

    @property
    def winner_config(self) -> Path:
        """The config of the winner, selected with +experiment=best_STUDY."""
        return HomePaths(self.root).winners / "experiment" / f"best_{self.name}.yaml"

    @property
    def report(self) -> Path:
        return self.root / "reports" / f"{self.name}.html"

    @property
    def lock(self) -> Path:
        return HomePaths(self.root).locks / f"{self.name}.lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs" / self.name

    @property
    def plots(self) -> Path:
        return self.root / "pictures" / self.name

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints" / self.name

    @property
    def notify_log(self) -> Path:
        """The result of each notification."""
        return self.logs / "notify.log"

    @property
    def launch_log(self) -> Path:
        """The forecasts of a launch and the reason why it ended."""
        return self.logs / "launch.log"

    @property
    def worker_logs(self) -> Path:
        """A folder with the output of each launched worker."""
        return self.logs / "workers"

    @property
    def plot_log(self) -> Path:
        """The output of the plotting processes."""
        return self.logs / "pictures.log"

    def log(self, number: int) -> Path:
        return self.logs / f"{trial_name(number)}.log"

    def checkpoint(self, number: int) -> Path:
        """The folder of a trial's checkpoints: its state while it runs, its weights once it is complete."""
        return self.checkpoints / trial_name(number)

    @property
    def logged(self) -> Path:
        """What the code of trials logs through self.logger, on its way to MLflow."""
        return self.root / "logged" / self.name

    def trial_log(self, number: int) -> Path:
        return self.logged / trial_name(number)

    def trial_plots(self, number: int) -> Path:
        return self.plots / trial_name(number)


@dataclass(frozen=True)
class StudyLocation:
    """Where studies are located: everything that is needed to read them.

    Attributes:
        storage_url: None for the SQLite file below the home. It contains the password of a PostgreSQL.
        given_tracking_uri, given_artifacts: None for the default below the home.
        storage, tracking: The options of these config groups.
        lease_s: Seconds without a sign of its owner after which another process takes over a trial of a shared study.
    """

    home: str
    storage_url: str | None = field(default=None, repr=False)
    given_tracking_uri: str | None = None
    given_artifacts: str | None = None
    storage: str = "sqlite"
    tracking: str = "local"
    lease_s: float = 30.0

    @property
    def paths(self) -> HomePaths:
        # Without links, so that a file can be compared with the home that it should be in.
        return HomePaths(Path(os.path.realpath(os.path.expanduser(self.home))))

    @property
    def shared(self) -> bool:
        """Whether the study storage is a PostgreSQL, which supervisors on several machines share."""
        return credentials.is_postgres(self.storage_url)

    @property
    def tracking_uri(self) -> str:
        return self.given_tracking_uri or sqlite_url(self.paths.mlflow_db)

    @property
    def server(self) -> str | None:
        """The address of MLflow's server, without a secret; None where this process opens the store itself."""
        uri = self.given_tracking_uri
        return uri if uri is not None and uri.startswith(("http://", "https://")) else None

    @property
    def artifact_root(self) -> str | None:
        """Where experiments keep their artifacts; None where MLflow's server decides."""
        return self.given_artifacts or (None if self.server else self.paths.artifacts.as_uri())

    @property
    def storage_description(self) -> str:
        """Where the study storage is, for messages."""
        if self.storage == "postgres":
            return f"the study storage that {credentials.STORAGE_URL} names"
        return str(self.paths.root)

    @property
    def overrides(self) -> list[str]:
        """The overrides that a command needs to use this location."""
        return [
            *([] if self.home == "./mlruns" else [f"home={literal.quote(self.home)}"]),
            *([] if self.storage == "sqlite" else [f"storage={self.storage}"]),
            *([] if self.tracking == "local" else [f"tracking={self.tracking}"]),
        ]
