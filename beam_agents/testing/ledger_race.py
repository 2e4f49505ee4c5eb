"""Processes that race for one ledger."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import TypeVar

from beam_agents.ledger.base import Ledger, LedgerUnavailable
from beam_agents.ledger.commands import Answer, Command

T = TypeVar("T")

_PATIENCE_SECONDS = 60.0


def race(ledger: Ledger, turns: Sequence[Sequence[Sequence[Command]]]) -> list[list[list[Answer]]]:
    """Has processes open a ledger at once, and then give it groups of commands at once, turn by turn.

    Args:
        ledger: Not open; it is pickled for each process.
        turns: For each process, the group that it gives in each turn.

    Returns:
        For each turn, the answers that each process got.

    Raises:
        RuntimeError: A process failed; its error is on stderr.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once, not by each racer
    barrier = context.Barrier(len(turns))
    racers = []
    for own_turns in turns:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_race, args=(ledger, own_turns, barrier, sender), daemon=True)
        process.start()
        sender.close()
        racers.append((process, receiver))
    answers: list[list[list[Answer]]] = []
    for process, receiver in racers:
        with receiver:
            try:
                answers.append(receiver.recv())
            except EOFError:
                barrier.abort()
                raise RuntimeError(f"{process.name} failed; see its error on stderr") from None
    for process, _ in racers:
        process.join()
        process.close()
    return [list(turn) for turn in zip(*answers, strict=True)]


def _race(ledger: Ledger, turns: Sequence[Sequence[Command]], barrier: Barrier, sender: Connection) -> None:
    barrier.wait(_PATIENCE_SECONDS)
    _patiently(ledger.open)
    answers = []
    for group in turns:
        barrier.wait(_PATIENCE_SECONDS)
        answers.append(_patiently(partial(ledger.apply, group)))
    ledger.close()
    sender.send(answers)
    sender.close()


def _patiently(action: Callable[[], T]) -> T:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return action()
        except LedgerUnavailable:
            if time.monotonic() > deadline:
                raise
