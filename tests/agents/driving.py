"""Runs an agent over events on each of the drivers, and collects all that comes out."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import GlobalWindows, TimestampedValue

from beam_agents import RunAgent

BATCH = "batch"
BATCH_REPEATED = "batch, each bundle twice"
STREAM = "stream"
DRIVERS = (BATCH, BATCH_REPEATED, STREAM)

TAGS = ("results", "failures", "duplicates", "trace", "emitted")

_SEEN: dict[str, Placed] = {}
"""All values that any attempt at any bundle put out. They stay in the process, so they are as the agent made them."""

_STORED: dict[str, list[Placed]] = {}


@dataclass(frozen=True)
class Placed:
    """A value with its key, time and window."""

    key: Any
    value: Any
    seconds: float
    window: Any


@dataclass
class Outputs:
    """All that a pipeline's agent put out."""

    results: list[Placed] = field(default_factory=list)
    failures: list[Placed] = field(default_factory=list)
    duplicates: list[Placed] = field(default_factory=list)
    trace: list[Placed] = field(default_factory=list)
    emitted: list[Placed] = field(default_factory=list)

    @property
    def ends(self) -> int:
        """How many events came to an end."""
        return len(self.results) + len(self.failures) + len(self.duplicates)

    @property
    def outputs(self) -> dict[str, Any]:
        """Output by run id."""
        return {placed.value.run_id: placed.value.output for placed in self.results}

    @property
    def reasons(self) -> dict[str | None, str]:
        """Reason by run id."""
        return {placed.value.run_id: placed.value.reason.value for placed in self.failures}


class _Place(beam.DoFn):
    def process(self, element: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam):
        key, value = element
        name = uuid.uuid4().hex
        _SEEN[name] = Placed(key, value, timestamp.micros / 1e6, window)
        yield name


def _store_all(names: list[str], token: str) -> None:
    _STORED[token] = [_SEEN[name] for name in names]


def _store_one(name: str, token: str) -> None:
    _STORED.setdefault(token, []).append(_SEEN[name])


def collect(pcoll: Any, token: str) -> None:
    """Stores a PCollection's elements for `collected`; a bundle that runs twice stores them once."""
    placed = pcoll | f"Place {token}" >> beam.ParDo(_Place())
    if pcoll.is_bounded:
        names = placed | f"Unwindow {token}" >> beam.WindowInto(GlobalWindows())
        _ = names | f"List {token}" >> beam.combiners.ToList() | f"Store {token}" >> beam.Map(_store_all, token)
    else:
        _ = placed | f"Store {token}" >> beam.Map(_store_one, token)


def collected(token: str) -> list[Placed]:
    """What `collect` stored."""
    return sorted(_STORED.pop(token, []), key=lambda placed: (placed.seconds, str(placed.value)))


def options_of(driver: str) -> PipelineOptions:
    """The options of a driver."""
    if driver == STREAM:
        return PipelineOptions(["--runner=BundleBasedDirectRunner", "--streaming"])
    repeat = ["--direct_runner_bundle_repeat=1"] if driver == BATCH_REPEATED else []
    return PipelineOptions(["--runner=FnApiRunner", *repeat])


def pairs(pipeline: beam.Pipeline, driver: str, elements: Sequence[Any]) -> Any:
    """(element, seconds) as a PCollection of the elements at their time, bounded or not. It has no type hints."""
    stamped = [TimestampedValue(element, seconds) for element, seconds in elements]
    if driver != STREAM:
        return pipeline | "Events" >> beam.Create(stamped, reshuffle=False) | "Stamp" >> beam.Map(_same)
    stream = TestStream()
    for one in stamped:
        stream.add_elements([one])
    return pipeline | "Events" >> stream.advance_watermark_to_infinity()


def _same(element: Any) -> Any:
    return element


def run(
    agent: Any,
    elements: Iterable[Any],
    driver: str = BATCH,
    *,
    event_id: Any = "txn_id",
    before: Callable[[Any], Any] | None = None,
    **run_agent: Any,
) -> Outputs:
    """Runs `RunAgent` on elements: (key, event), or those with their time in seconds as `At`."""
    token = uuid.uuid4().hex
    placed = [(element.element, element.seconds) if isinstance(element, At) else (element, 1.0) for element in elements]
    with beam.Pipeline(options=options_of(driver)) as pipeline:
        events = pairs(pipeline, driver, placed)
        if before is not None:
            events = before(events)
        out = events | RunAgent(agent, event_id=event_id, **run_agent)
        for tag in TAGS:
            collect(getattr(out, tag), f"{token} {tag}")
    return Outputs(**{tag: collected(f"{token} {tag}") for tag in TAGS})


@dataclass(frozen=True)
class At:
    """An element at a time."""

    seconds: float
    element: Any
