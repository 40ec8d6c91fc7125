"""Find the mistakes that would fail every trial, before a new study starts.

The largest and the smallest configuration of the search space train one batch and validate one batch, in processes of
their own. Nothing is written, except data that has to be downloaded or decoded.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from overnight.config.fields import nearest
from overnight.config.problems import Problems
from overnight.config.settings import COMPONENTS
from overnight.config.values import to_text
from overnight.protocol import Alive, ClassSpec, DataSpec, DryRunResult, TrialSpec
from overnight.runner.trial_spec import trial_spec
from overnight.runner.watchdog import GIB
from overnight.search.distributions import encode
from overnight.search.formatting import describe_params
from overnight.search.plan import Plan, devices_of
from overnight.search.space import display_name
from overnight.system import forkserver
from overnight.system.devices import machine_memory
from overnight.system.kill import discard
from overnight.tracking import names

MAX_DRY_RUNS, MAX_BUILDS = 12, 48
# A dry run is announced after the first time, and no longer waited for after the second.
ANNOUNCED_AFTER_S, TIMEOUT_S = 15.0, 120.0
ACTIVITY = "trying one batch of the smallest and of the largest configuration"

Say = Callable[[str], None]


@dataclass(frozen=True)
class DryRun:
    """A configuration to train for one batch.

    Attributes:
        name: for messages, e.g. "largest configuration, model=mlp".
        values: key -> value of the searched parameters.
    """

    name: str
    values: dict[str, Any]


def find_mistakes(plan: Plan, say: Say = lambda _: None) -> Problems:
    """Return what keeps the plan's study from training. Nothing remains on disk."""
    dry_runs = dry_runs_for(plan)
    results = _execute(plan, dry_runs, say)
    names_by_problem: dict[str, list[str]] = {}
    for dry_run, result in zip(dry_runs, results, strict=True):
        for problem in problems_in(plan, result):
            names_by_problem.setdefault(problem, []).append(dry_run.name)
    problems = Problems(
        problem if len(dry_run_names) == len(dry_runs) else f"{problem} (the {dry_run_names[0]})"
        for problem, dry_run_names in names_by_problem.items()
    )
    built = dict.fromkeys(p for result in results if result is not None for p in result.built_problems)
    problems.extend(p for p in built if p not in names_by_problem)
    problems.extend(memory_problems(plan, max((r.private_bytes for r in results if r is not None), default=0)))
    if not problems:
        notes = dict.fromkeys(note for result in results if result is not None for note in result.notes)
        for note in [*notes, *notes_on_names(plan, results)]:
            say(note)
        unsaved = dict.fromkeys(name for result in results if result is not None for name in result.unsaved)
        if unsaved:
            say(
                f"a trial that is interrupted will go on without {', '.join(unsaved)}: training changes it, and it "
                "can't be saved; keep numbers, tensors, lists and dicts instead, or make the object in __init__"
            )
    return problems


def notes_on_names(plan: Plan, results: Iterable[DryRunResult | None]) -> list[str]:
    """Return under which names MLflow shows metrics and parameters whose own names it does not take."""
    metrics = dict.fromkeys(name for result in results if result is not None for name in result.metrics or ())
    params = dict.fromkeys(map(display_name, plan.space.names()))
    return [*names.notes_on_metrics(metrics), *names.notes_on_params(params)]


def find_missing_data(plan: Plan, say: Say = lambda _: None) -> Problems:
    """Return what keeps this machine from having the data of a study that another machine started.

    Downloads whatever can be downloaded, as a trial would. Nothing is trained: the machine that started the study has
    checked that. Without this check, every trial of this machine would fail.
    """
    options = plan.space.searched_options(plan.groups).get("data", ())
    others = [option for option in options if option != plan.choices["data"]]
    configs = [plan.config({}), *(plan.config(_extreme_values(plan, {"data": o}, True, 0)) for o in others)]
    paths = plan.settings.location.paths
    with _dry_run_process(DataSpec(tuple(configs), paths.cache, paths.data_locks)) as (process, pipe):
        answers = [*_results({pipe: (0, process)}, say, "preparing the data", "preparing the data")]
    return Problems(problem for _, result in answers for problem in result.problems)


def find_class_mistakes(config: dict[str, Any]) -> Problems:
    """Return what is wrong with the classes of a configuration, whose settings are wrong too, and their arguments."""
    components = {node: config[node] for node in COMPONENTS if node in config}
    with _dry_run_process(ClassSpec(components)) as (_, pipe):
        try:
            return Problems(pipe.recv().problems if pipe.poll(TIMEOUT_S) else ())
        except (EOFError, OSError):  # an import ended the process; the dry run tells, once the settings are right
            return Problems()


