"""Runs the pipeline on each of the runners, from its first event to its last outcome."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from benchmarks.timers.agents import Event, Kind
from benchmarks.timers.figures import Figures, measure
from benchmarks.timers.job import build, build_stream, read_seen
from runners.flink.cluster import FlinkCluster
from runners.flink.rest import TERMINAL
from runners.prism import install_prism, prism_options

ROOT = Path(__file__).resolve().parents[2]
_KEYS = 20
_KINDS: Sequence[Kind] = ("sleep", "step", "deadline")
_START_SECONDS = 90.0
_DRAIN_SECONDS = 90.0
_POLL = 0.2


class JobEnded(RuntimeError):
    """A job is over before its last outcome."""


def make_events(count: int) -> list[Event]:
    """Events of all kinds in turn, over some keys."""
    return [Event(id=f"event-{n:05}", key=f"key-{n % _KEYS:02}", kind=_KINDS[n % len(_KINDS)]) for n in range(count)]


def append(folder: Path, events: Iterable[Event]) -> None:
    """Gives events to a job that follows the files of a folder."""
    with (folder / "events.jsonl").open("a") as file:
        file.write("".join(f"{event.model_dump_json()}\n" for event in events))


def on_batch(count: int, _rate: float) -> Figures:
    """Bounded input on the in-process runner: the batch driver, which emits when the last run of a bundle has ended."""
    with tempfile.TemporaryDirectory() as scratch:
        events = make_events(count)
        with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
            build(pipeline | beam.Create(events).with_output_types(Event), Path(scratch))
        return measure("FnApiRunner", events, Path(scratch))


def on_prism(count: int, rate: float) -> Figures:
    """An endless stream on Prism, the workers in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        out, folder = Path(scratch), Path(scratch) / "events"
        folder.mkdir()
        pipeline = beam.Pipeline(options=PipelineOptions(prism_options(install_prism())))
        build_stream(pipeline, folder, out)
        job = pipeline.run()

        def watch() -> None:
            if PipelineState.is_terminal(job.state):
                raise JobEnded(f"the job is {job.state}")

        try:
            events = _feed(folder, out, count, rate, watch)
        finally:
            job.cancel()
        return measure("PrismRunner", events, out)


def on_flink(count: int, rate: float, *, idle_seconds: float = 15.0) -> Figures:
    """The same on a real Flink cluster: two TaskManagers with a Python worker each."""
    with tempfile.TemporaryDirectory() as scratch:
        out, folder = Path(scratch), Path(scratch) / "events"
        folder.mkdir()
        cluster = FlinkCluster(out / "cluster", task_managers=2, slots=1, parallelism=2, rest_port=0)
        try:
            cluster.up()
            program = [sys.executable, "-m", "benchmarks.timers.job", f"--events={folder}", f"--out={out}"]
            job = cluster.submit(program, directory=ROOT)

            def watch() -> None:
                state = cluster.rest.job(job).state
                if state in TERMINAL:
                    raise JobEnded(f"the job is {state}")

            events = _feed(folder, out, count, rate, watch)
            return measure("flink", events, out, _idle_cores(cluster, idle_seconds))
        except Exception as error:
            error.add_note(cluster.report())
            raise
        finally:
            cluster.down()


def _feed(folder: Path, out: Path, count: int, rate: float, watch: Callable[[], None]) -> list[Event]:
    """Trickles the events in, when a first one has shown that the job is at work, and waits for all outcomes.

    Returns:
        Those that count: without the first.
    """
    first = Event(id="first", key="first", kind="sleep", seconds=0.1)
    append(folder, [first])
    _wait(out, 1, _START_SECONDS, watch)
    events = make_events(count)
    started = time.monotonic()
    for nth, event in enumerate(events):
        time.sleep(max(0.0, started + nth / rate - time.monotonic()))
        append(folder, [event])
    _wait(out, count + 1, _DRAIN_SECONDS, watch)
    return events


def _wait(out: Path, count: int, seconds: float, watch: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while (come := len({seen.id for seen in read_seen(out)})) < count:
        watch()
        if time.monotonic() > until:
            raise TimeoutError(f"{come} of {count} outcomes within {seconds:g} s")
        time.sleep(_POLL)


def _idle_cores(cluster: FlinkCluster, seconds: float) -> dict[str, float]:
    """What each process uses while there is nothing to do, after a pause in which it calms down."""
    pids = {process.name: process.pid for process in (cluster.job_manager, *cluster.task_managers)}
    pids |= {f"worker-{nth}": pid for nth, pid in enumerate(cluster.workers(), 1)}
    time.sleep(seconds / 3)
    before = {name: _processor_seconds(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    return {name: (_processor_seconds(pid) - before[name]) / seconds for name, pid in pids.items()}


def _processor_seconds(pid: int) -> float:
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
