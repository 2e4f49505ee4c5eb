"""Measures how exactly sleeps, tools' timeouts and deadlines are kept while calls are in flight.

    python -m benchmarks.timers --runner FnApiRunner PrismRunner flink --events 300

Events come at a steady rate over 20 keys; a third each sleep for 1 s, wait for a tool that hangs beyond its timeout of
1 s, and have a budget of 1 s for a call that hangs. Printed are p50 and p99 in milliseconds of

- sleep: a clock before and after `ctx.sleep`, less what was asked for;
- step: a clock before and after the call of the tool, less its timeout;
- deadline: from the run's open to its end in the ledger, less its budget;
- deadline seen: from the run's open until a sink has the failure, less the budget;
- end to sink: from the end of each run in the ledger until a sink has the outcome.

FnApiRunner gets all events at once as bounded input, and emits nothing before the last run of a bundle has ended: the
last two columns are the length of a bundle there. The first three contain two or more commits of the SQLite ledger.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.timers.figures import Figures, table
from benchmarks.timers.runs import on_batch, on_flink, on_prism

_RUNNERS: dict[str, Callable[[int, float], Figures]] = {
    "FnApiRunner": on_batch,
    "PrismRunner": on_prism,
    "flink": on_flink,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--runner", choices=_RUNNERS, nargs="+", default=["FnApiRunner"], help="(FnApiRunner)")
    made.add_argument("--events", metavar="N", type=int, default=60, help="on each runner (%(default)s)")
    made.add_argument("--rate", metavar="N", type=float, default=10, help="events a second (%(default)s)")
    made.add_argument("--out", metavar="F.json", type=Path, help="a file for the figures")
    given = made.parse_args(argv)
    if given.events < 3 or given.rate <= 0:
        made.error(f"--events={given.events} must be 3 or more, --rate={given.rate:g} above 0")
    measured = [_RUNNERS[runner](given.events, given.rate) for runner in given.runner]
    print(table(measured))
    if given.out is not None:
        given.out.write_bytes(TypeAdapter(list[Figures]).dump_json(measured, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
