"""`python -m benchmarks.search [--quick] [--seeds N] [--slots N ...] [--sides SIDE ...] [TABLE ...]`: compare searches.

It writes SEARCH.md. With names of tables, with --sides or with --quick, the figures are only printed. Otherwise a few
real studies are run as well, to compare them with simulated ones.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import results
from benchmarks.search import picture, real, report
from benchmarks.search.compare import SLOTS, compare
from benchmarks.search.sides import OPTUNA, OURS, SIDES
from benchmarks.search.tables import read_all

SEEDS = 20
REAL_SEEDS = 5  # of the real studies


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="TABLE", help="default: all in benchmarks/tables")
    parser.add_argument("--quick", action="store_true", help="one table, one slot, three seeds")
    parser.add_argument("--seeds", type=int, help=f"default: {SEEDS}, or 3 with --quick")
    parser.add_argument("--slots", type=int, nargs="+", help=f"default: {SLOTS}, or 1 with --quick", default=[])
    parser.add_argument(
        "--sides", nargs="+", metavar="SIDE", default=[], help=f"run these alone and write nothing: {', '.join(SIDES)}"
    )
    arguments = parser.parse_args()
    tables = {table.name: table for table in read_all()}
    unknown = [name for name in arguments.names if name not in tables]
    if unknown:
        parser.error(f"must be among {', '.join(tables)}, got {', '.join(unknown)}")
    unknown = [side for side in arguments.sides if side not in SIDES]
    if unknown or (arguments.sides and not (OURS in arguments.sides and {*OPTUNA} & {*arguments.sides})):
        parser.error(f"--sides must name {OURS} and at least one of {', '.join(OPTUNA)}, got {arguments.sides}")
    chosen = [tables[name] for name in arguments.names or tables]
    if arguments.quick:
        chosen = chosen[:1]
    machine = results.machine()
    slots = arguments.slots or (SLOTS[:1] if arguments.quick else SLOTS)
    found = compare(chosen, arguments.seeds or (3 if arguments.quick else SEEDS), slots, say, arguments.sides)
    for table in chosen:
        say(f"\n{table.name}\n{report.sides(found, table)}")
    for name, goal in report.GOALS.items():
        say(f"\nhalving over Optuna's combinations, epochs to the {name}\n{report.ratios(found, goal)}")
    say(report.verdict(found))
    if not arguments.quick and not arguments.names and not arguments.sides:
        trained = real.compare_with_real(tables[real.TABLE], REAL_SEEDS, found.seeds)
        say(f"\n{report.predicted_and_real(trained)}")
        drawn = picture.draw(found, slots[0])
        command = " ".join(["python -m benchmarks.search", *sys.argv[1:]])
        say(f"written: {report.write(found, trained, machine, command, drawn)}, {drawn}")
    return 0


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
