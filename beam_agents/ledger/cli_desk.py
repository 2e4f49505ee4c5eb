"""A ledger as an operator has it open, and the refusals of commands."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from beam_agents.errors import BeamAgentsError, ConfigurationError
from beam_agents.ledger.base import Ledger, LedgerUnavailable
from beam_agents.ledger.commands import Answer, Command
from beam_agents.ledger.urls import ledger_from

A = TypeVar("A")
T = TypeVar("T")

_PATIENCE_SECONDS = 5.0
_PAUSE_SECONDS = 0.2


class Refused(BeamAgentsError):
    """A command that was understood and is not carried out.

    Args:
        message: Why, and what to do instead.
        details: JSON data about it, for `--json`.
    """

    code = 1
    """The exit code."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class Misused(Refused):
    """A command that has to be given in another way."""

    code = 2


class Desk:
    """A ledger that is open for one command, which does not make it; a store that is busy or away for a moment is asked
    again.

    Args:
        ledger: Not open.
        patience: Seconds for which it may be unavailable.
    """

    def __init__(self, ledger: Ledger, *, patience: float = _PATIENCE_SECONDS) -> None:
        self.ledger = ledger
        self._patience = patience

    def __enter__(self) -> Desk:
        self._patiently(lambda: self.ledger.open(make=False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ledger.close()

    def ask(self, command: Command) -> Answer:
        """Has the ledger carry out a command, in a transaction of its own: workers wait for nothing longer.

        Raises:
            Refused: The ledger was unavailable for too long.
            LedgerError: It never will carry it out.
        """
        (answer,) = self._patiently(lambda: self.ledger.apply([command]))
        return answer

    def expect(self, answer: type[A], command: Command) -> A:
        """`ask`, for a command that has one kind of answer."""
        given = self.ask(command)
        if not isinstance(given, answer):
            raise TypeError(f"{self.ledger!r} answered {given!r} to {command!r}")
        return given

    def _patiently(self, do: Callable[[], T]) -> T:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return do()
            except LedgerUnavailable as error:
                if time.monotonic() >= deadline:
                    raise Refused(f"the ledger is unavailable, tried for {self._patience:g} s: {error}") from error
            time.sleep(_PAUSE_SECONDS)


def desk(url: str) -> Desk:
    """The desk for the ledger at a URL, not open.

    Raises:
        Misused: The URL names no ledger that another process could have.
    """
    try:
        ledger = ledger_from(url)
    except ConfigurationError as error:
        raise Misused(str(error)) from error
    if not ledger.durable:
        raise Misused(f"{url!r} lives in the process that uses it; name a ledger that others can open")
    return Desk(ledger)
