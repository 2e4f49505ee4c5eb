"""One key's state and timers, as a runner keeps them: to drive a streaming DoFn callback by callback."""

from __future__ import annotations

import copy
from typing import Any

from beam_agents.transforms.doorbell import LOOK
from beam_agents.transforms.emission import DUPLICATES, FAILURES, RESULTS
from beam_agents.transforms.envelope import Envelope
from beam_agents.transforms.streaming import StreamingDoFn


class Cell:
    def __init__(self) -> None:
        self.value: bytes | None = None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value

    def clear(self) -> None:
        self.value = None


class Bag:
    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.most = 0

    def read(self) -> list[bytes]:
        return list(self.values)

    def add(self, value: bytes) -> None:
        self.values.append(value)
        self.most = max(self.most, len(self.values))

    def clear(self) -> None:
        self.values = []


class Timers:
    def __init__(self) -> None:
        self.due: dict[str, float] = {}

    def set(self, due: Any, dynamic_timer_tag: str = "") -> None:
        self.due[dynamic_timer_tag] = float(due)

    def clear(self, dynamic_timer_tag: str = "") -> None:
        self.due.pop(dynamic_timer_tag, None)


class KeyState:
    """Gives callbacks their state, and what they emit as (output, value) pairs."""

    def __init__(self, key: str = "k") -> None:
        self.key = key
        self.cells: dict[str, Any] = {
            "record": Cell(), "session": Cell(), "inbox": Bag(), "batch": Cell(), "closed": Bag(),
            "deadline": Timers(), "expiry": Timers(),
        }  # fmt: skip

    def checkpoint(self) -> dict[str, Any]:
        return copy.deepcopy(self.cells)

    def event(self, dofn: StreamingDoFn, envelope: Envelope) -> list[tuple[str, Any]]:
        return emitted_by(dofn, dofn.process((self.key, envelope.encoded()), **self.cells))

    def look(self, dofn: StreamingDoFn) -> list[tuple[str, Any]]:
        return emitted_by(dofn, dofn.process((self.key, LOOK), **self.cells))

    def timer(self, dofn: StreamingDoFn, tag: str) -> list[tuple[str, Any]]:
        del self.cells["deadline"].due[tag]
        return emitted_by(dofn, dofn.look_at_deadline(key=self.key, tag=tag, **self.cells))


def emitted_by(dofn: StreamingDoFn, *callbacks: Any) -> list[tuple[str, Any]]:
    """What a bundle with these callbacks emits, as (output, value) pairs."""
    dofn.start_bundle()
    return [
        (output.tag, output.value.value[0][1])
        for outputs in (*callbacks, dofn.finish_bundle())
        for output in outputs
        if output.tag in (RESULTS, FAILURES, DUPLICATES)
    ]
