"""Where things lie: the one owner of every path below a home, and of the folder that holds conf/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


def conf_dir() -> Path:
    """The folder of the configs that come with overnight: inside the wheel, or beside src/ in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


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

    def pictures_log(self, study: str) -> Path:
        """What is said while pictures are drawn."""
        return self.study_logs(study) / "pictures.log"
