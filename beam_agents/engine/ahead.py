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


class Ahead:
    """The outcomes of one opening of a run that the ledger has not acknowledged, though the code was given them.

    Args:
        ledger: To record them.
    """

    def __init__(self, ledger: LedgerWriter) -> None:
        self._ledger = ledger
        self._outcomes: dict[tuple[str, int], Record] = {}
        self._unsent = False
        self._jobs: set[asyncio.Task[None]] = set()

    def add(self, told: Record) -> None:
        """One more."""
        self._outcomes[told.path, told.attempt] = told
        self._unsent = True

    def record_soon(self, failed: Failed) -> None:
        """`record` after this turn of the loop: by then, what the code asks for has taken them along, unless it has to
        wait."""
        if self._unsent:
            asyncio.get_running_loop().call_soon(self.record, failed)

    def take(self) -> tuple[Record, ...]:
        """All of them. Whatever the run asks of the ledger has to bring along also those that are on their way: else it
        could be taken without them."""
        self._unsent = False
        return tuple(self._outcomes.values())

    def recorded(self, outcomes: tuple[Record, ...]) -> None:
        """The ledger has acknowledged these."""
        for told in outcomes:
            self._outcomes.pop((told.path, told.attempt), None)

    def record(self, failed: Failed) -> None:
        """Has them recorded alone, if nothing has taken them along.

        Args:
            failed: Called with what goes wrong.
        """
        if self._unsent:
            for told in self.take():
                job = asyncio.create_task(self._record(told, failed))
                self._jobs.add(job)
                job.add_done_callback(self._jobs.discard)

    def under_way(self) -> tuple[asyncio.Task[None], ...]:
        """What records them alone."""
        return tuple(self._jobs)

    async def _record(self, told: Record, failed: Failed) -> None:
        try:
            answer = await ask(self._ledger, told)
            stands = answer.effect if isinstance(answer, Recorded) else None
            if stands is None or (stands.status, stands.value) != (told.status, told.value):
                raise Fenced  # the code has gone on with something else
            self.recorded((told,))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            failed(error)
