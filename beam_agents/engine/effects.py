"""Carries out effects: asks models, calls tools, asks `reconcile`."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from beam_agents.codec import named, shown, told
from beam_agents.context import RunContext
from beam_agents.engine.outcome import Fenced, Outcome
from beam_agents.errors import ConfigurationError, FailRun, LedgerError, ModelError, ModelRetry, ToolError, ToolFailed
from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.messages import ModelRequest, ModelResponse
from beam_agents.models.base import Model
from beam_agents.models.fallback import FallbackModel
from beam_agents.models.network import check_network_allowed
from beam_agents.models.retry import request_with_retries
from beam_agents.tools import CannotHappen, Happened, Tool, Unknown

_LOGGER = logging.getLogger(__name__)


async def ask_model(
    model: Model,
    request: ModelRequest,
    *,
    connect: Callable[[Model], Awaitable[None]],
    pause: Callable[[float], Awaitable[None]],
    network_forbidden: bool,
) -> Outcome:
    """Asks a model, with the retries of the request's settings.

    Raises:
        Fenced: By `pause`, as is what the ledger raises.
    """
    try:
        check_network_allowed(model, network_forbidden)
        asked = model
        if isinstance(model, FallbackModel):  # it passes over a member that cannot be connected
            await _contained(connect(model), request.settings.timeout)
        else:
            asked = _Connected(model, connect)
        response = await _contained(request_with_retries(asked, request, forbidden=network_forbidden, sleep=pause))
        written = response.model_dump_json()
        ModelResponse.model_validate_json(written)  # a record that cannot be read would end the run
        return Outcome("ok", written)
    except (Fenced, LedgerError, LedgerUnavailable):
        raise
    except ModelError as error:
        return Outcome.of("error", told(error))
    except _TimedOut:
        return Outcome.of("error", f"model {model.name!r} did not connect in {request.settings.timeout:g} s")
    except Exception as error:
        _LOGGER.exception("model %r raised", model.name)
        return Outcome.of("error", f"model {model.name!r} raised {_named(error)}")


class _Connected(Model):
    """A model that its first request connects, so that a connection that fails is tried again as a request is."""

    def __init__(self, model: Model, connect: Callable[[Model], Awaitable[None]]) -> None:
        self._model = model
        self._connect = connect
        self.network = model.network

    @property
    def name(self) -> str:
        return self._model.name

    async def request(self, request: ModelRequest) -> ModelResponse:
        try:
            await self._connect(self._model)
        except OSError as error:
            raise ModelError(f"model {self.name!r} cannot be connected: {named(error)}", retryable=True) from error
        return await self._model.request(request)


async def call_tool(tool: Tool[Any], context: RunContext[Any, Any, Any], arguments: dict[str, Any]) -> Outcome:
    """Makes one attempt of a tool call. A `once` call that raised or timed out is looked into before it is judged."""
    try:
        result = await _invoke(tool, tool.function, context, arguments)
        return _result(tool, result)
    except ModelRetry as error:
        return Outcome.of("retry", told(error))
    except ToolFailed as error:
        return Outcome.of("failed", told(error))
    except FailRun as error:
        return Outcome.of("rejected", told(error))
    except _TimedOut:
        why = f"tool {tool.name!r} did not answer in {tool.timeout.total_seconds():g} s"
    except Exception as error:
        why = f"tool {tool.name!r} raised {_named(error)}"
    if tool.effect != "once":
        return Outcome.of("error", why)
    return await _look_into(tool, context, arguments, why, not_happened="error")


async def reconcile(tool: Tool[Any], context: RunContext[Any, Any, Any], arguments: dict[str, Any]) -> Outcome:
    """What became of a `once` call whose worker died before it recorded the outcome."""
    return await _look_into(tool, context, arguments, "its worker died during the call", not_happened="not_happened")


async def _look_into(
    tool: Tool[Any],
    context: RunContext[Any, Any, Any],
    arguments: dict[str, Any],
    why: str,
    *,
    not_happened: Any,
) -> Outcome:
    if tool.reconcile is None:
        return Outcome.of("in_doubt", f"{why}, and it has no reconcile function")
    try:
        verdict = await _invoke(tool, tool.reconcile, context, arguments)
    except _TimedOut:
        return Outcome.of("in_doubt", f"{why}, and reconcile did not answer in {tool.timeout.total_seconds():g} s")
    except Exception as error:
        return Outcome.of("in_doubt", f"{why}, and reconcile raised {_named(error)}")
    match verdict:
        case Happened():
            return _result(tool, verdict.result)
        case CannotHappen():
            return Outcome.of(not_happened, f"{why}; reconcile says that it had no effect")
        case Unknown():
            return Outcome.of("in_doubt", f"{why}, and reconcile cannot say{f': {verdict.why}' if verdict.why else ''}")
        case _:
            expected = "Happened(result), CannotHappen() or Unknown()"
            return Outcome.of("in_doubt", f"{why}, and reconcile returned {shown(verdict)} instead of {expected}")


def _result(tool: Tool[Any], result: Any) -> Outcome:
    try:
        plain = tool.result_json(result)
        tool.result_from(plain)
        return Outcome.of("ok", plain)
    except ToolError as error:
        why = told(error)
    except BaseException as error:  # validators and serializers of the user's types may raise anything
        what = told(error) if isinstance(error, ValueError) else named(error)
        why = f"tool {tool.name!r} returned what JSON cannot hold: {what}"
    # An error would say that it may not have happened: the model, the code or a person could then do it again.
    return Outcome.of("error" if tool.effect == "pure" else "result_lost", f"{why}; it was {shown(result)}")


class _TimedOut(Exception):
    """A tool's time-out is over; not `TimeoutError`, which tools raise themselves."""


class _Left(Exception):
    """User code wanted to end the process, or cancelled itself; the worker and its other runs must not follow."""


def _named(error: Exception) -> str:
    return told(error) if isinstance(error, _Left) else named(error)


async def _contained(awaited: Awaitable[Any], seconds: float | None = None) -> Any:
    """Awaits user code in a task of its own: it can neither take the worker with it nor outstay its time.

    Raises:
        _TimedOut: The time is over; the task is cancelled, but not waited for, since it may not obey.
        _Left: The code raised what ends a process, or was cancelled from within.
    """

    async def inside() -> Any:
        try:
            return await awaited
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as error:
            raise _Left(named(error)) from error

    task = asyncio.ensure_future(inside())
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.cancel()
        task.add_done_callback(lambda late: late.cancelled() or late.exception())
        raise _TimedOut
    if task.cancelled():
        raise _Left("CancelledError: it was cancelled from within")
    return task.result()


async def _invoke(
    tool: Tool[Any], function: Callable[..., Any], context: RunContext[Any, Any, Any], arguments: dict[str, Any]
) -> Any:
    async def call() -> Any:
        if inspect.iscoroutinefunction(function):
            return await tool.invoke(function, context, arguments)
        result = await in_thread(tool.invoke, function, context, arguments)
        return await result if inspect.isawaitable(result) else result

    return await _contained(call(), tool.timeout.total_seconds())


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
            error = _Left(named(raised))
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the worker's loop has ended
            _LOGGER.warning("a tool ended after its worker")

    threading.Thread(target=work, name="beam-agents-tool", daemon=True).start()
    return await future
