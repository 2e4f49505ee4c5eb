"""`python -m tests.simulator --seeds 0:1000`: runs schedules, and says what must not have happened."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from multiprocessing import Pool

from tests.simulator.runner import Simulation
from tests.simulator.schedule import Schedule, schedule_of, smaller
from tests.simulator.watch import Watch


def simulate(schedule: Schedule, *, verbose: bool = False) -> Watch:
    """Runs one schedule."""
    return Simulation(schedule, verbose=verbose).run()


def shrink(schedule: Schedule, limit: int = 400) -> Schedule:
    """The smallest schedule found that still fails; no more than `limit` are tried."""
    tried = 0
    while True:
        for candidate in smaller(schedule):
            tried += 1
            if tried > limit:
                return schedule
            if simulate(candidate).violations:
                schedule = candidate
                break
        else:
            return schedule


def _one(seed: int) -> tuple[int, list[str], Counter[str]]:
    try:
        watch = simulate(schedule_of(seed))
    except Exception as error:
        return seed, [f"the simulator broke: {error!r}"], Counter()
    return seed, watch.violations, watch.counts


def _collect_less() -> None:
    """What is imported never goes away, and a schedule makes much that goes away at once."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="FIRST:END")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--shrink", action="store_true", help="make failing schedules smaller")
    parser.add_argument("--verbose", action="store_true", help="print what happens, line by line")
    parser.add_argument("--ignore", action="append", default=[], help="leave out violations with this text")
    parser.add_argument("--most", type=int, default=20, help="stop after so many failing seeds")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return _show(schedule_of(arguments.seed), verbose=arguments.verbose, shrinks=arguments.shrink)
    first, _, end = arguments.seeds.partition(":")
    seeds = range(int(first), int(end))
    began, counts, failed = time.monotonic(), Counter[str](), 0
    with Pool(arguments.jobs, initializer=_collect_less) as pool:
        for seed, violations, counted in pool.imap_unordered(_one, seeds, chunksize=50):
            counts.update(counted)
            counts["schedules"] += 1
            violations = [said for said in violations if not any(text in said for text in arguments.ignore)]
            if violations:
                failed += 1
                print(f"seed {seed}: {violations[:3]}", flush=True)
                if arguments.shrink:
                    _show(schedule_of(seed), verbose=arguments.verbose, shrinks=True)
                if failed >= arguments.most:
                    break
    took = time.monotonic() - began
    for name, number in sorted(counts.items()):
        print(f"{name:24} {number:12,}")
    print(f"{'failing schedules':24} {failed:12,}\n{took:.0f} s, {counts['schedules'] / took:.0f} schedules a second")
    return 1 if failed else 0


def _show(schedule: Schedule, *, verbose: bool, shrinks: bool) -> int:
    if shrinks:
        schedule = shrink(schedule)
    watch = simulate(schedule, verbose=verbose)
    print(schedule)
    for line in watch.trace or ():
        print(line)
    for violation in watch.violations:
        print("VIOLATION", violation)
    return 1 if watch.violations else 0


if __name__ == "__main__":
    sys.exit(main())
