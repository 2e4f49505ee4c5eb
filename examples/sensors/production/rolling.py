"""Beam's windows: the last minute of each device, every ten seconds, as rows of the table `rolling`.

They stand beside the agents and not before them. An agent's event has to be the same when it is read again, and what a
window holds at the moment when it fires is not: after a crash it may fire with a reading less, and with it a moment
later. A row of a table is replaced then, and in the end is right; and an agent looks it up when it needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import apache_beam as beam
from apache_beam.transforms.trigger import AccumulationMode
from apache_beam.transforms.window import SlidingWindows, TimestampedValue
from pydantic import BaseModel

from beam_agents.io import Identified
from examples.sensors.production.readings import Readings

LENGTH = timedelta(minutes=1)
EVERY = timedelta(seconds=10)
LATENESS = timedelta(minutes=10)
"""A reading that comes later than this is in no window; the agents see it all the same."""

_UNIT = 1_000_000  # values are summed as whole millionths, so that what is taken back leaves nothing

Weighted: TypeAlias = tuple[int, float]
"""A value, and 1 if it counts or -1 if it does not any more."""
Sums: TypeAlias = tuple[int, int, int]
"""How many, their sum, the sum of their squares."""


class Rolling(BaseModel):
    """What stands in the table, beside the device."""

    ending: datetime
    readings: int
    mean: float | None
    std: float | None


class Level(beam.CombineFn):
    """Count, mean and standard deviation."""

    def create_accumulator(self) -> Sums:
        return (0, 0, 0)

    def add_input(self, sums: Sums, weighted: Weighted) -> Sums:
        weight, value = weighted[0], round(weighted[1] * _UNIT)
        return self.merge_accumulators([sums, (weight, weight * value, weight * value * value)])

    def merge_accumulators(self, accumulators: Iterable[Sums]) -> Sums:
        count, total, squares = (sum(column) for column in zip(*accumulators, strict=True))
        return count, total, squares

    def extract_output(self, sums: Sums) -> dict[str, Any]:
        count, total, squares = sums
        if count < 1:
            return {"readings": 0, "mean": None, "std": None}
        spread = max(0, count * squares - total * total)
        std = math.sqrt(spread / (count * (count - 1))) / _UNIT if count > 1 else None
        return {"readings": count, "mean": round(total / count / _UNIT, 6), "std": std and round(std, 6)}


class RollingLevels(beam.PTransform[Any, Any]):
    """Changes of readings by device -> (device, `Rolling`), again whenever it changes.

    A corrected reading counts as it is now: the change tells what it was before, and that is taken back.
    """

    def expand(self, changes: beam.PCollection[Any]) -> beam.PCollection[Any]:
        """Builds the stages."""
        return (
            changes
            | "Weigh" >> beam.FlatMap(weighted).with_output_types(tuple[str, Weighted])
            | "Windows"
            >> beam.WindowInto(
                SlidingWindows(LENGTH.total_seconds(), EVERY.total_seconds()),
                allowed_lateness=LATENESS.total_seconds(),
                accumulation_mode=AccumulationMode.ACCUMULATING,
            )
            | "Level" >> beam.CombinePerKey(Level())
            | "Row" >> beam.MapTuple(_row).with_output_types(tuple[str, Rolling])
        )


def weighted(element: tuple[str, Identified[Readings]]) -> Iterator[TimestampedValue]:
    """What a change adds and takes back, at the time of the reading."""
    change = element[1].event
    for row, weight in ((change.before, -1), (change.after, 1)):
        if row is not None:
            yield TimestampedValue((row.device, (weight, row.value)), row.taken.timestamp())


def _row(device: str, level: dict[str, Any], window: Any = beam.DoFn.WindowParam) -> tuple[str, Rolling]:
    return device, Rolling(ending=datetime.fromtimestamp(float(window.end), UTC), **level)