# Which configurations -------------------------------------------------------------------------------------------------


def dry_runs_for(plan: Plan, *, smallest_batch: bool = False) -> list[DryRun]:
    """Return the configurations to train: the largest and the smallest for every searched option of `data` and `model`.

    The options of other groups and of categorical parameters take turns among them.

    Args:
        smallest_batch: the largest configuration has the smallest batch size, which takes the most time, and the
            smallest one the largest. Otherwise both are at the same end, which takes the most memory.
    """
    options = plan.space.searched_options(plan.groups)
    main_groups = [g for g in plan.groups if g in ("data", "model")]
    rows: list[dict[str, Any]] = [{}]
    for group in main_groups:
        rows += [{group: option} for option in options[group] if option != plan.choices[group]]
    if main_groups and any(plan.choices[g] not in options[g] for g in main_groups):
        rows = rows[1:]  # only the baseline, trial 0, has the options of the configuration
    turns = max([len(o) for g, o in options.items() if g not in main_groups], default=1)
    count = min(max(2 * len(rows), turns), MAX_DRY_RUNS)
    dry_runs = []
    for turn, row in zip(range(count), itertools.cycle(rows), strict=False):
        large = (turn // len(rows)) % 2 == 0
        values = _extreme_values(plan, row, large, turn, smallest_batch)
        dry_runs.append(
            DryRun(f"{'largest' if large else 'smallest'} configuration, {describe_params(values)}", values)
        )
    unique = {repr(d.values): d for d in reversed(dry_runs)}
    return [*reversed(unique.values())]


def configs_to_build(plan: Plan, dry_runs: list[DryRun]) -> list[dict[str, Any]]:
    """Return configs that are built but not trained: the baseline, and one for each option that no dry run has."""
    covered = {(k, to_text(v)) for d in dry_runs for k, v in d.values.items()}
    configs = [plan.config({})]
    for p in plan.space.parameters:
        for option in p.options if p.length is None else ():
            base = next((d.values for d in dry_runs if p.key in d.values and p.active(d.values, plan.baseline)), None)
            if base is not None and p.key not in plan.groups and (p.key, to_text(option)) not in covered:
                configs.append(plan.config({**base, p.key: option}))
    return configs[:MAX_BUILDS]


def _extreme_values(
    plan: Plan, fixed: Mapping[str, Any], large: bool, turn: int, smallest_batch: bool = False
) -> dict[str, Any]:
    """Return a point of the space with integers and sizes at one end, and the rest at the baseline or in the middle."""

    def draw(name: str, dist: BaseDistribution) -> Any:
        key, options = display_name(name), plan.space.options(name)
        at_high_end = large != (smallest_batch and key.rpartition(".")[2] == "batch_size")
        if key in fixed:
            return encode(dist, options, fixed[key])
        if isinstance(dist, CategoricalDistribution):
            is_default = key in ("data", "model") and plan.choices[key] in options
            choice = plan.choices[key] if is_default else _extreme_choice(options, at_high_end, turn)
            return encode(dist, options, choice)
        if isinstance(dist, IntDistribution):
            return dist.high if at_high_end else dist.low
        assert isinstance(dist, FloatDistribution)
        with contextlib.suppress(KeyError):
            baseline = plan.baseline(key)
            if isinstance(baseline, int | float) and dist._contains(float(baseline)):
                return float(baseline)
        return dist.low if dist.step else (dist.low * dist.high) ** 0.5 if dist.log else (dist.low + dist.high) / 2

    return plan.space.draw(draw, plan.baseline)


def _extreme_choice(options: tuple[Any, ...], large: bool, turn: int) -> Any:
    """Return the largest or smallest of numbers or lists of numbers; other choices take turns."""
    sizes = [_size(option) for option in options]
    if all(s is not None for s in sizes):
        return options[sizes.index((max if large else min)(s for s in sizes if s is not None))]
    return options[turn % len(options)]


def _size(option: Any) -> float | None:
    numbers = option if isinstance(option, list) else [option]
    are_numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    return sum(map(float, numbers)) if are_numbers else None


# Execution in processes -----------------------------------------------------------------------------------------------


def dry_run_spec(plan: Plan, number: int, dry_run: DryRun, device: str) -> TrialSpec:
    """Build the specification of a dry run, which writes nothing."""
    config, folder = plan.config(dry_run.values), Path("/nonexistent/overnight")
    spec = trial_spec(plan, number, config, plan.trial_seed(0), device, folder=folder, keep_weights=False)
    return replace(spec, cache=None)


def _execute(plan: Plan, dry_runs: list[DryRun], say: Say) -> list[DryRunResult | None]:
    """Return the result of each dry run; None if it timed out."""
    forkserver.warm_up()
    devices = devices_of(plan)
    builds = configs_to_build(plan, dry_runs)
    results: list[DryRunResult | None] = [None] * len(dry_runs)
    remaining = [*enumerate(dry_runs)]
    while remaining:
        wave, remaining = remaining[: len(devices)], remaining[len(devices) :]
        with contextlib.ExitStack() as stack:
            running = {}
            for (number, dry_run), device in zip(wave, devices, strict=False):
                spec = dry_run_spec(plan, number, dry_run, device)
                job = spec, builds if number == len(dry_runs) - 1 else []
                process, pipe = stack.enter_context(_dry_run_process(job))
                running[pipe] = (number, process)
            for pipe, result in _results(running, say):
                results[running[pipe][0]] = result
    return results


@contextlib.contextmanager
def _dry_run_process(
    job: DataSpec | ClassSpec | tuple[TrialSpec, list[dict[str, Any]]],
) -> Iterator[tuple[BaseProcess, Connection]]:
    from overnight.trial import dry_run

    ours, theirs = multiprocessing.Pipe()
    process = forkserver.fork(dry_run.main, theirs)
    theirs.close()
    try:
        ours.send(job)
        yield process, ours
    finally:
        discard(process)
        ours.close()


def _results(
    running: Mapping[Connection, tuple[int, BaseProcess]],
    say: Say,
    activity: str = ACTIVITY,
    what: str = "one batch",
) -> Iterator[tuple[Connection, DryRunResult]]:
    waiting, timeout_s, announced = list(running), ANNOUNCED_AFTER_S, {""}
    while waiting:
        ready = wait(waiting, timeout=timeout_s)
        if not ready:
            if timeout_s == TIMEOUT_S:
                say(f"{what} takes more than {TIMEOUT_S:.0f} s: the study starts without waiting for it")
                return
            say(f"{activity} ...")
            timeout_s = TIMEOUT_S
        for pipe in ready:
            assert isinstance(pipe, Connection)
            number, process = running[pipe]
            try:
                message = pipe.recv()
                if isinstance(message, Alive):  # it downloads data, or another process does
                    if message.waits_for not in announced:
                        announced.add(message.waits_for)
                        say(f"waiting for {message.waits_for} ...")
                    continue
                waiting.remove(pipe)
                yield pipe, message
            except (EOFError, OSError):
                waiting.remove(pipe)
                yield pipe, _death_of(process, number)


def _death_of(process: BaseProcess, number: int) -> DryRunResult:
    process.join(5)
    code = process.exitcode or 0
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    hint = ", as when memory runs out" if code == -signal.SIGKILL else ""
    return DryRunResult(number, None, (f"conf: must train; its process ended by {how}{hint}",), 0)


# Evaluation -----------------------------------------------------------------------------------------------------------


def problems_in(plan: Plan, result: DryRunResult | None) -> Problems:
    """Return the problems that a dry run reported, and whether it logged the study's metric."""
    if result is None:
        return Problems()
    problems = Problems(result.problems)
    metric = plan.settings.study.metric
    if result.metrics is not None and metric not in result.metrics:
        close = nearest(metric, result.metrics) if result.metrics else ""
        close = close if "did you mean" in close else ""
        rule = "must be a metric that the model logs by the end of an epoch"
        problems.add("study.metric", rule, metric, f"it logged {', '.join(result.metrics) or 'none'}{close}")
    return problems


def memory_problems(plan: Plan, own_bytes: int) -> Problems:
    """Return whether the largest configuration, in every slot at once, exceeds the machine's memory."""
    slots, total, limit = (
        len(devices_of(plan)),
        machine_memory(),
        plan.settings.trial.memory_gib,
    )
    problems = Problems()
    if limit is not None and own_bytes > limit * GIB:
        problems.add(
            f"trial.memory_gib: must hold the largest configuration, which takes {own_bytes / GIB:.2g} GiB, got "
            f"{limit:g}; give it more, or take a smaller space"
        )
    elif own_bytes * slots > total:
        fitting = int(total // own_bytes)
        remedy = f"take slots={fitting}, or a smaller space" if fitting else "take a smaller space"
        problems.add(
            f"slots: {slots} trials of the largest configuration must fit into the machine's {total / GIB:.3g} GiB, "
            f"and each takes {own_bytes / GIB:.3g}; {remedy}"
        )
    return problems
