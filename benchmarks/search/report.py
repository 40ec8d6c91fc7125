"""Write SEARCH.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.commands import ROOT
from benchmarks.search.compare import MAIN, TRAININGS, Comparison, Goal, budget
from benchmarks.search.measure import Estimate
from benchmarks.search.real import TABLE, Quantity
from benchmarks.search.sides import OURS
from benchmarks.search.tables import Table

PATH = ROOT / "benchmarks" / "SEARCH.md"
GOALS = {
    "top 1%": Goal(0.01),
    "top 5%": Goal(0.05),
    "top 1%, kept": Goal(0.01, kept=True),
    "top 1%, complete": Goal(0.01, strict=True),
}
LIMIT = 0.6  # of the ratio of the epochs to the top 1%, the mean over the tables

_ABOUT = """\
How many epochs a search trains until it has found one of the best configurations. Nothing is trained here: the
learning curves are in `benchmarks/tables`, each configuration of a grid trained with three seeds by the tool itself,
and all sides search the same tables through one simulated loop. A search sees the curve of one of the three trainings
of a configuration, chosen at random.

**Incumbent**: the trial whose latest value is the best at the time, whether it runs, is paused, was stopped or is
complete; of equal values, the one of the trial that trained longer, then the earlier one. Its quality is the mean final
value of the three trainings of its configuration, which the search does not know: the best value of one training is
partly luck. The same for all sides.

**Epochs to the top 1%**: all epochs that were trained, in all slots, when the incumbent's quality was first among
the best 1% of the table's. Rows of equal quality are in or out together. A search is cut at the price of
{trainings} whole trainings; *not within* means that it had not got there, and counts as that price in means.
*Kept* is the time from which on the incumbent was always that good: where many trials have trained for few epochs, it
changes often, and may be a good one by chance for a moment. *Complete* means that only complete trials can be the
incumbent.

**Sides**. All train the table's first configuration first, which is that of `conf/`. All draw a point again, up to ten
times, that an earlier trial has: Optuna's by asking again, the others at random, as `overnight` does.
- halving: quota halving of `overnight.search.schedulers`, with TPE on the values at one rung.
- random: random points, each trained to the end.
- TPE: Optuna's `TPESampler(multivariate=True, group=True, constant_liar=True)`, without a pruner or with
  `MedianPruner(n_startup_trials=5, n_warmup_steps=5)`,
  `HyperbandPruner(min_resource=1, max_resource={epochs}, reduction_factor=3)`, or
  `SuccessiveHalvingPruner(min_resource=1)`; by `ask`, `report`, `should_prune` and `tell`.
- ASHA (Li et al. 2020, reduction factor 3) and PASHA (Bohdal et al. 2023), with random points; promoted
  trials resume.
- ASHA, our points; halving, random points: what scheduler and sampler each bring.

