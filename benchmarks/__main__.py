"""`python -m benchmarks [--quick] [--repeats N] [NAME ...]`: run benchmarks, print their figures, write RESULTS.md.

The exit code is 1 if a gate failed or a side did not run, because then there are no figures. A missed limit is printed
and is no failure, because other load on the machine can cause it.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import overhead, results, scale, start, step, throughput
from benchmarks.interleave import Clock, GateFailed, Summary, run, summarise

ALL = {"throughput": throughput, "overhead": overhead, "start": start, "scale": scale, "step": step}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ALL)}; default: all")
    parser.add_argument(
        "--quick", action="store_true", help="run small benchmarks once, for their gates; do not write RESULTS.md"
    )
    parser.add_argument("--repeats", type=int, help="rounds of each benchmark; default: 5, or 1 with --quick")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in ALL]
    if unknown:
        parser.error(f"must be among {', '.join(ALL)}, got {', '.join(unknown)}")
    benchmarks = [ALL[name].benchmark(arguments.quick) for name in arguments.names or ALL]
    clock = Clock(benchmarks, arguments.repeats or (1 if arguments.quick else 5))
    machine = results.machine()
    report(machine)
    found: dict[str, list[Summary]] = {}
    failed: list[str] = []
    for benchmark in benchmarks:
        try:
            found[benchmark.name] = summarise(benchmark.figures, run(benchmark, clock, report))
        except (GateFailed, RuntimeError) as error:  # the command of a side failed
            why = "its gate failed" if isinstance(error, GateFailed) else "a side did not run"
            failed.append(f"{benchmark.name}: no figure, {why}: {error}")
            clock.failed.add(benchmark.name)
            clock.round_began = None
            report(failed[-1])
        else:
            report(results.table(found[benchmark.name]))
    if not arguments.quick and not arguments.names and not failed:
        report(f"written: {results.write(machine, benchmarks, found, clock.repeats)}")
    for line in (*results.missed_limits(found), *failed):
        report(line)
    return 1 if failed else 0


def report(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
