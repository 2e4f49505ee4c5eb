"""Blocking code, beside the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from beam_agents.codec import named
from beam_agents.errors import ConfigurationError

_LOGGER = logging.getLogger(__name__)


class Left(Exception):
    """User code wanted to end the process, or cancelled itself; the worker and its other runs must not follow."""


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a blocking function in a daemon thread of its own.

    Not an executor: a function that hangs would keep one of its few threads, and the process at exit, for ever.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = function(*arguments)
        except StopIteration as stop:  # a future cannot hold it
            error = ConfigurationError(f"a tool raised {stop!r}")
        except Exception as raised:
            error = raised
        except BaseException as raised:
            error = Left(named(raised))
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the worker's loop has ended
            _LOGGER.warning("a tool ended after its worker")

    threading.Thread(target=work, name="beam-agents-tool", daemon=True).start()
    return await future
