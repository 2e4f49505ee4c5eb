"""Connections to a PostgreSQL server that may freeze."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")

ANSWER_SECONDS = 15.0
"""How long a server may say nothing. Its own limits for what it does are shorter."""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose waits end, whatever the server does."""

    _answer_seconds: float | None = None

    @contextmanager
    def patiently(self, seconds: float) -> Iterator[None]:
        """Lets the server say nothing for so long meanwhile."""
        self._answer_seconds = seconds
        try:
            yield
        finally:
            self._answer_seconds = None

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        return super().wait(self._in_time(gen), *args, **options)

    def _in_time(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        # The generator is also resumed now and then while nothing arrives.
        patience = self._answer_seconds or ANSWER_SECONDS
        deadline = time.monotonic() + patience
        try:
            state = next(gen)
            while True:
                ready = yield state
                if ready:
                    deadline = time.monotonic() + patience
                elif time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server did not answer for {patience:g} s")
                state = gen.send(ready)
        except StopIteration as done:
            answer: T = done.value
            return answer
