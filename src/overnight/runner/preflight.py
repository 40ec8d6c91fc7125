"""Before the first trial of a new study: does it train at all, does it log the metric, does it fit into memory?

One training batch and one validation batch of the largest and of the smallest configuration are tried, in processes
forked for it, and nothing is written but data that had to be fetched or decoded. A mistake that would fail every trial
is told before there is a study.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from overnight.config.rules import nearest
from overnight.protocol import Alive, DataSpec, DryRunResult, TrialSpec
from overnight.runner.watchdog import GIB
from overnight.search.plan import Plan
from overnight.search.record import described
from overnight.search.space import in_grammar
from overnight.system import forkserver
from overnight.system.devices import machine_memory, slot_devices
from overnight.system.kill import discard

# At most so many configurations are trained, and so many more only built.
MOST_TRAINED, MOST_BUILT = 12, 48
# Seconds after which a word is said, and after which what still trains is left to be a trial.
PATIENCE_S, LONGEST_S = 15.0, 120.0


@dataclass(frozen=True)
class Attempt:
    """One configuration to be tried. name: largest or smallest, of the options in `values`."""

    name: str
    values: dict[str, Any]


def mistakes(plan: Plan, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """What keeps the plan's study from training, one line each; leaves nothing on disk."""
    attempts = attempts_of(plan)
    results = _tried(plan, attempts, say)
    found: dict[str, list[str]] = {}
    for attempt, result in zip(attempts, results, strict=True):
        for problem in _problems(plan, result):
            found.setdefault(problem, []).append(attempt.name)
    told = [text if len(names) == len(attempts) else f"{text} (the {names[0]})" for text, names in found.items()]
    return [*told, *_too_much(plan, max((r.own_bytes for r in results if r is not None), default=0))]


