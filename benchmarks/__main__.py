"""`python -m benchmarks [--quick] [--repeats N] [NAME ...]`: run benchmarks, print their figures, write RESULTS.md.

Exit code 1 where a gate failed or a side did not run: then there is nothing to compare, and no figure. A limit that is
missed is printed as missed and is no failure: on a machine that others use as well, that would say more about them.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import overhead, results, scale, start, step, throughput
from benchmarks.interleave import Clock, GateFailed, Summary, run, summarise

ALL = {"throughput": throughput, "overhead": overhead, "start": start, "scale": scale, "step": step}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(ALL)}; all where none is named")
    parser.add_argument("--quick", action="store_true", help="small, once: the gates; RESULTS.md stays as it is")
    parser.add_argument("--repeats", type=int, help="rounds of each; 5, or 1 with --quick")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in ALL]
    if unknown:
        parser.error(f"must be among {', '.join(ALL)}, got {', '.join(unknown)}")
    benchmarks = [ALL[name].benchmark(asked.quick) for name in asked.names or ALL]
    clock = Clock(benchmarks, asked.repeats or (1 if asked.quick else 5))
    machine = results.machine()
    say(machine)
    found: dict[str, list[Summary]] = {}
    failed: list[str] = []
    for benchmark in benchmarks:
        try:
            found[benchmark.name] = summarise(benchmark.figures, run(benchmark, clock, say))
        except (GateFailed, RuntimeError) as error:  # a command of one side may fail outright
            why = "its gate failed" if isinstance(error, GateFailed) else "a side did not run"
            failed.append(f"{benchmark.name}: no figure, {why}: {error}")
            clock.failed.add(benchmark.name)
            clock.round_began = None
            say(failed[-1])
        else:
            say(results.table(found[benchmark.name]))
    if not asked.quick and not asked.names and not failed:
        say(f"written: {results.write(machine, benchmarks, found, clock.repeats)}")
    for line in (*results.verdicts(found), *failed):
        say(line)
    return 1 if failed else 0


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
