"""Runs a streaming pipeline for a test: what it emitted can be waited for, and it is cancelled at the end.

Works where the DoFns run in the process of the test (LOOPBACK): they hand over what they see in a queue.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult, PipelineState

_queues: defaultdict[str, SimpleQueue[Seen]] = defaultdict(SimpleQueue)


class Seen(NamedTuple):
    """An element as a sink saw it."""

    value: Any
    timestamp: float
    window: str
    timing: int
    """A `PaneInfoTiming`: whether its window was on time."""


class Sink(beam.PTransform[Any, Any]):
    """Keeps the elements of a PCollection for `take`."""

    def __init__(self) -> None:
        super().__init__()
        self._name = uuid.uuid4().hex

    def expand(self, pcoll: Any) -> Any:
        return pcoll | "Keep" >> beam.ParDo(_KeepDoFn(self._name))

    def take(self, count: int, job: PipelineResult, *, timeout: float = 60) -> list[Seen]:
        """Waits for the next `count` elements.

        Raises:
            TimeoutError: They did not come within `timeout` seconds; the message has those that did.
            RuntimeError: The job failed.
        """
        until = time.monotonic() + timeout
        taken: list[Seen] = []
        while len(taken) < count:
            try:
                taken.append(_queues[self._name].get(timeout=0.5))
            except Empty:
                if job.state == PipelineState.FAILED:
                    job.wait_until_finish()
                if time.monotonic() > until:
                    raise TimeoutError(f"{len(taken)} of {count} elements within {timeout} s: {taken!r}") from None
        return taken

    def values(self) -> list[Any]:
        """What has come so far: all of it, once the job has ended."""
        kept = _queues[self._name]
        return [kept.get().value for _ in range(kept.qsize())]


class _KeepDoFn(beam.DoFn):
    def __init__(self, name: str) -> None:
        self._name = name

    def process(
        self,
        element: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> None:
        _queues[self._name].put(Seen(element, float(timestamp), str(window), pane.timing))


@contextmanager
def running(pipeline: beam.Pipeline) -> Iterator[PipelineResult]:
    """Runs the pipeline beside the test and cancels it at the end of the block, if it has not ended by itself."""
    job = pipeline.run()
    try:
        yield job
    finally:
        job.cancel()
        until = time.monotonic() + 30
        while not PipelineState.is_terminal(job.state):
            if time.monotonic() > until:
                raise TimeoutError(f"the job is still {job.state!r} 30 s after it was cancelled")
            time.sleep(0.05)
