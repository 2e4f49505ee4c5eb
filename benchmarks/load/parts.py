"""The parts of the measurement that need a runner; each gives figures of one runner."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeAlias

from benchmarks.load import ideal
from benchmarks.load.runners import CheckpointsSeen, Job, Runner
from benchmarks.load.server import ChatServer

LOG = logging.getLogger("benchmarks.load")

Figure: TypeAlias = float | int | list[float] | None
Figures: TypeAlias = dict[str, Figure]

LATENCY = 2.0
"""Seconds that a model call takes in the part `in-flight`."""
CALLS = 2
"""Model calls of an event."""

_CURVE_SECONDS = 900.0


@dataclass(frozen=True)
class Wanted:
    """How much is measured."""

    repeats: int
    events: int
    """In a burst that is answered at once."""
    sessions: int = 50_000
    """That are idle while their state is measured."""


def at_once(runner: Runner, _server: ChatServer, wanted: Wanted) -> Figures:
    """The engine's own cost: a model in the process that answers at once, and the bare DoFn."""
    with runner.start("bare") as bare, runner.start("at_once") as ours:
        bare_s, ours_s = in_turn(wanted.repeats, (burst(bare, wanted.events), burst(ours, wanted.events)))
    ratios = [floor / time for floor, time in zip(bare_s, ours_s, strict=True)]
    return {
        "events_per_s_over_bare": median(ratios),
        "events_per_s_over_bare_all": ratios,
        "events_per_s": wanted.events / median(ours_s),
        "events_per_s_bare": wanted.events / median(bare_s),
        "at_once_s_all": ours_s,
        "at_once_bare_s_all": bare_s,
    }


def through_server(runner: Runner, server: ChatServer, wanted: Wanted) -> Figures:
    """The same through the chat server, which answers at once."""
    server.reset()
    with runner.start("bare") as bare, runner.start("server", server=server.base_url) as ours:
        bare_s, ours_s = in_turn(wanted.repeats, (burst(bare, wanted.events), burst(ours, wanted.events)))
    return {
        "events_per_s_mock": wanted.events / median(ours_s),
        "events_per_s_mock_over_bare": median(b / o for b, o in zip(bare_s, ours_s, strict=True)),
        "mock_s_all": ours_s,
        "mock_bare_s_all": bare_s,
    }


def in_flight(runner: Runner, server: ChatServer, wanted: Wanted, sizes: Sequence[int] = (400, 2_000)) -> Figures:
    """Calls of two seconds, all events at once: over raw aiohttp doing the same calls, against the bare DoFn."""
    figures: Figures = {}
    floor_events = max(sizes)
    with runner.start("bare") as bare, runner.start("server", server=server.base_url) as ours:
        most: dict[int, list[int]] = {size: [] for size in sizes}

        def through(size: int) -> float:
            server.reset(LATENCY)
            seconds = ours.run(size)
            stats = server.stats()
            most[size].append(stats.most_in_flight)
            if stats.calls != CALLS * size:
                raise RuntimeError(f"{stats.calls} model calls for {size} events, where {CALLS * size} are right")
            return seconds

        def raw(size: int) -> float:
            server.reset(LATENCY)
            return ideal.seconds(server.base_url, size)

        before = ours.settled_counter("callbacks")
        sides = [burst(bare, floor_events)]
        for size in sizes:
            sides += [partial(through, size), partial(raw, size)]
        floor, *measured = in_turn(wanted.repeats, sides)
        after = ours.settled_counter("callbacks")
        if ours.checkpoints is not None:
            figures |= checkpoint_figures(ours.checkpoints)
    figures[f"bare_{floor_events}_s"] = median(floor)
    figures[f"bare_{floor_events}_s_all"] = floor
    for nth, size in enumerate(sizes):
        through_s, raw_s = measured[2 * nth : 2 * nth + 2]
        over = [time - least for time, least in zip(through_s, raw_s, strict=True)]
        figures |= {
            f"max_in_flight_{size}": int(median(most[size])),
            f"seconds_{size}": median(through_s),
            f"ideal_{size}_s": median(raw_s),
            f"over_ideal_{size}_s": median(over),
            f"over_ideal_{size}_s_all": over,
            f"over_ideal_{size}_over_bare": median(o / least for o, least in zip(over, floor, strict=True)),
        }
    if before is not None and after is not None:
        figures["callbacks_per_event"] = (after - before) / (sum(sizes) * wanted.repeats)
    return figures


def curve(runner: Runner, server: ChatServer, sizes: Sequence[int], prefix: str) -> Figures:
    """How it scales: by runs in flight, events per second and seconds over raw aiohttp.

    Args:
        runner: Where.
        server: The chat server.
        sizes: Runs in flight.
        prefix: Of the figures' names.
    """
    figures: Figures = {}
    with runner.start("server", server=server.base_url) as ours:
        for size in sizes:
            server.reset(LATENCY)
            seconds = ours.run(size, seconds=_CURVE_SECONDS)
            most = server.stats().most_in_flight
            server.reset(LATENCY)
            over = seconds - ideal.seconds(server.base_url, size)
            figures |= {
                f"{prefix}_{size}_seconds": seconds,
                f"{prefix}_{size}_over_ideal_s": over,
                f"{prefix}_{size}_events_per_s": size / seconds,
                f"{prefix}_{size}_max_in_flight": most,
            }
            LOG.info("%s: %s runs in %.1f s, %.1f s over raw aiohttp, %s in flight", prefix, size, seconds, over, most)
    return figures


def checkpoint_figures(seen: CheckpointsSeen) -> Figures:
    """How a job's checkpoints went since it was warm."""
    milliseconds = [one["end_to_end_duration"] for one in seen.with_status("COMPLETED")]
    return {
        "checkpoints_completed": len(milliseconds),
        "checkpoints_failed": len(seen.with_status("FAILED")),
        "checkpoint_ms_max": max(milliseconds, default=None),
        "checkpoint_ms_median": median(milliseconds) if milliseconds else None,
        "restarts": seen.restarts,
    }


def burst(job: Job, events: int) -> Callable[[], float]:
    """A burst through a job, to be called."""
    return lambda: job.run(events)


def in_turn(repeats: int, sides: Sequence[Callable[[], float]]) -> list[list[float]]:
    """Measures each side once, and again from the first; the seconds of each side."""
    measured: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats):
        for times, side in zip(measured, sides, strict=True):
            times.append(side())
        LOG.info("%s of %s: %s s", repeat + 1, repeats, ", ".join(f"{times[-1]:.2f}" for times in measured))
    return measured
