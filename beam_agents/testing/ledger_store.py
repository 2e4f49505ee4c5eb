"""A ledger under test, with a clock that is turned by hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import pytest

from beam_agents.ledger.base import Ledger
from beam_agents.ledger.commands import Answer, Close, Closed, Command, HeadIs, Load, Loaded, Open, Opened, ReadHead
from beam_agents.ledger.records import Effect, Head, HeadKey, Run, RunKey

A = TypeVar("A")


NOW = 1_700_000_000.0


class FakeClock:
    """A clock that a test turns by hand."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def run_key(run_id: str = "run-1", key: str = '"card-1"', revision: int = 1, scope: str = "scope") -> RunKey:
    """The key of a run of the agent `fraud`."""
    return RunKey(scope, "fraud", revision, key, run_id)


def opening(run: RunKey, owner: str = "worker-1", digest: str = "digest") -> Open:
    """Opens a run as `owner`."""
    return Open(run, '{"amount":1}', digest, owner)


def attempt(path: str = "0", number: int = 1) -> Effect:
    """An attempt of a tool call."""
    return Effect(path, number, "tool", "lookup", "asked", "pure", '{"id":"é"}')


class Store:
    """A ledger with a clock, and what tests ask of it."""

    def __init__(self, ledger: Ledger, clock: FakeClock) -> None:
        self.ledger = ledger
        self.clock = clock

    def do(self, command: Command) -> Answer:
        """Carries out one command."""
        (answer,) = self.ledger.apply([command])
        return answer

    def expect(self, answer_type: type[A], command: Command) -> A:
        """Carries out one command, whose answer must be of this type."""
        answer = self.do(command)
        assert isinstance(answer, answer_type), answer
        return answer

    def load(self, run: RunKey) -> Run:
        """The record of a run."""
        found = self.expect(Loaded, Load(run)).run
        assert found is not None
        return found

    def head(self, key: HeadKey) -> Head | None:
        """What a key has come to."""
        return self.expect(HeadIs, ReadHead(key)).head

    def complete(
        self,
        run: RunKey,
        session: str | None = "session",
        *,
        event_time: int | None = None,
        reason: str | None = None,
    ) -> Closed:
        """Opens and closes a run."""
        epoch = self.expect(Opened, replace(opening(run), event_time=event_time)).run.epoch
        return self.expect(Closed, Close(run, epoch, "end", session, reason))


class LedgerTests(ABC):
    """What all parts of the conformance suite have."""

    @pytest.fixture
    @abstractmethod
    def make_ledger(self) -> Callable[..., Ledger]:
        """A function of an optional `clock` that gives a ledger, not open. All calls in one test name one store."""

    @pytest.fixture
    def store(self, make_ledger: Callable[..., Ledger]) -> Iterator[Store]:
        """The ledger, open."""
        clock = FakeClock()
        ledger = make_ledger(clock=clock)
        ledger.open()
        yield Store(ledger, clock)
        ledger.close()
