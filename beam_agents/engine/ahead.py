"""What a run asks of the ledger, and the outcomes that its code has gone on with before the ledger has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from beam_agents.codec import named
from beam_agents.engine.outcome import Fenced
from beam_agents.errors import LedgerError
from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.ledger.commands import Answer, Close, Command, Intend, Record, Recorded
from beam_agents.ledger.writer import LedgerWriter

Failed: TypeAlias = Callable[[BaseException], None]
_Place: TypeAlias = tuple[str, int]


async def ask(ledger: LedgerWriter, command: Command) -> Answer:
    """Has the ledger carry out a command.

    Raises:
        LedgerError: It never will, or it broke; no fault of the run, which has to wait for another ledger or release.
        LedgerUnavailable: The worker ends.
    """
    try:
        return await ledger.ask(command)
    except (LedgerError, LedgerUnavailable):
        raise
    except Exception as error:
        raise LedgerError(f"{ledger.ledger.url} broke at {type(command).__name__}: {named(error)}") from error


async def ask_with(ledger: LedgerWriter, command: Intend | Close, outcomes: tuple[Record, ...]) -> Answer:
    """`ask`, with outcomes that are recorded first: also when the ledger does not take the command itself."""
    if not outcomes:
        return await ask(ledger, command)
    try:
        return await ask(ledger, replace(command, outcomes=outcomes))
    except LedgerError:
        for outcome in outcomes:
            await ask(ledger, outcome)
        raise


MOST_TAKEN = 16
"""Outcomes that an intent takes along, at most: of a thousand branches, each would take all the others."""


class Ahead:
    """The outcomes of one opening of a run that the ledger has not acknowledged, though the code was given them.

    Args:
        ledger: To record them.
    """

    def __init__(self, ledger: LedgerWriter) -> None:
        self._ledger = ledger
        self._outcomes: dict[_Place, Record] = {}
        self._unsent: dict[_Place, Record] = {}
        self._alone: dict[_Place, asyncio.Task[None]] = {}
        self._fewer: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None

    def add(self, told: Record) -> None:
        """One more."""
        self._outcomes[told.path, told.attempt] = self._unsent[told.path, told.attempt] = told

    def take(self) -> tuple[Record, ...]:
        """All of them. Whatever the run asks of the ledger has to bring along also those that are on their way: else it
        could be taken without them."""
        self._unsent.clear()
        return tuple(self._outcomes.values())

    async def until_few(self, failed: Failed) -> None:
        """Waits until a command can take along those that are left.

        Args:
            failed: As for `record_soon`.

        Raises:
            BaseException: One of them could not be recorded.
        """
        while len(self._outcomes) > MOST_TAKEN:
            self.record_all(failed)
            if self._failure is not None:
                raise self._failure
            if self._fewer is None:
                self._fewer = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._fewer)

    def recorded(self, outcomes: tuple[Record, ...]) -> None:
        """The ledger has acknowledged these."""
        for told in outcomes:
            self._outcomes.pop((told.path, told.attempt), None)
        if len(self._outcomes) <= MOST_TAKEN:
            self._wake()

    def record_soon(self, failed: Failed) -> None:
        """Has those recorded alone that nothing has taken along by the next turn of the loop: what the code asks for
        now does, unless it has to wait.

        Args:
            failed: Called with what goes wrong.
        """
        if self._unsent:
            asyncio.get_running_loop().call_soon(self._record, self._unsent, failed)

    def record_all(self, failed: Failed) -> None:
        """Has all of them recorded alone, also those on their way with a command that may come to nothing."""
        self._record(self._outcomes, failed)

    def under_way(self) -> tuple[asyncio.Task[None], ...]:
        """What records them alone."""
        return tuple(job for job in self._alone.values() if not job.done())

    def cancel(self) -> None:
        """Waits for nothing any more; what is on its way gets there."""
        for job in self._alone.values():
            job.cancel()
        self._alone.clear()

    def _record(self, outcomes: dict[_Place, Record], failed: Failed) -> None:
        for place, told in outcomes.items():
            if place not in self._alone:
                self._alone[place] = asyncio.create_task(self._record_one(told, failed))
        self._unsent.clear()

    async def _record_one(self, told: Record, failed: Failed) -> None:
        try:
            answer = await ask(self._ledger, told)
            stands = answer.effect if isinstance(answer, Recorded) else None
            if stands is None or (stands.status, stands.value) != (told.status, told.value):
                raise Fenced  # the code has gone on with something else
            self.recorded((told,))
            self._alone.pop((told.path, told.attempt), None)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = error
            self._wake()
            failed(error)

    def _wake(self) -> None:
        if self._fewer is not None and not self._fewer.done():
            self._fewer.set_result(None)
        self._fewer = None
