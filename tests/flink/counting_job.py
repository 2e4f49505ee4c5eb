"""A small endless pipeline for the tests of the cluster: keys that count in their state, and write their counts down.

python -m tests.flink.counting_job --out FILE [--keys N] [Beam's options]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.coders import VarIntCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

_SECONDS = 0.2
_HOUR = 3600.0


class Line(NamedTuple):
    """What a key wrote down."""

    key: str
    count: int
    """How far its state had counted."""
    pid: int
    """The worker that counted."""


def read(file: Path) -> list[Line]:
    """What was written so far."""
    if not file.exists():
        return []
    whole = [line.split() for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Line(key, int(count), int(pid)) for key, count, pid in whole]


class _CountDoFn(beam.DoFn):
    TOTAL = ReadModifyWriteStateSpec("total", VarIntCoder())
    TICK = TimerSpec("tick", TimeDomain.REAL_TIME)

    def __init__(self, out: str) -> None:
        self._out = out

    def process(self, element: tuple[str, bytes], tick: Any = beam.DoFn.TimerParam(TICK)) -> None:
        print(f"key {element[0]} starts in {os.getpid()}")
        tick.set(Timestamp.now())

    @on_timer(TICK)
    def on_tick(
        self,
        key: Any = beam.DoFn.KeyParam,
        total: Any = beam.DoFn.StateParam(TOTAL),
        tick: Any = beam.DoFn.TimerParam(TICK),
    ) -> Iterator[None]:
        count = (total.read() or 0) + 1
        total.write(count)
        with Path(self._out).open("a") as file:
            file.write(f"{key} {count} {os.getpid()}\n")
        tick.set(Timestamp.now() + _SECONDS)
        yield None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--keys", type=int, default=2)
    given, others = parser.parse_known_args()
    options = PipelineOptions(
        others,
        streaming=True,
        max_bundle_time_mills=50,
        finish_bundle_before_checkpointing=True,
        save_main_session=False,
    )
    keys = [f"key-{number}" for number in range(given.keys)]
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | PeriodicImpulse(start_timestamp=Timestamp.now(), fire_interval=_HOUR)
            | beam.FlatMap(lambda _: [(key, b"") for key in keys]).with_output_types(tuple[str, bytes])
            | beam.ParDo(_CountDoFn(given.out))
        )


if __name__ == "__main__":
    main()
