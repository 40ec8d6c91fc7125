"""What a worker runs for somebody else: a frozen plan is looked through, whole, before anything of it is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from optuna.distributions import CategoricalDistribution

from overnight.config.import_allowlist import (
    PACKAGES,
    list_problems,
    problems_of,
    target_problem,
    trainer_problems,
    trusted_packages,
)
from overnight.config.sections import SEARCHABLE, Settings
from overnight.search.plan import Plan


def problems(plan: Plan) -> list[str]:
    """What of a plan this machine's operator does not trust, one line each, all of it; imports nothing.

    A trial brings values, or a config, of its own from the ledger: those are checked when it is built, in a process
    that `trusted.guard` guards.
    """
    found = list_problems()
    for variant in plan.variants.values():
        found += [*problems_of(variant), *trainer_problems(variant.get("trainer") or {})]
    for location, key, value in _values(plan):
        found += _value_problems(location, key, value)
    settings = plan.settings
    if settings.notify.command is not None or settings.notify.urls:
        found.append("notify: must not come with a study, got a command or addresses; a worker's operator sets its own")
    if settings.sampler.name == "cma_es" and "cmaes" not in trusted_packages():
        found.append(
            f"sampler: must not be cma_es for a worker, which would load its state as a pickle from the ledger; take "
            f"sampler=tpe, or the operator can add cmaes to {PACKAGES}"
        )
    return list(dict.fromkeys(found))


def adopted(plan: Plan, own: Settings) -> Plan:
    """The plan as a worker runs it: what belongs to a machine and to its operator is that of `own`, the worker's.

    That is home, stores, slots, notifications, room on the disk and sleep; and no folder of the launcher's is read.
    """
    machine = (
        "home",
        "storage",
        "tracking",
        "found_location",
        "slots",
        "launcher",
        "notify",
        "min_free_mib",
        "stay_awake",
    )
    settings = replace(plan.settings, **{name: getattr(own, name) for name in machine})
    return replace(plan, settings=settings, config_dir=None)


def _values(plan: Plan) -> Iterator[tuple[str, str, Any]]:
    """All that may be put into a config besides what is written: where it stands, its key, and the value."""
    for p in plan.space.parameters:
        drawn = p.options or (p.each.choices if isinstance(p.each, CategoricalDistribution) else (0.0,))
        for value in drawn:
            yield f"search.{p.key}", p.key, value if p.length is None else [value]
    for where, entries in (("study.enqueue", plan.settings.study.enqueue), ("study.warm_start_from", plan.warm_start)):
        for location, entry in enumerate(entries):
            for key, value in entry.items():
                yield f"{where}[{location}].{key}", key, value


def _value_problems(location: str, key: str, value: Any) -> list[str]:
    if not re.fullmatch(r"\w+(\.\w+)*", key) or key.split(".")[0] not in SEARCHABLE:
        return [f"{location}: must be a dotted key of {', '.join(SEARCHABLE)}, got {key!r}"]
    if key.split(".")[-1] == "_target_":
        problem = target_problem(location, value)
        return [problem] if problem else []
    if key.split(".")[0] == "trainer":
        return [f"{location}: {p}" for p in trainer_problems({key.partition(".")[2]: value})]
    return problems_of(value, location)
