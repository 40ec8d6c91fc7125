"""Where things lie: the one owner of every path below a home, of the stores, and of the folder that holds conf/."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from overnight.config import credentials


def conf_dir() -> Path:
    """The folder of the configs that come with overnight: inside the wheel, or beside src/ in a checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "conf"


def trial_name(number: int) -> str:
    """What a trial is called in MLflow, on disk and on the screen: trial-0007."""
    return f"trial-{number:04d}"


@dataclass(frozen=True)
class Home:
    """Everything that overnight writes lies below `root`; nothing is created by asking for a path."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def tracking_store(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def cache(self) -> Path:
        """Data sets decoded once, for every trial to map into memory."""
        return self.root / "cache"

    @property
    def winners(self) -> Path:
        """A folder of configs, found without being named: a study leaves its winner's there."""
        return self.root / "winners"

    def overlay(self, study: str) -> Path:
        """The winner's config, as +experiment=best_STUDY."""
        return self.winners / "experiment" / f"best_{study}.yaml"

    def report(self, study: str) -> Path:
        return self.root / "reports" / f"{study}.html"

    def lock(self, study: str) -> Path:
        return self.root / "locks" / f"{study}.lock"

    def log(self, study: str, number: int) -> Path:
        return self.study_logs(study) / f"{trial_name(number)}.log"

    def study_logs(self, study: str) -> Path:
        return self.root / "logs" / study

    def study_pictures(self, study: str) -> Path:
        return self.root / "pictures" / study

    def study_checkpoints(self, study: str) -> Path:
        return self.root / "checkpoints" / study

    def checkpoints(self, study: str, number: int) -> Path:
        """The folder of one trial's checkpoints: its state while it runs, its weights once it is complete."""
        return self.study_checkpoints(study) / trial_name(number)

    def pictures(self, study: str, number: int) -> Path:
        """The folder of one trial's pictures."""
        return self.study_pictures(study) / trial_name(number)

    def notify_log(self, study: str) -> Path:
        """What became of each notification."""
        return self.root / "logs" / study / "notify.log"

    def launch_log(self, study: str) -> Path:
        """What a launch was heading for, and what ended it."""
        return self.root / "logs" / study / "launch.log"

    def launches(self, study: str) -> Path:
        """What the workers of a study's launches print, each in a file of its own."""
        return self.study_logs(study) / "workers"

    def pictures_log(self, study: str) -> Path:
        """What is said while pictures are drawn."""
        return self.study_logs(study) / "pictures.log"


@dataclass(frozen=True)
class Place:
    """Where studies lie: all that somebody who only looks on has to know. None stands for what the home holds.

    storage, tracking: the options taken. lease_s: seconds after which a trial whose owner was not heard of is taken
    over, where machines share a ledger.
    """

    home: str
    storage_url: str | None = field(default=None, repr=False)  # with its password
    given_tracking_uri: str | None = None
    given_artifacts: str | None = None
    storage: str = "sqlite"
    tracking: str = "local"
    lease_s: float = 30.0

    @property
    def where(self) -> Home:
        return Home(Path(self.home).expanduser().absolute())

    @property
    def shared(self) -> bool:
        """Whether the ledger is a PostgreSQL, which supervisors on several machines work on."""
        return credentials.is_postgres(self.storage_url)

    @property
    def tracking_uri(self) -> str:
        return self.given_tracking_uri or f"sqlite:///{self.where.tracking_store}"

    @property
    def server(self) -> str | None:
        """The address of MLflow's server, which holds no secret; None where its store is opened here."""
        uri = self.given_tracking_uri
        return uri if uri is not None and uri.startswith(("http://", "https://")) else None

    @property
    def artifact_root(self) -> str | None:
        """Where experiments keep their artifacts; None where MLflow's server says that."""
        return self.given_artifacts or (None if self.server else self.where.artifacts.as_uri())

    @property
    def ledger_said(self) -> str:
        """Where the ledger is, in words."""
        if self.storage == "postgres":
            return f"the ledger that {credentials.STORAGE_URL} names"
        return str(self.where.root)

    @property
    def overrides(self) -> list[str]:
        """What a line has to say to speak of this place."""
        return [
            *([] if self.home == "./mlruns" else [f"home={self.home}"]),
            *([] if self.storage == "sqlite" else [f"storage={self.storage}"]),
            *([] if self.tracking == "local" else [f"tracking={self.tracking}"]),
        ]
