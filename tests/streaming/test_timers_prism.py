"""Sleeps, deadlines, tools' timeouts and session expiry in a stream on Prism. On a cluster: tests/flink."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from benchmarks.timers.agents import LIMIT, Event
from benchmarks.timers.figures import read_times
from benchmarks.timers.job import Seen, build_stream, read_seen
from benchmarks.timers.runs import append, make_events
from runners.prism import prism_options, prism_path
from tests.streaming_job import running

pytestmark = pytest.mark.skipif(prism_path() is None, reason="Prism is not built: run 'python -m runners.prism'")

BOUND = 15.0
"""Seconds that anything may be late on a busy machine."""

TTL = 4.0
"""Seconds that a session lives."""


def wait_seen(folder: Path, ids: Iterable[str], job: PipelineResult) -> dict[str, Seen]:
    """Waits until each event has an outcome."""
    wanted, until = set(ids), time.monotonic() + 90
    while not wanted <= (seen := {each.id: each for each in read_seen(folder)}).keys():
        assert not PipelineState.is_terminal(job.state)
        assert time.monotonic() < until, f"no outcome of {sorted(wanted - seen.keys())}"
        time.sleep(0.1)
    return seen


def test_every_timer_fires_in_its_bound_while_calls_are_in_flight(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    events = make_events(30)
    visits = [Event(id=f"visit-{n}", key="visitor", kind="sleep", seconds=0) for n in range(3)]
    pipeline = beam.Pipeline(options=PipelineOptions(prism_options()))
    build_stream(pipeline, folder, tmp_path, session_ttl=timedelta(seconds=TTL))
    with running(pipeline) as job:
        append(folder, [*visits[:2], *events])
        wait_seen(tmp_path, [visit.id for visit in visits[:2]], job)
        expired = time.monotonic() + TTL + 1
        wait_seen(tmp_path, [event.id for event in events], job)
        time.sleep(max(0.0, expired - time.monotonic()))
        append(folder, visits[2:])
        seen = wait_seen(tmp_path, ["visit-2"], job)

    times = read_times(tmp_path)
    for event in events:
        found, (opened, closed) = seen[event.id], times[event.id]
        assert closed is not None
        assert found.at - closed < BOUND
        if event.kind == "deadline":
            assert found.outcome == "deadline"
            assert LIMIT <= closed - opened < LIMIT + BOUND
        else:
            assert found.waited is not None
            assert LIMIT <= found.waited.seconds < LIMIT + BOUND
    assert [seen[visit.id].waited and seen[visit.id].waited.nth for visit in visits] == [1, 2, 1]