**Figures**. Medians over the seeds with 95% bootstrap intervals. Ratios are of means over the seeds, cut at the budget,
with 95% bootstrap intervals that resample the seeds in pairs. The *best* combination of TPE and a pruner needed the
fewest epochs, the mean over all tables; it is chosen for each goal and number of slots with the same seeds. The *best
on each table* is chosen for each table as well. Nobody can make this choice before the search."""


def write(found: Comparison, real: Sequence[Quantity], machine: str, command: str, picture: Path) -> Path:
    PATH.write_text("\n\n".join(_parts(found, real, machine, command, picture)) + "\n")
    return PATH


def _parts(found: Comparison, real: Sequence[Quantity], machine: str, command: str, picture: Path) -> Iterator[str]:
    epochs = found.tables[0].max_epochs
    yield "# Search quality"
    yield _ABOUT.format(trainings=TRAININGS, epochs=epochs)
    yield f"`{command}`: {found.seeds} seeds, {len(found.tables)} tables. {machine}."
    yield "## Halving over Optuna's combinations"
    yield "The mean over the tables, with the best combination in bold."
    for name, goal in GOALS.items():
        yield f"Epochs to the {name}:"
        yield ratios(found, goal)
    yield verdict(found)
    yield f"## Each side over the best combination of Optuna, slots {found.slots[0]}"
    yield "The mean over the tables."
    yield every_side(found)
    yield f"![Regret of the incumbent over the epochs trained, one panel for each table]({picture.name})"
    yield "## Predicted and real"
    yield (
        f"Real studies of `overnight tune` on the grid of {TABLE}, with halving, one slot and the same budget, against "
        f"simulated ones; mean ± standard deviation over {len(real[0].real)} and {len(real[0].simulated)} seeds. All "
        "dimensions are choices, in both."
    )
    yield predicted_and_real(real)
    for table in found.tables:
        yield f"## {table.name}"
        yield _about(table)
        yield sides(found, table)


def ratios(found: Comparison, goal: Goal) -> str:
    """Return the ratios to each combination of Optuna, for one goal, as a table."""
    rows = [["over", *(f"slots {n}" for n in found.slots)]]
    best = [found.best_of_optuna(found.tables, n, goal) for n in found.slots]
    for side in found.of_optuna:
        cells = [_estimate(found.ratio(found.tables, n, goal, other=side)) for n in found.slots]
        rows.append([side, *(f"**{c}**" if side == b else c for c, b in zip(cells, best, strict=True))])
    rows.append(["the best on each table", *(_estimate(found.ratio(found.tables, n, goal)) for n in found.slots)])
    return markdown(rows)


def every_side(found: Comparison) -> str:
    """Return the mean ratios of all sides, for the first number of slots."""
    rows = [["side", *GOALS]]
    for side in found.sides:
        cells = []
        for goal in GOALS.values():
            best = found.best_of_optuna(found.tables, found.slots[0], goal)
            cells.append(_estimate(found.ratio(found.tables, found.slots[0], goal, side, best)))
        rows.append([f"**{side}**" if side == OURS else side, *cells])
    return markdown(rows)


def verdict(found: Comparison) -> str:
    """Return whether the limit is met, for each number of slots."""
    parts, goal = [], GOALS["top 1%"]
    for n in found.slots:
        best = found.best_of_optuna(found.tables, n, goal)
        value = found.ratio(found.tables, n, goal, other=best).value
        parts.append(f"slots {n}: {value:.2f} of {best}, {'met' if value <= LIMIT else 'missed'}")
    return f"Limit: at most {LIMIT} of the best combination's epochs to the top 1%. {'; '.join(parts)}."


def predicted_and_real(quantities: Sequence[Quantity]) -> str:
    """Return the figures of real and of simulated studies as a table."""

    def text(values: Sequence[float]) -> str:
        digits = 4 if max(values) < 2 else 1
        return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    rows = [["figure", "simulated", "real", "difference in standard errors"]]
    rows += [[q.name, text(q.simulated), text(q.real), f"{q.difference:+.1f}"] for q in quantities]
    return markdown(rows)


def sides(found: Comparison, table: Table) -> str:
    """Return the figures of all sides on one table."""
    first, *others = found.slots
    goal, most = GOALS["top 1%"], budget(table)
    rows = [
        [
            "side",
            *GOALS,
            *(f"top 1%, slots {n}" for n in others),
            "top 1% within",
            "regret at the end",
            "complete",
            "trials",
        ]
    ]
    for side in found.sides:
        medians = [_epochs(found.median(table, first, side, g), most) for g in GOALS.values()]
        for n in others:
            medians.append(_epochs(found.median(table, n, side, goal), most) if side in MAIN else "")
        within = sum(value < math.inf for value in found.epochs(table, first, side, goal))
        regrets = [f"{found.regret(table, first, side, most, strict):.4f}" for strict in (False, True)]
        trials = statistics.median_low(o.trials for o in found.outcomes[table.name, first, side])
        name = f"**{side}**" if side == OURS else side
        rows.append([name, *medians, f"{within} of {found.seeds}", *regrets, str(trials)])
    return markdown(rows)


def _about(table: Table) -> str:
    counts = [sum(v >= table.threshold(share) for v in table.finals) for share in (0.01, 0.05)]
    dimensions = "; ".join(f"{d.name} {', '.join(map(str, d.levels))}" for d in table.dimensions)
    halves = ", ".join(f"{table.in_better_half(0.05, e):.0%} after {e}" for e in (1, 2, 4, 8))
    return (
        f"{len(table.rows)} configurations of {table.max_epochs} epochs, {table.metric}. {dimensions}.\n\n"
        f"The best quality is {table.finals[0]:.4f}; {counts[0]} rows reach the top 1%, from "
        f"{table.threshold(0.01):.4f}, and {counts[1]} the top 5%, from {table.threshold(0.05):.4f}. The first "
        f"configuration has {table.final(table.first):.4f}. Of the top 5%, so many are in the better half by "
        f"their values early on: {halves} epochs. The final values of one configuration of the top 5% have a standard "
        f"deviation of {table.spread(0.05):.4f} over the seeds. A search that trained every row to the end would lead "
        f"with one of the top 1% with probability {table.lasting(0.01):.2f}, and of the top 5% with "
        f"{table.lasting(0.05):.2f}; the rest of the time another row was luckier.\n\n"
        f"Made by `{table.made.get('command')}` in {table.made.get('seconds')} s: {table.made.get('machine')}.\n\n"
        "Columns that name no slots are for the first number of slots."
    )


def _estimate(e: Estimate) -> str:
    return f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"


def _epochs(e: Estimate, most: int) -> str:
    def text(value: float) -> str:
        return f"{value:.0f}" if value < math.inf else f">{most}"

    if e.value == math.inf:
        return f"not within {most}" + ("" if e.low == math.inf else f" [{text(e.low)}, ]")
    return f"{text(e.value)} [{text(e.low)}, {text(e.high)}]"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells, the first being the head, as a table."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
