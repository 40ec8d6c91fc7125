"""The rules of the benchmarks: no figure without its gate, gaps by slot, the CPU of every process."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT))  # the wheel does not contain the benchmarks

from benchmarks import __main__ as command
from benchmarks import commands, gaps, overhead, stored, throughput
from benchmarks.interleave import Benchmark, Clock, Figure, GateFailed, require, run, summarise


def a_benchmark(seconds: list[float], **others: Any) -> Benchmark:
    """Return a benchmark of one side that takes `seconds`, one a round, and one that takes 2 s."""
    left = iter(seconds)
    return Benchmark(
        "made-up",
        "",
        {"a": lambda _: {"s": next(left)}, "b": lambda _: {"s": 2.0}},
        others.pop("gate", lambda _: None),
        [Figure("a over b", "", lambda r: r["a"]["s"] / r["b"]["s"], **others)],
        round_s=1,
    )


def rounds_of(benchmark: Benchmark, repeats: int) -> list[dict[str, Any]]:
    return run(benchmark, Clock([benchmark], repeats), lambda _: None)


def test_ratios_are_computed_within_a_round_and_summarised_by_median_and_quartiles() -> None:
    benchmark = a_benchmark([1.0, 2.0, 3.0, 4.0, 50.0], limit=1.5)
    (summary,) = summarise(benchmark.figures, rounds_of(benchmark, 5))
    assert (summary.median, summary.low, summary.high) == (1.5, 1.0, 2.0)
    assert summary.met


def test_a_slow_side_runs_in_few_rounds_and_its_figures_are_from_those() -> None:
    benchmark = replace(a_benchmark([3.0, 5.0], needs=("a",)), seldom={"a": 2})
    rounds = rounds_of(benchmark, 4)
    assert [sorted(r) for r in rounds] == [["a", "b"], ["a", "b"], ["b"], ["b"]]
    (summary,) = summarise(benchmark.figures, rounds)
    assert (summary.median, summary.count) == (2.0, 2)


def test_a_limit_may_be_a_minimum() -> None:
    benchmark = a_benchmark([1.0, 1.0], limit=0.85, least=True)
    (summary,) = summarise(benchmark.figures, rounds_of(benchmark, 2))
    assert summary.met is False


def test_a_benchmark_whose_gate_fails_prints_no_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gate(measured: Any) -> None:
        require(measured["a"]["s"] < 2, "a did other work")

    class Bench:
        @staticmethod
        def benchmark(_: bool) -> Benchmark:
            return a_benchmark([1.0, 3.0], gate=gate)

    monkeypatch.setattr(command, "ALL", {"made-up": Bench})
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--repeats", "2", "made-up"])
    assert command.main() == 1
    output = capsys.readouterr().out
    assert "its gate failed: a did other work" in output
    assert "a over b" not in output


def test_the_overhead_gate_needs_every_trial_and_every_run_complete() -> None:
    params = {f"model.{name}": 0.5 for name in "abcde"}
    trial = stored.Trial(0, "COMPLETE", 0.1, params, overhead.EPOCHS, 0.0, 1.0)
    run = stored.Run(
        "1", "FINISHED", {}, dict.fromkeys(params, "0.5"), dict.fromkeys(overhead.METRICS, overhead.EPOCHS)
    )
    overhead.gate({"ours": {"trials": [trial], "runs": [run]}}, many=1)
    torn = stored.Run("1", "FINISHED", {}, run.params, {**run.steps, "val/loss": overhead.EPOCHS - 1})
    with pytest.raises(GateFailed, match="0 of 1 runs are complete"):
        overhead.gate({"ours": {"trials": [trial], "runs": [torn]}}, many=1)


def test_a_gap_lasts_from_a_trials_last_message_to_the_next_trial_of_its_slot(tmp_path: Path) -> None:
    path = tmp_path / "stamps"
    path.write_text(
        "first 1 10.0\nfirst 2 10.1\nlast 2 11.0\nfirst 3 11.05\nlast 1 12.0\nlast 3 12.5\nfirst 4 12.02\nlast 4 13\n"
    )
    assert gaps.gaps_ms(path, 2, "last", "first") == pytest.approx([50, 20])


@pytest.mark.skipif(not commands.counts_all_cpu(), reason="orphans are counted on Linux alone")
def test_the_cpu_of_a_process_that_outlives_its_parent_is_counted(tmp_path: Path) -> None:
    burn = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    while time.process_time() < 0.3: pass\n"
    ran = commands.python("-c", burn, folder=tmp_path)
    assert ran.cpu_s > 0.3


def test_a_failed_command_is_reported_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        commands.python("-c", "raise SystemExit('out of luck')", folder=tmp_path)


def a_throughput_round(**changed: Any) -> dict[str, Any]:
    """Return a round of two configurations with three epochs of 430 steps. `changed` replaces some of our values."""
    accuracies = {"64": 0.86, "32": 0.85}
    params, steps = {"model.hidden_sizes.0": "64"}, dict.fromkeys(throughput.METRICS, 3)
    runs = [stored.Run(name, "FINISHED", {}, params, steps) for name in accuracies]
    side = {"accuracies": accuracies, "steps": [1290, 1290], "runs": runs}
    peers = dict.fromkeys(("ideal", "ideal again", "strong", "stock"), side)
    return {"ours": side, **peers, "ours again": {**side, **changed}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": [1290, 860]}, r"ours again: trained for \[1290, 860\] steps instead of 1290"),
        ({"accuracies": {"64": 0.81, "32": 0.85}}, "ours again 64: accuracy 0.810, ideal 0.860"),
        ({"accuracies": {"64": 0.84, "32": 0.83}}, "ours again: accuracies are 0.020 from ideal's on average"),
        ({"accuracies": {"64": 0.86}}, "ours again: 1 of 2 trials"),
        ({"runs": []}, "ours again: 0 of 0 runs are complete in MLflow"),
    ],
)
def test_the_throughput_gate_needs_the_same_training_and_complete_records(
    changed: dict[str, Any], message: str
) -> None:
    sizes = {"configurations": 2, "epochs": 3, "steps": 1290, "quick": False}
    throughput.gate(a_throughput_round(), **sizes)
    with pytest.raises(GateFailed, match=message):
        throughput.gate(a_throughput_round(**changed), **sizes)


def test_a_machine_that_slows_down_steadily_changes_no_ratio_of_throughput() -> None:
    measured = a_throughput_round()
    for pace, side in enumerate(("ours", "ideal", "ideal again", "ours again", "strong", "stock"), start=10):
        measured[side] = {**measured[side], "a_trial_s": pace, "command_s": pace}
    ratio = next(f for f in throughput.benchmark(quick=False).figures if f.name == "ours over ideal")
    assert ratio.of(measured) == 1


def test_gaps_are_right_when_a_trial_ends_before_the_other_slots_first_one_starts(tmp_path: Path) -> None:
    path = tmp_path / "stamps"
    path.write_text(
        "first 1 10.0\nlast 1 10.2\nfirst 2 10.3\nfirst 3 10.31\nlast 2 11.0\nfirst 4 11.02\nlast 3 12\nlast 4 12\n"
    )
    assert gaps.gaps_ms(path, 2, "last", "first") == pytest.approx([110, 20])


def test_a_process_that_draws_plots_uses_no_slot(tmp_path: Path) -> None:
    path = tmp_path / "stamps"
    path.write_text("first 1 10.0\nlast 1 11.0\nfirst 9 11.01\nfirst 2 11.05\nlast 2 12.0\n")
    assert gaps.gaps_ms(path, 1, "last", "first") == pytest.approx([50])


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "conf").rglob("*.yaml")), ids=lambda file: file.name)
def test_the_classes_that_the_configs_of_the_benchmarks_name_exist(file: Path) -> None:
    for target in re.findall(r"_target_: (benchmarks\.\S+)", file.read_text()):
        module, _, name = target.rpartition(".")
        assert hasattr(importlib.import_module(module), name), target
