"""The typed attributes of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import optuna

from overnight.protocol import Tested
from overnight.search.attributes import (
    CLOSED,
    EXCLUDED,
    FINISHED,
    FIRST_RUNG,
    LAUNCH,
    LAUNCHED_AT,
    MLFLOW,
    PUBLISHED,
    REFUSED,
    STOP,
    TESTED,
    TESTS,
    UID,
    WANTED,
)


class StoredAttributes:
    """The attributes of a study as they were read from its storage."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self._stored = stored

    def _read(self) -> Mapping[str, Any]:
        return self._stored

    @property
    def uid(self) -> str:
        """Identifier of this study in this storage; it never changes."""
        return str(self._read()[UID])

    @property
    def stop_requested(self) -> bool:
        return bool(self._read().get(STOP))

    @property
    def is_closed(self) -> bool:
        """Whether no worker needs to join before the next launch."""
        return bool(self._read().get(CLOSED))

    @property
    def experiment_id(self) -> str | None:
        """Of the study's experiment in MLflow."""
        return (self._read().get(MLFLOW) or {}).get("experiment_id")

    @property
    def parent_run_id(self) -> str | None:
        """Of the study's parent run in MLflow."""
        return (self._read().get(MLFLOW) or {}).get("parent_run_id")

    @property
    def exclusions(self) -> dict[int, str]:
        """Number of an excluded trial -> why."""
        return {int(number): why for number, why in (self._read().get(EXCLUDED) or {}).items()}

    @property
    def first_rung(self) -> int | None:
        """The epochs before a trial is first paused; None while no epoch was measured."""
        found = self._read().get(FIRST_RUNG)
        return int(found) if found is not None else None

    @property
    def launch(self) -> dict[str, Any]:
        """The last launch, as `limits.Launch` writes it."""
        return self._read().get(LAUNCH) or {}

    @property
    def launched_at(self) -> float | None:
        """When work on the last launch of a shared study began, in seconds since 1970; None while it waits."""
        found = self._read().get(LAUNCHED_AT)
        return float(found) if found is not None else None

    @property
    def published(self) -> dict[str, int]:
        """How many trials, confirmations and tests the published answer of a shared study covers."""
        return dict(self._read().get(PUBLISHED) or {})

    @property
    def finished(self) -> dict[str, Any]:
        """What the last launch left in both stores, as `report.finished` keeps it; empty if not finished."""
        return dict(self._read().get(FINISHED) or {})

    @property
    def refusals(self) -> dict[str, list[str]]:
        """Host name -> why its worker refuses the study, line by line."""
        return {key.removeprefix(REFUSED): why for key, why in self._read().items() if key.startswith(REFUSED) and why}

    @property
    def wanted(self) -> frozenset[tuple[int, int]]:
        """(trial, nth seed) of every run that is asked for; of a confirmation."""
        return frozenset((trial, nth_seed) for trial, nth_seed in self._read().get(WANTED, ()))

    @property
    def tested_by_hand(self) -> dict[int, dict[str, Any]]:
        """Number of a trial -> `at`, in seconds since 1970, and `metrics` of `overnight test`; of a search."""
        return {int(k.removeprefix(TESTED)): dict(v) for k, v in self._read().items() if k.startswith(TESTED)}

    @property
    def tests(self) -> dict[int, Tested]:
        """Number of a confirmation's trial -> its scores on the test set."""
        return {t["number"]: Tested(**t) for t in self._read().get(TESTS, ())}


class StudyAttributes(StoredAttributes):
    """The attributes of an open study. Each read asks the storage, as other processes write attributes too.

    Attributes:
        search: The attributes of the search that this study confirms. Its stop request holds for both.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self.search: StudyAttributes | None = None

    def _read(self) -> Mapping[str, Any]:
        return self._study._storage.get_study_user_attrs(self._study._study_id)

    @property
    def stop_requested(self) -> bool:
        return (self.search is not None and self.search.stop_requested) or super().stop_requested

    def clear_stop(self) -> None:
        """Forget the stop request of an earlier session."""
        assert self.search is None, "the stop request belongs to the search"
        if self.stop_requested:
            self._study.set_user_attr(STOP, False)

    def set_mlflow(self, experiment_id: str, parent_run_id: str | None) -> None:
        self._study.set_user_attr(MLFLOW, {"experiment_id": experiment_id, "parent_run_id": parent_run_id})

    def set_exclusions(self, exclusions: Mapping[int, str]) -> None:
        self._study.set_user_attr(EXCLUDED, {str(number): why for number, why in exclusions.items()})

    def set_first_rung(self, epochs: int) -> None:
        self._study.set_user_attr(FIRST_RUNG, epochs)

    def set_launch(self, launch: Mapping[str, Any]) -> None:
        self._study.set_user_attr(LAUNCH, dict(launch))

    def set_launched_at(self, seconds: float | None) -> None:
        self._study.set_user_attr(LAUNCHED_AT, seconds)

    def set_published(self, counts: Mapping[str, int]) -> None:
        self._study.set_user_attr(PUBLISHED, dict(counts))

    def set_finished(self, kept: Mapping[str, Any]) -> None:
        self._study.set_user_attr(FINISHED, dict(kept))

    def set_closed(self, closed: bool) -> None:
        self._study.set_user_attr(CLOSED, closed)

    def clear_refusals(self) -> None:
        """Forget which workers refused the study: the next launch may ask for something else."""
        for host in self.refusals:
            self._study.set_user_attr(REFUSED + host, [])

    def set_wanted(self, wanted: Iterable[tuple[int, int]]) -> None:
        """Keep which runs a confirmation asks for. Other waiting runs belong to former finalists."""
        self._study.set_user_attr(WANTED, [list(pair) for pair in wanted])

    def keep_test(self, number: int, at: float, metrics: Mapping[str, float]) -> None:
        """Keep for good that `overnight test` was asked of a trial. at: in seconds since 1970."""
        self._study.set_user_attr(f"{TESTED}{number}", {"at": at, "metrics": dict(metrics)})

    def add_test(self, tested: Tested) -> None:
        """Keep a network's scores on the test set for good: the test set is used once."""
        kept = {**self.tests, tested.number: tested}
        self._study.set_user_attr(TESTS, [vars(t) for t in kept.values()])
