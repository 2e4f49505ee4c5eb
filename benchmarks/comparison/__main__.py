"""Feeds the same messages to the same support agent written with several frameworks, kills each, and counts.

    python -m benchmarks.comparison.install build/rivals
    python -m benchmarks.comparison --messages 500 --kills 5 --out comparison

prints a table in Markdown and writes `comparison.json`, with logs of every call beside it. README.md says what is
counted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison.systems import SYSTEMS
from benchmarks.comparison.table import table
from benchmarks.comparison.trial import carry_out
from runners.kafka import KafkaServer


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if every system came to its end."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--messages", metavar="N", type=int, default=500, help="(%(default)s)")
    made.add_argument("--kills", metavar="N", type=int, default=5, help="of each system (%(default)s)")
    made.add_argument("--rate", metavar="N", type=float, default=4.0, help="messages a second (%(default)s)")
    made.add_argument(
        "--patience", metavar="S", type=float, default=300.0, help="seconds without a reply that end it (%(default)s)"
    )
    made.add_argument("--systems", choices=SYSTEMS, metavar="NAME", nargs="+", default=list(SYSTEMS), help="only these")
    made.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="for logs and figures; must be new")
    given = made.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what runs is taken down on the way out
    out = given.out.absolute()
    out.mkdir(parents=True)
    outcomes = []
    failed = 0
    with KafkaServer() as kafka:
        for name in given.systems:
            print(f"{name}", flush=True)
            folder = out / name.lower().replace(",", "").replace(" ", "-")
            try:
                outcome = carry_out(
                    SYSTEMS[name],
                    kafka.servers,
                    folder,
                    count=given.messages,
                    kills=given.kills,
                    rate=given.rate,
                    patience=given.patience,
                )
            except (RuntimeError, FileNotFoundError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                failed += 1
                continue
            print(f"  {outcome!r}", flush=True)
            outcomes.append(outcome)
            (out / "comparison.json").write_text(json.dumps([each.model_dump() for each in outcomes], indent=2))
    print(table(outcomes))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
