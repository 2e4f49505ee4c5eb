"""Carries out effects: asks models, calls tools, asks `reconcile`."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from beam_agents.codec import named, shown, told
from beam_agents.context import RunContext
from beam_agents.engine.outcome import Fenced, Outcome
from beam_agents.engine.threads import Left, in_thread
from beam_agents.engine.turn import ModelTurn
from beam_agents.errors import FailRun, LedgerError, ModelError, ModelRetry, NotCalled, ToolError, ToolFailed
from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.messages import ModelRequest, ModelResponse
from beam_agents.models.attempt import timed_out
from beam_agents.models.base import Model
from beam_agents.models.fallback import FallbackModel
from beam_agents.models.network import check_network_allowed
from beam_agents.models.retry import request_with_retries
from beam_agents.tools import CannotHappen, Happened, RedactionFailed, Tool, Unknown

_LOGGER = logging.getLogger(__name__)


async def ask_model(
    model: Model,
    request: ModelRequest,
    *,
    turn: ModelTurn,
    connect: Callable[[Model], Awaitable[None]],
    pause: Callable[[float], Awaitable[None]],
    network_forbidden: bool,
) -> Outcome:
    """Asks a model, with the retries of the request's settings.

    Args:
        model: Whom to ask.
        request: What.
        turn: Its turn, which was waited for before the intent.
        connect: Connects a model.
        pause: Waits, and confirms the intent between two requests.
        network_forbidden: Whether models that use the network are refused.

    Raises:
        Fenced: By `pause`, as is what the ledger raises.
    """

    async def ask(
        asked: Model, request: ModelRequest, *, chances: int | None = None, patience: float | None = None
    ) -> ModelResponse:
        while not turn.holds(asked):
            await turn.take(asked, chances=chances, patience=patience)
            await pause(0.0)
        turn.use()
        outcome: ModelResponse | ModelError | None = None
        try:
            attempt = asked.request(request) if asked is not model else _connected(asked, request, connect)
            answer = await _contained(attempt, request.settings.timeout)
            if not isinstance(answer, ModelResponse):
                raise TypeError(f"its request returned {shown(answer)} instead of a ModelResponse")
            outcome = answer
            return answer
        except _TimedOut:
            outcome = timed_out(asked, request)
            raise outcome from None
        except ModelError as error:
            outcome = error
            raise
        finally:
            turn.leave(outcome)

    try:
        check_network_allowed(model, network_forbidden)
        if isinstance(model, FallbackModel):  # it passes over a member that cannot be connected
            await _contained(connect(model), request.settings.timeout)
        response = await request_with_retries(model, request, forbidden=network_forbidden, ask=ask, sleep=turn.sleep)
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


async def _connected(model: Model, request: ModelRequest, connect: Callable[[Model], Awaitable[None]]) -> ModelResponse:
    """Connects a model at its first request, so that a connection that fails is tried again as a request is."""
    try:
        await connect(model)
    except OSError as error:
        raise ModelError(f"model {model.name!r} cannot be connected: {named(error)}", retryable=True) from error
    return await model.request(request)


async def call_tool(tool: Tool[Any], context: RunContext[Any, Any, Any], arguments: dict[str, Any]) -> Outcome:
    """Makes one attempt of a tool call. A `once` call that raised or timed out is looked into before it is judged."""
    return _redacted(tool, await _called(tool, context, arguments))


async def _called(tool: Tool[Any], context: RunContext[Any, Any, Any], arguments: dict[str, Any]) -> Outcome:
    try:
        result = await _invoke(tool, tool.function, context, arguments)
        return _result(tool, result)
    except ModelRetry as error:
        return Outcome.of("retry", told(error))
    except ToolFailed as error:
        return Outcome.of("failed", told(error))
    except FailRun as error:
        return Outcome.of("rejected", told(error))
    except NotCalled as error:
        return Outcome.of("error", f"tool {tool.name!r}: {told(error)}")
    except _TimedOut:
        why = f"tool {tool.name!r} did not answer in {tool.timeout.total_seconds():g} s"
    except Exception as error:
        why = f"tool {tool.name!r} raised {_named(error)}"
    if tool.effect != "once":
        return Outcome.of("error", why)
    return await _look_into(tool, context, arguments, why, not_happened="error")


async def reconcile(tool: Tool[Any], context: RunContext[Any, Any, Any], arguments: dict[str, Any]) -> Outcome:
    """What became of a `once` call whose worker died before it recorded the outcome."""
    why = "its worker died during the call"
    return _redacted(tool, await _look_into(tool, context, arguments, why, not_happened="not_happened"))


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
        plain = tool.redacted(tool.result_json(result))
        tool.result_from(plain)
        return Outcome.of("ok", plain)
    except ToolError as error:
        why = told(error)
    except BaseException as error:  # validators and serializers of the user's types may raise anything
        what = told(error) if isinstance(error, ValueError) else named(error)
        why = f"tool {tool.name!r} returned what JSON cannot hold: {what}"
    # An error would say that it may not have happened: the model, the code or a person could then do it again.
    was = f"; it was {shown(result)}" if tool.redact is None else ""  # a text that is cut short cannot be redacted
    return Outcome.of("error" if tool.effect == "pure" else "result_lost", f"{why}{was}")


def _redacted(tool: Tool[Any], outcome: Outcome) -> Outcome:
    """An outcome whose message is redacted; a result is already."""
    if tool.redact is None or outcome.status == "ok":
        return outcome
    try:
        return Outcome.of(outcome.status, tool.redacted(json.loads(outcome.value)))
    except RedactionFailed as error:
        return Outcome.of(outcome.status, told(error))


class _TimedOut(Exception):
    """A tool's time-out is over; not `TimeoutError`, which tools raise themselves."""


def _named(error: Exception) -> str:
    return told(error) if isinstance(error, Left) else named(error)


async def _contained(awaited: Awaitable[Any], seconds: float | None = None) -> Any:
    """Awaits user code in a task of its own: it can neither take the worker with it nor outstay its time.

    Raises:
        _TimedOut: The time is over; the task is cancelled, but not waited for, since it may not obey.
        Left: The code raised what ends a process, or was cancelled from within.
    """

    async def inside() -> Any:
        try:
            return await awaited
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as error:
            raise Left(named(error)) from error

    loop = asyncio.get_running_loop()
    task, over = loop.create_task(inside()), loop.create_future()

    def note(in_time: bool) -> None:
        if not over.done():
            over.set_result(in_time)

    task.add_done_callback(lambda _: note(True))
    timer = None if seconds is None else loop.call_later(seconds, note, False)
    try:
        in_time = await over
    except asyncio.CancelledError:
        task.cancel()
        raise
    finally:
        if timer is not None:
            timer.cancel()
    if not in_time:
        task.cancel()
        task.add_done_callback(lambda late: late.cancelled() or late.exception())
        raise _TimedOut
    try:
        if task.cancelled():
            raise Left("CancelledError: it was cancelled from within")
        return task.result()
    finally:
        del task  # the traceback of what it raised has this frame


async def _invoke(
    tool: Tool[Any], function: Callable[..., Any], context: RunContext[Any, Any, Any], arguments: dict[str, Any]
) -> Any:
    async def call() -> Any:
        if inspect.iscoroutinefunction(function):
            return await tool.invoke(function, context, arguments)
        result = await in_thread(tool.invoke, function, context, arguments)
        return await result if inspect.isawaitable(result) else result

    return await _contained(call(), tool.timeout.total_seconds())
