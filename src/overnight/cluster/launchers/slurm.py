"""Workers as the jobs of one Slurm array, through submitit. launcher.cluster=local runs the jobs on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overnight.cluster.launchers.worker_process import WorkerExit, WorkerProcess, missing_package
from overnight.config.settings import LauncherSettings

_POLL_EVERY_S = 0.5
_SAVE_TIMEOUT_S = 60  # that a worker has to save before its job ends


def find_problems(settings: LauncherSettings) -> list[str]:
    problems = missing_package("slurm", "submitit")
    if settings.cluster == "slurm" and shutil.which("sbatch") is None:
        problems.append(
            "launcher: slurm needs sbatch, which this machine does not have; start overnight on a login node of the "
            "cluster, or use launcher.cluster=local to try it out here"
        )
    return problems


class WorkerJob:
    """A Slurm job: it watches one worker until the worker ends or the stop file exists."""

    def __init__(self, arguments: Sequence[str], folder: Path, number: int) -> None:
        self._arguments, self._folder, self._number = list(arguments), folder, number
        self._worker: WorkerProcess | None = None

    def __call__(self) -> WorkerExit:
        self._worker = WorkerProcess(self._arguments, self._folder / f"worker-{self._number}.log")
        while (worker_exit := self._worker.poll()) is None:
            if _stop_file(self._folder).exists():
                self._worker.stop()
            time.sleep(_POLL_EVERY_S)
        return worker_exit

    def checkpoint(self) -> Any:
        """Save, and return the same job to queue again. submitit calls this at preemption and at the time limit."""
        from submitit.helpers import DelayedSubmission

        if self._worker is not None:
            self._worker.stop()
            until = time.monotonic() + _SAVE_TIMEOUT_S
            while self._worker.poll() is None and time.monotonic() < until:
                time.sleep(_POLL_EVERY_S)
        return DelayedSubmission(WorkerJob(self._arguments, self._folder, self._number))


class SlurmWorkers:
    def __init__(self, arguments: Sequence[str], settings: LauncherSettings, folder: Path) -> None:
        import submitit

        # Each launch has its own folder, because the stop file of an earlier launch must not stop this one.
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
            slurm_signal_delay_s=_SAVE_TIMEOUT_S + 30,
        )
        with executor.batch():
            self._jobs = [executor.submit(WorkerJob(arguments, self._folder, n)) for n in range(settings.workers)]
        self._exits: list[WorkerExit | None] = [None] * settings.workers

    def poll(self) -> list[WorkerExit | None]:
        for n, job in enumerate(self._jobs):
            if self._exits[n] is None and job.done():
                self._exits[n] = _result(job)
        return list(self._exits)

    def stop(self) -> None:
        _stop_file(self._folder).touch()

    def close(self) -> None:
        for n, job in enumerate(self._jobs):
            if self._exits[n] is None:
                with contextlib.suppress(Exception):  # scancel fails if the job has just ended
                    job.cancel()


def _result(job: Any) -> WorkerExit:
    try:
        worker_exit: WorkerExit = job.result()
    except Exception as error:  # of submitit, or raised by the job
        return WorkerExit(1, f"job {job.job_id}", f"{type(error).__name__}: {error}")
    return worker_exit


def _stop_file(folder: Path) -> Path:
    return folder / "stop"