def lacking(plan: Plan, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """What keeps this machine from having the data of a study that was tried on another, a line each.

    Every trial of this machine's would fail, and each is one of the study's. Whatever can be fetched is; a trial would
    have it here. Nothing is trained: that was tried where the study began.
    """
    others = [o for o in plan.space.group_choices(plan.groups).get("data", ()) if o != plan.choices["data"]]
    wanted = [plan.config({}), *(plan.config(_extreme(plan, {"data": o}, True, 0)) for o in others)]
    with _rehearsal(DataSpec(tuple(wanted), plan.settings.location.paths.cache)) as (process, pipe):
        answers = [*_answers({pipe: (0, process)}, say, "getting the data ready", "getting the data ready")]
    return [problem for _, found in answers for problem in found.problems]


def attempts_of(plan: Plan) -> list[Attempt]:
    """The configurations that are trained: the largest and the smallest for every option of `data` and of `model` that
    is searched, the others as written; among these the options of other groups and of choices take turns."""
    options = plan.space.group_choices(plan.groups)
    mains = [g for g in plan.groups if g in ("data", "model")]
    rows: list[dict[str, Any]] = [{}]
    for group in mains:
        rows += [{group: option} for option in options[group] if option != plan.choices[group]]
    if mains and any(plan.choices[g] not in options[g] for g in mains):
        rows = rows[1:]  # what is written is trial 0's alone
    turns = max([len(o) for g, o in options.items() if g not in mains], default=1)
    count = min(max(2 * len(rows), turns), MOST_TRAINED)
    attempts = []
    for turn, row in zip(range(count), itertools.cycle(rows), strict=False):
        large = (turn // len(rows)) % 2 == 0
        values = _extreme(plan, row, large, turn)
        attempts.append(Attempt(f"{'largest' if large else 'smallest'} configuration, {described(values)}", values))
    unique = {repr(a.values): a for a in reversed(attempts)}
    return [*reversed(unique.values())]


def _extreme(plan: Plan, taken: Mapping[str, Any], large: bool, turn: int) -> dict[str, Any]:
    """A point of the space: whole numbers and sizes at an end; the rest as written, or in the middle."""

    def draw(name: str, dist: BaseDistribution) -> Any:
        key = name.partition("@")[0]
        if key in taken:
            return taken[key]
        if key in ("data", "model") and plan.choices[key] in getattr(dist, "choices", ()):
            return plan.choices[key]
        if isinstance(dist, CategoricalDistribution):
            return _option(dist.choices, large, turn)
        if isinstance(dist, IntDistribution):
            return dist.high if large else dist.low
        assert isinstance(dist, FloatDistribution)
        with contextlib.suppress(KeyError):
            written = plan.written(key)
            if isinstance(written, int | float) and dist._contains(float(written)):
                return float(written)
        return dist.low if dist.step else (dist.low * dist.high) ** 0.5 if dist.log else (dist.low + dist.high) / 2

    return plan.space.draw(draw, plan.written)


def _option(choices: tuple[Any, ...], large: bool, turn: int) -> Any:
    """Of numbers, and of lists of numbers, the largest or smallest; of words each in its turn."""
    sizes = [_size(c) for c in choices]
    if all(s is not None for s in sizes):
        return choices[sizes.index((max if large else min)(s for s in sizes if s is not None))]
    return choices[turn % len(choices)]


def _size(choice: Any) -> float | None:
    texts = choice.strip("[]").split(",") if isinstance(choice, str) and choice.startswith("[") else [choice]
    try:
        return sum(float(t) for t in texts if not isinstance(t, bool))
    except (TypeError, ValueError):
        return None


def _builds(plan: Plan, attempts: list[Attempt]) -> list[dict[str, Any]]:
    """Configs to be built only: the one as written, and one for each option that no attempt trains."""
    seen = {(k, in_grammar(v)) for a in attempts for k, v in a.values.items()}
    configs = [plan.config({})]
    for p in plan.space.parameters:
        if p.length is not None or not isinstance(p.each, CategoricalDistribution):
            continue
        for option in p.options or p.each.choices:
            base = next((a.values for a in attempts if p.key in a.values and p.active(a.values, plan.written)), None)
            if base is not None and p.key not in plan.groups and (p.key, in_grammar(option)) not in seen:
                configs.append(plan.config({**base, p.key: option}))
    return configs[:MOST_BUILT]


# In processes ---------------------------------------------------------------------------------------------------------


def _tried(plan: Plan, attempts: list[Attempt], say: Callable[[str], None]) -> list[DryRunResult | None]:
    """What came of each; None of one that took too long to wait for."""
    forkserver.warm_up()
    devices = slot_devices(plan.settings.slots)
    builds = _builds(plan, attempts)
    results: list[DryRunResult | None] = [None] * len(attempts)
    todo = [*enumerate(attempts)]
    while todo:
        wave, todo = todo[: len(devices)], todo[len(devices) :]
        with contextlib.ExitStack() as stack:
            running = {}
            for (number, attempt), device in zip(wave, devices, strict=False):
                spec = _spec(plan, number, attempt, device)
                process, pipe = stack.enter_context(_rehearsal((spec, builds if number == len(attempts) - 1 else [])))
                running[pipe] = (number, process)
            for pipe, result in _answers(running, say):
                results[running[pipe][0]] = result
    return results


@contextlib.contextmanager
def _rehearsal(asked: DataSpec | tuple[TrialSpec, list[dict[str, Any]]]) -> Iterator[tuple[BaseProcess, Connection]]:
    from overnight.trial import dry_run

    ours, theirs = multiprocessing.Pipe()
    process = forkserver.fork(dry_run.main, theirs)
    theirs.close()
    try:
        ours.send(asked)
        yield process, ours
    finally:
        discard(process)
        ours.close()


def _answers(
    running: Mapping[Connection, tuple[int, BaseProcess]],
    say: Callable[[str], None],
    trying: str = "trying one batch of the smallest and of the largest configuration",
    what: str = "one batch",
) -> Iterator[tuple[Connection, DryRunResult]]:
    waiting, patience = list(running), PATIENCE_S
    while waiting:
        ready = wait(waiting, timeout=patience)
        if not ready:
            if patience == LONGEST_S:
                say(f"{what} takes more than {LONGEST_S:.0f} s: the study starts, and its trials will tell")
                return
            say(f"{trying} ...")
            patience = LONGEST_S
        for pipe in ready:
            assert isinstance(pipe, Connection)
            number, process = running[pipe]
            try:
                message = pipe.recv()
                if isinstance(message, Alive):  # it fetches its data, and shows how far it is
                    continue
                waiting.remove(pipe)
                yield pipe, message
            except (EOFError, OSError):
                waiting.remove(pipe)
                process.join(5)
                code = process.exitcode or 0
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                hint = ", as where memory runs out" if code == -signal.SIGKILL else ""
                yield pipe, DryRunResult(number, None, (f"conf: must train; its process ended by {how}{hint}",), 0)


def _spec(plan: Plan, number: int, attempt: Attempt, device: str) -> TrialSpec:
    study = plan.settings.study
    return TrialSpec(
        study=plan.name,
        number=number,
        seed=plan.trial_seed(0),
        config=plan.config(attempt.values),
        metric=study.metric,
        direction=study.direction,
        objective=study.objective,
        folder=Path("/nonexistent/overnight"),  # nothing is written
        every_s=float("inf"),
        device=device,
        keep_weights=False,
    )


# What it means --------------------------------------------------------------------------------------------------------


def _problems(plan: Plan, result: DryRunResult | None) -> list[str]:
    if result is None:
        return []
    problems = list(result.problems)
    metric = plan.settings.study.metric
    if result.metrics is not None and metric not in result.metrics:
        close = nearest(metric, result.metrics) if result.metrics else ""
        close = close if "did you mean" in close else ""
        problems.append(
            f"study.metric: must be a metric that the model logs by the end of an epoch, got {metric!r}; it logged "
            f"{', '.join(result.metrics) or 'none'}{close}"
        )
    return problems


def _too_much(plan: Plan, own_bytes: int) -> list[str]:
    """Whether the largest configuration, in every slot at once, is more than the machine has."""
    slots, total, limit = len(slot_devices(plan.settings.slots)), machine_memory(), plan.settings.trial.memory_gib
    if limit is not None and own_bytes > limit * GIB:
        return [
            f"trial.memory_gib: must hold the largest configuration, which takes {own_bytes / GIB:.2g} GiB, got "
            f"{limit:g}; give it more, or take a smaller space"
        ]
    if own_bytes * slots <= total:
        return []
    fits = int(total // own_bytes)
    remedy = f"take slots={fits}, or a smaller space" if fits else "take a smaller space"
    return [
        f"slots: {slots} trials of the largest configuration must fit into the machine's {total / GIB:.3g} GiB, and "
        f"each takes {own_bytes / GIB:.3g}; {remedy}"
    ]
