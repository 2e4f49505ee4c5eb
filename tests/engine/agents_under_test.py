"""Agents whose calls a test can watch, hold and release by name."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict

from pydantic import BaseModel

from beam_agents.messages import AssistantMessage, ModelRequest, ToolMessage


class Event(BaseModel):
    id: str
    text: str = ""


class Count(BaseModel):
    events: list[str] = []


def count(state: Count, event: Event) -> Count:
    return Count(events=[*state.events, event.id])


class Gates:
    """Counts calls by name and holds them while their gate is shut."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.keys: defaultdict[str, list[str]] = defaultdict(list)
        self._entered: defaultdict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(0))
        self._gates: dict[str, threading.Event] = {}

    def shut(self, name: str) -> None:
        self._gates[name] = threading.Event()

    def open(self, name: str) -> None:
        self._gates.pop(name).set()

    def passing(self, name: str, key: str = "") -> None:
        """What a tool calls: it is counted, and waits at its gate."""
        self.calls[name] += 1
        self.keys[name].append(key)
        gate = self._gates.get(name)
        self._entered[name].release()
        if gate is not None and not gate.wait(30):
            raise TimeoutError(f"gate {name!r} was never opened")

    def wait_for(self, name: str) -> None:
        """Until a call of that name has begun."""
        assert self._entered[name].acquire(timeout=20), f"{name} was never called; calls: {self.calls}"


def tool_results(request: ModelRequest) -> list[str]:
    """The results of the run's tools, as the model sees them."""
    texts = []
    for message in reversed(request.messages):
        if isinstance(message, ToolMessage):
            texts.insert(0, message.text)
        elif not isinstance(message, AssistantMessage):
            break
    return texts
