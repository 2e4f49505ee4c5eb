"""Drives the coroutine of a run by hand, from effect to effect.

No event loop is involved: the code of a run awaits nothing but its context, each await hands one request to this
driver, and one outcome at a time is handed back. So what a run does next is a function of the outcomes and their
order alone, and a journal can replay it.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from beam_agents.codec import named
from beam_agents.errors import BeamAgentsError

_LOGGER = logging.getLogger(__name__)

Code = Coroutine[Any, Any, Any]


@dataclass(eq=False)
class Request:
    """An effect that the code asks for; awaiting it gives its outcome."""

    kind: str
    name: str
    digest: str
    effect: str
    arguments: str | None
    """As JSON, for the journal."""
    payload: Any
    """What the worker needs to carry it out."""
    path: str = ""
    """Its place in the run, given when the code asks."""

    def __await__(self) -> Generator[Request, Any, Any]:
        return (yield self)


@dataclass(eq=False)
class Gather:
    """Branches that the code wants to run side by side."""

    branches: Sequence[Any]

    def __await__(self) -> Generator[Gather, Any, Any]:
        return (yield self)


class Stop(BaseException):
    """Ends the run from inside. Not an `Exception`, so that `except Exception` in user code cannot hold it back."""


@dataclass(eq=False)
class _Branch:
    code: Code
    prefix: str = ""
    parent: _Join | None = None
    index: int = 0
    count: int = 0

    def next_path(self) -> str:
        path = f"{self.prefix}{self.count}"
        self.count += 1
        return path


@dataclass(eq=False)
class _Join:
    """A gather that waits for its branches."""

    branch: _Branch
    results: list[Any]
    missing: int
    errors: dict[int, Exception] = field(default_factory=dict)


class Execution:
    """One coroutine of a run, from its first line to its end.

    Attributes:
        waiting: The effects that the code waits for, by path, in the order of asking.
        ended: Whether the code has returned or raised.
        result: What it returned.
        error: What it raised.
    """

    def __init__(self, code: Code) -> None:
        self.waiting: dict[str, Request] = {}
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._main = _Branch(code)
        self._branches: dict[str, _Branch] = {}
        self._live: dict[_Branch, None] = {self._main: None}

    def start(self) -> list[Request]:
        """Runs until the code waits or has ended; returns what it newly asks for."""
        return self._run(self._main, None, None)

    def deliver(self, path: str, value: Any = None, error: BaseException | None = None) -> list[Request]:
        """Hands over one outcome and runs until all is quiet; returns what the code newly asks for."""
        del self.waiting[path]
        return self._run(self._branches.pop(path), value, error)

    def close(self) -> None:
        """Drops the coroutine where it stands."""
        for branch in list(self._live):
            self._close(branch.code)
        self._live.clear()
        self.waiting.clear()
        self._branches.clear()

    @staticmethod
    def _close(code: Code) -> None:
        try:
            code.close()
        except BaseException as error:  # a `finally` of user code that awaits or raises; the run is over all the same
            _LOGGER.warning("code that was dropped raised %s while it was closed", named(error))

    def _run(self, branch: _Branch, value: Any, error: BaseException | None) -> list[Request]:
        asked: list[Request] = []
        ready: list[tuple[_Branch, Any, BaseException | None]] = [(branch, value, error)]
        while ready and not self.ended:
            self._step(*ready.pop(0), asked, ready)
        return [] if self.ended else asked

    def _step(
        self,
        branch: _Branch,
        value: Any,
        error: BaseException | None,
        asked: list[Request],
        ready: list[tuple[_Branch, Any, BaseException | None]],
    ) -> None:
        try:
            wanted = branch.code.send(value) if error is None else branch.code.throw(error)
        except StopIteration as stop:
            self._finish(branch, stop.value, None, ready)
            return
        except Exception as raised:
            self._finish(branch, None, raised, ready)
            return
        except BaseException as raised:
            self._end(None, raised)
            return
        if isinstance(wanted, Request):
            wanted.path = branch.next_path()
            self.waiting[wanted.path] = wanted
            self._branches[wanted.path] = branch
            asked.append(wanted)
        elif isinstance(wanted, Gather):
            self._fork(branch, wanted, ready)
        else:
            ready.append((branch, None, _foreign_await(wanted)))

    def _fork(self, branch: _Branch, gather: Gather, ready: list[tuple[_Branch, Any, BaseException | None]]) -> None:
        path = branch.next_path()
        wrong = _wrong_branch(gather.branches)
        if wrong is not None:
            for code in gather.branches:
                if isinstance(code, Coroutine):
                    code.close()
            ready.append((branch, None, wrong))
            return
        if not gather.branches:
            ready.append((branch, [], None))
        join = _Join(branch, [None] * len(gather.branches), len(gather.branches))
        for index, code in enumerate(gather.branches):
            child = _Branch(code, f"{path}.{index}.", join, index)
            self._live[child] = None
            ready.append((child, None, None))

    def _finish(
        self,
        branch: _Branch,
        result: Any,
        error: Exception | None,
        ready: list[tuple[_Branch, Any, BaseException | None]],
    ) -> None:
        self._live.pop(branch, None)
        join = branch.parent
        if join is None:
            self._end(result, error)
            return
        join.results[branch.index] = result
        if error is not None:
            join.errors[branch.index] = error
        join.missing -= 1
        if join.missing == 0:
            first = join.errors[min(join.errors)] if join.errors else None
            ready.append((join.branch, join.results, first))

    def _end(self, result: Any, error: BaseException | None) -> None:
        self.close()
        self.ended, self.result, self.error = True, result, error


def _wrong_branch(branches: Sequence[Any]) -> TypeError | None:
    for index, code in enumerate(branches):
        if not isinstance(code, Coroutine):
            return TypeError(f"gather takes calls that are not awaited yet, not {code!r}")
        if any(code is other for other in branches[:index]):
            return TypeError(f"gather was given the same call twice: {code!r}; make the call once for each branch")
    return None


def _foreign_await(wanted: Any) -> BeamAgentsError:
    return BeamAgentsError(
        f"agent code awaited {wanted!r}, which cannot be replayed: await only methods of ctx; "
        "put other asynchronous work into a tool and call it with ctx.call, wait with ctx.sleep"
    )
