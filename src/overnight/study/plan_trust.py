"""Whether a worker may run the plan of another user. The whole plan is checked before anything of it is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from overnight.config.import_allowlist import (
    PACKAGES,
    config_problems,
    optuna_object_problems,
    package_list_problems,
    target_problem,
    trainer_problems,
    trusted_packages,
)
from overnight.config.settings import SEARCHABLE, Settings
from overnight.search.plan import Plan, Start

# Settings that belong to a machine and its operator, not to a study.
_MACHINE_SETTINGS = (
    "home",
    "import_path",
    "storage",
    "tracking",
    "found_location",
    "slots",
    "launcher",
    "notify",
    "min_free_mib",
    "stay_awake",
)


def find_problems(plan: Plan) -> list[str]:
    """Return everything in a plan that this machine's operator does not trust, one line each. Imports nothing.

    The study storage may give a trial other values, or a whole configuration. Those are checked when the trial is
    built, in a process that `import_allowlist.enable_guard` guards.
    """
    found = package_list_problems()
    for variant in plan.variants.values():
        found += [*config_problems(variant), *trainer_problems(variant.get("trainer") or {})]
    for source, key, value in _values(plan):
        found += _value_problems(source, key, value)
    settings = plan.settings
    if settings.notify.command is not None or settings.notify.urls:
        found.append("notify: must not come with a study, got a command or addresses; a worker's operator sets its own")
    for name, target in (("sampler", settings.sampler.target), ("scheduler", settings.scheduler.target)):
        found += optuna_object_problems(target or {}, name)
    is_cma_es = settings.sampler.name == "cma_es" or "CmaEsSampler" in repr(settings.sampler.target)
    if is_cma_es and "cmaes" not in trusted_packages():
        found.append(
            f"sampler: must not be cma_es for a worker, which would load its state as a pickle from the study storage; "
            f"take sampler=tpe, or the operator can add cmaes to {PACKAGES}"
        )
    return list(dict.fromkeys(found))


def for_machine(plan: Plan, own: Settings) -> Plan:
    """Return the plan as a worker with the settings `own` runs it. No folder of the launching machine is read."""
    settings = replace(plan.settings, **{name: getattr(own, name) for name in _MACHINE_SETTINGS})
    return replace(plan, settings=settings, config_dir=None, start=Start())


def _values(plan: Plan) -> Iterator[tuple[str, str, Any]]:
    """Yield every value that may replace one of the baseline: where it comes from, its key, and the value."""
    for p in plan.space.parameters:
        values = p.options or (0.0,)
        for value in values:
            yield f"search.{p.key}", p.key, value if p.length is None else [value]
    for source, entries in (("study.enqueue", plan.settings.study.enqueue), ("study.warm_start_from", plan.warm_start)):
        for i, entry in enumerate(entries):
            for key, value in entry.items():
                yield f"{source}[{i}].{key}", key, value


def _value_problems(source: str, key: str, value: Any) -> list[str]:
    if not re.fullmatch(r"\w+(\.\w+)*", key) or key.split(".")[0] not in SEARCHABLE:
        return [f"{source}: must be a dotted key of {', '.join(SEARCHABLE)}, got {key!r}"]
    if key.split(".")[-1] == "_target_":
        problem = target_problem(source, value)
        return [problem] if problem else []
    if key.split(".")[0] == "trainer":
        return [f"{source}: {p}" for p in trainer_problems({key.partition(".")[2]: value})]
    return config_problems(value, source)
