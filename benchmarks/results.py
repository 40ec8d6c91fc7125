"""Format the results of benchmarks for the terminal and for RESULTS.md."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.commands import ROOT
from benchmarks.interleave import Benchmark, Summary

PATH = ROOT / "benchmarks" / "RESULTS.md"
_PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "optuna",
    "optuna-integration",
    "mlflow",
    "hydra-core",
    "numpy",
)


def machine() -> str:
    """Describe the machine, the versions and the load before the start."""
    versions = ", ".join(f"{p} {_version(p)}" for p in _PACKAGES)
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "no GPU"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    changed = ", changed" if _output("git", "status", "--porcelain", "--untracked-files=no") else ""
    return (
        f"{cores} cores ({_processor()}), {memory:.0f} GiB, {gpus}; {platform.system()} {platform.release()}; Python "
        f"{platform.python_version()}, {versions}; commit {_output('git', 'rev-parse', '--short', 'HEAD')}{changed}; "
        f"{time.strftime('%Y-%m-%d')}; load at the start {os.getloadavg()[0]:.1f}"
    )


def table(summaries: Sequence[Summary]) -> str:
    rows = [("figure", "median", "quartiles", "n", "limit", "")]
    for s in summaries:
        f = s.figure
        limit = "" if f.limit is None else f"{'at least' if f.least else 'at most'} {f.limit:g}"
        met = {None: "", True: "met", False: "missed"}[s.met]
        unit = f" {f.unit}" if f.unit else ""
        quartiles = f"{_number(s.low)} to {_number(s.high)}"
        rows.append((f.name, f"{_number(s.median)}{unit}", quartiles, str(s.count), limit, met))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def missed_limits(found: Mapping[str, Sequence[Summary]]) -> Iterator[str]:
    """Return a line for each missed limit."""
    for name, summaries in found.items():
        for s in summaries:
            if s.met is False:
                yield f"{name}: {s.figure.name}: {_number(s.median)} {s.figure.unit}, limit {s.figure.limit:g}: missed"


def write(where: str, benchmarks: Sequence[Benchmark], found: Mapping[str, Sequence[Summary]], repeats: int) -> Path:
    parts = [
        "# Results",
        f"`make bench`: every benchmark {repeats} times, with alternating sides; medians and quartiles over the "
        "n rounds that have a figure (throughput's stock peer takes minutes and runs in few rounds), "
        "ratios computed within a round. A benchmark whose gate fails has no figures here.",
        f"{where}.",
    ]
    for b in benchmarks:
        parts += [f"## {b.name}", b.about.strip(), table(found[b.name])]
    PATH.write_text("\n\n".join(parts) + "\n")
    return PATH


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().replace("\n", ", ")
