"""Workers as the jobs of one array, through submitit: as Slurm's, or, for trying out, as this machine's."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overnight.cluster.launchers.child import Child, Ended, lacking
from overnight.config.sections import LauncherSettings

_TICK_S = 0.5
# Seconds that a worker has to save, before its job is over.
_SAVE_S = 60


def problems(settings: LauncherSettings) -> list[str]:
    found = lacking("slurm", "submitit")
    if settings.cluster == "slurm" and shutil.which("sbatch") is None:
        found.append(
            "launcher: slurm needs sbatch, which this machine has not; start overnight on a login node of the cluster, "
            "or take launcher.cluster=local to try it out here"
        )
    return found


class Job:
    """What a job does: watch over one worker, until that ends or a file says stop."""

    def __init__(self, arguments: Sequence[str], folder: Path, number: int) -> None:
        self._arguments, self._folder, self._number = list(arguments), folder, number
        self._child: Child | None = None

    def __call__(self) -> Ended:
        self._child = Child(self._arguments, self._folder / f"worker-{self._number}.log")
        told = False
        while (ended := self._child.poll()) is None:
            if not told and _stop(self._folder).exists():
                told = True
                self._child.stop()
            time.sleep(_TICK_S)
        return ended

    def checkpoint(self) -> Any:
        """What submitit queues again when the job's time is up, or another's comes first: the same, once it saved."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._child.stop()
            until = time.monotonic() + _SAVE_S
            while self._child.poll() is None and time.monotonic() < until:
                time.sleep(_TICK_S)
        return DelayedSubmission(Job(self._arguments, self._folder, self._number))


class Slurm:
    def __init__(self, arguments: Sequence[str], settings: LauncherSettings, folder: Path) -> None:
        import submitit

        # A folder of its own for each launch: what stopped the last one must not stop this one.
        self._folder = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self._folder.mkdir(parents=True)
        executor = submitit.AutoExecutor(self._folder, cluster=settings.cluster)
        executor.update_parameters(
            name="overnight",
            timeout_min=settings.timeout_min,
            cpus_per_task=settings.cpus_per_worker,
            gpus_per_node=settings.gpus_per_worker,
            mem_gb=settings.memory_gib,
            slurm_partition=settings.partition,
            slurm_account=settings.account,
            slurm_signal_delay_s=_SAVE_S + 30,
        )
        with executor.batch():
            self._jobs = [executor.submit(Job(arguments, self._folder, n)) for n in range(settings.workers)]
        self._ended: list[Ended | None] = [None] * settings.workers

    def poll(self) -> list[Ended | None]:
        for n, job in enumerate(self._jobs):
            if self._ended[n] is None and job.done():
                self._ended[n] = self._result(job)
        return list(self._ended)

    def stop(self) -> None:
        _stop(self._folder).touch()

    def close(self) -> None:
        for n, job in enumerate(self._jobs):
            if self._ended[n] is None:
                with contextlib.suppress(Exception):  # whatever scancel says: it may be over already
                    job.cancel()

    def _result(self, job: Any) -> Ended:
        try:
            ended: Ended = job.result()
        except Exception as error:  # submitit's own, or what the job raised: it is over, one way or another
            return Ended(1, f"job {job.job_id}", f"{type(error).__name__}: {error}")
        return ended


def _stop(folder: Path) -> Path:
    return folder / "stop"
