"""Dies at each boundary of a fault point once, and makes tool calls with the fault points around them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from benchmarks.crash.rivals.yardstick import Call, Reply, Scenario

CRASHED = 70
"""The exit code of a process that died at its fault point."""


class Faults:
    """Ends the process when it is at a boundary of the fault point at which no process of the pass has ended before.

    None of the rivals records an intent, so `after_intent` is the moment before the call.

    Args:
        point: The fault point, `none` for none.
        folder: Of the pass; a file in it remembers the boundaries.
    """

    def __init__(self, point: str, folder: Path) -> None:
        self.point = "before_call" if point == "after_intent" else point
        self._file = folder / "crashed"
        self._before = set(self._file.read_text().splitlines()) if self._file.exists() else set()
        self._lock = threading.Lock()

    def reach(self, point: str, boundary: str) -> None:
        """Says that the process is at this point, at this call or turn."""
        if point == self.point and boundary not in self._before:
            with self._lock, self._file.open("a") as out:
                out.write(f"{boundary}\n")
                out.flush()
                os._exit(CRASHED)


class Calls:
    """Makes the model requests and tool calls of a scenario for a framework, with the fault points around the calls.

    Args:
        scenario: What they belong to.
        faults: Told of each boundary.
        records_each: Whether the framework records the result of each call by itself. If not, `in_parallel` is the
            moment when one of several calls has come back, and not the one when its result is recorded.
    """

    def __init__(self, scenario: Scenario, faults: Faults, *, records_each: bool) -> None:
        self._scenario = scenario
        self._faults = faults
        self._records_each = records_each
        self._in_flight: set[str] = set()
        self._unrecorded: set[str] = set()
        self._lock = threading.Lock()

    def ask(self, position: int) -> Reply:
        """Asks the model, in a conversation that has `position` answers of it already."""
        return self._scenario.ask(position)

    def make(self, call: Call) -> str:
        """Calls the tool; its result as text."""
        boundary = call.position
        with self._lock:
            self._in_flight.add(boundary)
        self._faults.reach("before_call", boundary)
        result = self._scenario.call(call)
        self._faults.reach("after_call", boundary)
        with self._lock:
            self._in_flight.remove(boundary)
            self._unrecorded.add(boundary)
            others = self._others_of(boundary)
        if others and not self._records_each:
            self._faults.reach("in_parallel", boundary)
        return result

    def recorded(self, boundary: str) -> None:
        """The framework has recorded this result. Those of calls that an earlier process made are passed over."""
        with self._lock:
            if boundary not in self._unrecorded:
                return
            self._unrecorded.remove(boundary)
            others = self._others_of(boundary)
        self._faults.reach("after_outcome", boundary)
        if others and self._records_each:
            self._faults.reach("in_parallel", boundary)

    def _others_of(self, boundary: str) -> bool:
        """Whether another call of the same answer is in flight."""
        answer = boundary.rpartition(".")[0]
        return any(other.rpartition(".")[0] == answer for other in self._in_flight)

    def all_recorded(self) -> None:
        """The framework has recorded all that has come back."""
        for boundary in sorted(self._unrecorded):
            self.recorded(boundary)
