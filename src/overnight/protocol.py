"""What travels on the pipe between a supervisor and its trial processes: frozen dataclasses, nothing else.

Every message carries the trial's number, so that one process may one day train several trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

# Why a trial failed. error: somebody's code raised. diverged: the metric is no finite number. stalled: nothing was
# heard of it. crashed: its process ended without a last word. checkpoint_unusable: its state does not fit its model.
Reason = Literal["error", "diverged", "out_of_memory", "timed_out", "stalled", "crashed", "checkpoint_unusable"]


@dataclass(frozen=True)
class TrialSpec:
    """All that a trial process is told. Down, once.

    config: the plain tree of data, model, optimizer and trainer, nothing left to resolve.
    seed: of every random generator in the process. device: "cpu" or "cuda:INDEX". threads: of torch, on the CPU.
    folder: where its checkpoints lie; a state found there is gone on with. every_s: seconds between two saved states.
    keep_weights: False where nobody will want the trained weights. cache: a folder for decoded data, for every trial
    of the home; None for none.
    test: have the weights that lie in the folder tested, and nothing trained.
    """

    study: str
    number: int
    seed: int
    config: dict[str, Any]
    metric: str
    direction: Literal["maximize", "minimize"]
    objective: Literal["last", "best"]
    folder: Path
    every_s: float
    device: str = "cpu"
    threads: int = 1
    keep_weights: bool = True
    cache: Path | None = None
    test: bool = False


@dataclass(frozen=True)
class EpochEnd:
    """An epoch is done. Up; answered by a Verdict.

    epoch: counted from 0. metrics: as the model logged them, by name. at: when, in seconds since 1970.
    seconds: how long the epoch took, validation included.
    """

    number: int
    epoch: int
    metrics: dict[str, float]
    at: float
    seconds: float


class Decision(Enum):
    """What a trial does after an epoch."""

    GO_ON = "go on"
    STOP = "end"  # pruned, or its value is of no use: nothing is saved
    SAVE_AND_STOP = "save and stop"  # it goes on another time; may also come unasked, in the middle of an epoch


@dataclass(frozen=True)
class Resumed:
    """The trial goes on from a saved state. Up, first.

    history: the epochs done before, so that what the ledger had not heard when everything died is heard now.
    """

    number: int
    history: tuple[EpochEnd, ...]


@dataclass(frozen=True)
class Alive:
    """The trial is between two batches of an epoch. Up, once a second or less often."""

    number: int


@dataclass(frozen=True)
class StateSaved:
    """A state that can be gone on from lies on disk. Up. epoch: the last one done."""

    number: int
    epoch: int


@dataclass(frozen=True)
class Finished:
    """The last message of a trial. Up.

    ending: complete (trained to its last epoch), ended (as the verdict said), saved (stopped; its state is on disk)
    or failed. reason and detail: where it failed; detail holds the traceback, or the supervisor's ruling. notes: what
    its pages should say. A saved trial whose disk was full goes on from the state before.
    """

    number: int
    ending: Literal["complete", "ended", "saved", "failed"]
    reason: Reason | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSpec:
    """Data to get ready before any trial wants it: of each of the configs. Down. cache: see TrialSpec."""

    configs: tuple[dict[str, Any], ...]
    cache: Path | None


@dataclass(frozen=True)
class DryRunResult:
    """What came of trying a configuration, or of getting data ready. Up. metrics: the names it logged, None where it
    did not get that far; problems: one line each; own_bytes: the most memory that it held of its own."""

    number: int
    metrics: tuple[str, ...] | None
    problems: tuple[str, ...]
    own_bytes: int


@dataclass(frozen=True)
class Tested:
    """What a trained network is worth on the test set. Up. metrics: by name; none where `why` says why."""

    number: int
    metrics: dict[str, float]
    why: str = ""


Up = Alive | EpochEnd | Resumed | StateSaved | Tested | Finished


@dataclass(frozen=True)
class ExportSpec:
    """All that a process is told that writes a trained network as a file which needs none of its classes.

    weights: as its trial left them. folder: where the file goes. cache: see TrialSpec.
    """

    weights: Path
    folder: Path
    cache: Path | None = None


@dataclass(frozen=True)
class Exported:
    """What came of it. file: in torch.export's format; None where `why` says why there is none.

    example: rows that it takes, (2, *shape), and answers: what it says to them; nested lists of numbers. takes, says:
    what these rows and answers are, in words. torch: the version that wrote it.
    """

    file: Path | None
    example: Any = None
    answers: Any = None
    dtypes: tuple[str, str] = ("float32", "float32")
    takes: str = ""
    says: str = ""
    torch: str = ""
    why: str = ""


@dataclass(frozen=True)
class PredictSpec:
    """All that a process is told that asks a trained network about a person's rows.

    path: a picture, a folder of pictures, or a CSV file. invert: the pictures are dark on light, the data is light on
    dark. weights, cache: see ExportSpec.
    """

    weights: Path
    path: Path
    invert: bool = False
    cache: Path | None = None


@dataclass(frozen=True)
class Prediction:
    """source: the picture's file name, or the row's number in its file, from 1. probability: of the answer; None
    where that is a number."""

    source: str
    answer: str | int | float
    probability: float | None


@dataclass(frozen=True)
class Predicted:
    """notes: what a person should know of how the rows were taken."""

    rows: tuple[Prediction, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """What kept a process from its errand, one line each."""

    problems: tuple[str, ...]


@dataclass(frozen=True)
class DrawSpec:
    """All that a process is told that draws an ended trial's pictures.

    folder: where they go. weights: the file that the trial left; None where it was not kept. history: (epoch,
    metrics) in order. which, look: as pictures.which and pictures.look. stamp: what the last file written, drawn.json,
    says. gives_way: to every other process.
    """

    study: str
    number: int
    folder: Path
    weights: Path | None
    history: tuple[tuple[int, dict[str, float]], ...]
    metric: str
    which: tuple[str, ...]
    look: str
    stamp: str = ""
    gives_way: bool = True
