"""Messages between a supervisor and its child processes: frozen dataclasses, nothing else.

Every message of a trial carries the trial's number, so that one process can train several trials later on. "Down" is
from the supervisor to the child process, "up" is the other direction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal

# Why a trial failed.
#   error: the user's code raised. diverged: the metric is not finite. stalled: the trial sent no message for too long.
#   crashed: the process died without a last message. checkpoint_unusable: the saved state does not fit the model.
Reason = Literal["error", "diverged", "out_of_memory", "timed_out", "stalled", "crashed", "checkpoint_unusable"]


@dataclass(frozen=True)
class TrialSpec:
    """All that a trial process gets. Down, once.

    Attributes:
        study: name of the study.
        number: number of the trial.
        seed: for all random generators of the process.
        config: plain tree of data, model, optimizer, schedule and trainer, fully resolved.
        metric: name of the metric that the study optimises.
        direction: of the optimisation.
        objective: whether the best or the last epoch counts.
        checkpoint_folder: for the trial's checkpoints. The trial resumes from a state that is there.
        checkpoint_every_s: seconds between two saved states.
        device: "cpu", "mps" or "cuda:INDEX".
        threads: number of torch's threads on the CPU.
        keep_weights: whether to save the trained weights.
        cache: folder for decoded data, shared by all trials of the home; None for none.
        test_only: test the weights in the checkpoint folder and train nothing.
        fold_seeds: the seed of each fold of a cross-validation; empty for none.
        locks: folder for the locks of prepare_data, which one process of a home calls at a time; None for no lock.
        logged: folder for what the trial's code logs through `self.logger`; None to drop it.
    """

    study: str
    number: int
    seed: int
    config: dict[str, Any]
    metric: str
    direction: Literal["maximize", "minimize"]
    objective: Literal["last", "best"]
    checkpoint_folder: Path
    checkpoint_every_s: float
    device: str = "cpu"
    threads: int = 1
    keep_weights: bool = True
    cache: Path | None = None
    locks: Path | None = None
    logged: Path | None = None
    test_only: bool = False
    fold_seeds: tuple[int, ...] = ()

    def of_fold(self, fold: int) -> TrialSpec:
        """Return the training of one fold, as a trial without folds. Without folds, return the trial itself.

        Its data module gets `fold` and `folds`. The network of fold 0 is that of the trial, so that its checkpoints are
        in the trial's folder, and it alone logs through `self.logger`.
        """
        if not self.fold_seeds:
            return self
        data = {**self.config["data"], "fold": fold, "folds": len(self.fold_seeds)}
        return replace(
            self,
            seed=self.fold_seeds[fold],
            config={**self.config, "data": data},
            checkpoint_folder=self.checkpoint_folder / fold_folder(fold) if fold else self.checkpoint_folder,
            keep_weights=True,  # the weights of a fold show a trial that resumes that the fold is complete
            logged=None if fold else self.logged,
            fold_seeds=(),
        )


def fold_folder(fold: int | str) -> str:
    """Return the name of the folder, in that of the trial, with the checkpoints of a fold after the first."""
    return f"fold-{fold}"


class Decision(Enum):
    """What a trial does after an epoch, a validation or a fold. Down, in answer to Progress and FoldEnded."""

    CONTINUE = "continue"
    STOP = "stop"  # the trial is pruned or its value is useless; nothing is saved
    SAVE_AND_STOP = "save and stop"  # the trial is resumed later; also sent without Progress, at any time


@dataclass(frozen=True)
class Resumed:
    """The trial resumes from a saved state. Up, first.

    Attributes:
        history: all progress before the state, including those that the storage did not get before a crash.
    """

    number: int
    history: tuple[Progress, ...]


@dataclass(frozen=True)
class Progress:
    """One unit of training is complete: an epoch, or a validation where these come at other times. Up; answered by a
    Decision.

    Attributes:
        index: of the epoch or of the validation, counted from 0.
        metrics: name -> value, as the model logged them.
        at: end of the unit, in seconds since 1970.
        seconds: duration of the unit, including validation.
        step: of a validation, the step at which Lightning logs it; None for an epoch.
        total: expected number of validations of the trial, as far as it is known; None for an epoch, because
            trainer.max_epochs is the number of epochs.
        fold: of a cross-validation, from 0; None without. The index goes on from fold to fold.
    """

    number: int
    index: int
    metrics: dict[str, float]
    at: float
    seconds: float
    step: int | None = None
    total: int | None = None
    fold: int | None = None


@dataclass(frozen=True)
class FoldEnded:
    """A fold of a cross-validation is complete, and another one follows. Up; answered by a Decision."""

    number: int
    fold: int


@dataclass(frozen=True)
class Alive:
    """The trial is between two batches of an epoch, or it waits. Up, at most once a second.

    Attributes:
        waits_for: what it waits for, in words; empty where it trains.
    """

    number: int
    waits_for: str = ""


@dataclass(frozen=True)
class StateSaved:
    """A state that the trial can resume from is on disk. Up.

    Attributes:
        index: of the last epoch or validation in the state.
    """

    number: int
    index: int


@dataclass(frozen=True)
class Tested:
    """Metrics of a trained network on the test set. Up.

    Attributes:
        metrics: name -> value; empty if there was an error.
        error: why there are no metrics.
    """

    number: int
    metrics: dict[str, float]
    error: str = ""


@dataclass(frozen=True)
class Finished:
    """The last message of a trial. Up.

    Attributes:
        outcome: complete (trained to the last epoch), stopped (by a decision), saved (stopped with a state on disk; on
            a full disk, the previous one) or failed.
        reason: why it failed.
        detail: the traceback, or the ruling of the watchdog.
        notes: lines for the trial's page.
        unsaved: attributes that training changes and that can't be saved; only of a dry run.
    """

    number: int
    outcome: Literal["complete", "stopped", "saved", "failed"]
    reason: Reason | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()
    unsaved: tuple[str, ...] = ()


TrialMessage = Alive | Progress | FoldEnded | Resumed | StateSaved | Tested | Finished


@dataclass(frozen=True)
class DataSpec:
    """Configurations whose data is to be prepared before any trial needs it. Down.

    Attributes:
        configs: one plain tree for each set of data.
        cache: as in TrialSpec.
        locks: as in TrialSpec.
    """

    configs: tuple[dict[str, Any], ...]
    cache: Path | None
    locks: Path | None = None


@dataclass(frozen=True)
class ClassSpec:
    """A configuration whose classes are to be checked, where its settings are wrong. Down."""

    config: dict[str, Any]


@dataclass(frozen=True)
class DryRunResult:
    """Result of a dry run, or of preparing data. Up.

    Attributes:
        metrics: names of the metrics that were logged; None if the dry run did not get that far.
        problems: mistakes, one line each.
        private_bytes: peak memory of the process, without the pages that it shares with the forkserver.
        unsaved: attributes that training changes and that a trial which resumes will lack.
        built_problems: mistakes of other configurations, which the process only built.
        notes: what is different from training without overnight, one line each.
    """

    number: int
    metrics: tuple[str, ...] | None
    problems: tuple[str, ...]
    private_bytes: int
    unsaved: tuple[str, ...] = ()
    built_problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportSpec:
    """A trained network to be exported to a file that needs none of its classes. Down.

    Attributes:
        weights: file of the trial's weights.
        folder: where the exported file goes.
        cache: as in TrialSpec.
        locks: as in TrialSpec.
    """

    weights: Path
    folder: Path
    cache: Path | None = None
    locks: Path | None = None


@dataclass(frozen=True)
class Exported:
    """Result of an export. Up.

    Attributes:
        file: in the format of torch.export; None if there was an error.
        example_inputs: two rows, (2, *shape), as nested lists of numbers.
        example_outputs: the network's outputs for them, as nested lists of numbers.
        dtypes: of inputs and outputs, as torch names them.
        input_description: what the rows are.
        output_description: what the outputs are.
        torch: version that wrote the file.
        error: why there is no file.
    """

    file: Path | None
    example_inputs: Any = None
    example_outputs: Any = None
    dtypes: tuple[str, str] = ("float32", "float32")
    input_description: str = ""
    output_description: str = ""
    torch: str = ""
    error: str = ""


@dataclass(frozen=True)
class PredictSpec:
    """Rows of a user, for which a trained network is to predict. Down.

    Attributes:
        weights: file of the trial's weights.
        path: an image, a folder of images, or a CSV file.
        invert: the images are dark on light, while the data is light on dark.
        cache: as in TrialSpec.
        locks: as in TrialSpec.
    """

    weights: Path
    path: Path
    invert: bool = False
    cache: Path | None = None
    locks: Path | None = None


@dataclass(frozen=True)
class Prediction:
    """The prediction for one row.

    Attributes:
        source: the image's file name, or the number of the row in its file, from 1.
        answer: the class, by name or number, or the value.
        probability: of the class; None for a value.
    """

    source: str
    answer: str | int | float
    probability: float | None


@dataclass(frozen=True)
class Predictions:
    """Predictions for all rows. Up.

    Attributes:
        notes: lines for the user about how the rows were read.
    """

    rows: tuple[Prediction, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a process exported or predicted nothing, one line for each problem. Up."""

    problems: tuple[str, ...]


@dataclass(frozen=True)
class DrawSpec:
    """Plots of a trial that has ended, to be drawn. Down.

    Attributes:
        title: name of the trial, for the titles of the plots.
        folder: where the plots go.
        weights: file of the trial's weights; None if they were not kept.
        history: (epoch, metrics) in order; (step, metrics) where the unit is a validation.
        metric: name of the metric that the study optimises.
        which: kinds of plots, as in the configuration key plots.which.
        look: colours of plots of weights, as in the configuration key plots.look.
        stamp: content of drawn.json, which is written last.
        unit: what the progress of the trial is counted in.
        low_priority: give way to all other processes.
        locks: as in TrialSpec.
    """

    title: str
    folder: Path
    weights: Path | None
    history: tuple[tuple[int, dict[str, float]], ...]
    metric: str
    which: tuple[str, ...]
    look: str
    stamp: str = ""
    unit: Literal["epoch", "validation"] = "epoch"
    low_priority: bool = True
    locks: Path | None = None
