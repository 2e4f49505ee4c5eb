"""Dies at each boundary of a fault point once, and makes tool calls with the fault points around them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.crash.rivals.yardstick import Call, Reply, Scenario

T = TypeVar("T")

CRASHED = 70
"""The exit code of a process that died at its fault point."""

APART_SECONDS = 0.2
"""By how much the results of calls side by side come back one after the other, where that is the matter: the first is
recorded while the others have been made and are not back."""


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
        """Says that the process is at this point, at this request, call or turn."""
        if point == self.point and boundary not in self._before:
            with self._lock, self._file.open("a") as out:
                out.write(f"{boundary}\n")
                out.flush()
                os._exit(CRASHED)


def answer_id(position: int) -> str:
    """Names the boundary of a model request."""
    return f"answer-{position}"


class Calls:
    """Makes the model requests and tool calls of a scenario for a framework, with the fault points around them.

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
        return self._made(answer_id(position), lambda: self._scenario.ask(position))

    def make(self, call: Call) -> str:
        """Calls the tool; its result as text."""
        return self._made(call.position, lambda: self._scenario.call(call))

    def _made(self, boundary: str, make: Callable[[], T]) -> T:
        with self._lock:
            self._in_flight.add(boundary)
        self._faults.reach("before_call", boundary)
        result = make()
        if self._faults.point == "in_parallel" and "." in boundary:
            time.sleep(APART_SECONDS * int(boundary.rpartition(".")[2]))
        self._faults.reach("after_call", boundary)
        with self._lock:
            self._in_flight.remove(boundary)
            self._unrecorded.add(boundary)
            others = self._others_of(boundary)
        if others and not self._records_each:
            self._faults.reach("in_parallel", boundary)
        return result

    def recorded(self, boundary: str) -> None:
        """The framework has recorded this result. Those that an earlier process made are passed over."""
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
        return any(other.rpartition(".")[0] == answer for other in self._in_flight if answer)

    def all_recorded(self) -> None:
        """The framework has recorded all that has come back."""
        for boundary in sorted(self._unrecorded):
            self.recorded(boundary)
