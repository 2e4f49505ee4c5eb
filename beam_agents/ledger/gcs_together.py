"""Several requests at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from beam_agents.ledger.base import LedgerUnavailable

T = TypeVar("T")


def together(pool: ThreadPoolExecutor, actions: Sequence[Callable[[], T]]) -> list[T]:
    """Does several things at once, all of them even if some fail; a single one on the caller's thread.

    Raises:
        BaseException: The first that was raised, one that waiting does not cure before one that it may.
    """
    if len(actions) == 1:
        return [actions[0]()]
    futures = [pool.submit(action) for action in actions]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, LedgerUnavailable)):
        raise error
    return [future.result() for future in futures]
