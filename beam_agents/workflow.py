"""Workflows: agents with a fixed order of steps, written as an `async def`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar, cast, get_type_hints

from beam_agents.agent_base import AgentBase, DepsT, EventT, OutputT, StateT
from beam_agents.budget import Budget
from beam_agents.context import RunContext
from beam_agents.errors import ConfigurationError
from beam_agents.history import History
from beam_agents.messages import ModelSettings
from beam_agents.models.base import Model
from beam_agents.tools import find

E = TypeVar("E")
O = TypeVar("O")  # noqa: E741
S = TypeVar("S")
D = TypeVar("D")


class Workflow(AgentBase[EventT, OutputT, StateT, DepsT]):
    """An agent whose steps are code; made by `@workflow`."""

    def __init__(
        self, code: Callable[[RunContext[EventT, StateT, DepsT], EventT], Coroutine[Any, Any, OutputT]], **declared: Any
    ) -> None:
        self.code = code
        name = declared.pop("name") or code.__name__
        hints = _hints(code)
        if declared["event_type"] is None:
            declared["event_type"] = hints[1]
        if declared["output_type"] is None:
            declared["output_type"] = hints[2]
        super().__init__(name, **declared)

    def body(self, context: RunContext[EventT, StateT, DepsT]) -> Coroutine[Any, Any, OutputT]:
        """The decorated function."""
        return self.code(context, context.event)

    def __reduce__(self) -> tuple[Any, ...]:
        # The decorated name is bound to the workflow, so the function alone cannot be pickled by reference.
        module, qualname = self.code.__module__, self.code.__qualname__
        original = find(module, qualname) if module != "__main__" else None
        if isinstance(original, Workflow) and original.code is self.code:
            attributes = {name: value for name, value in self.__dict__.items() if name != "code"}
            return _restore, (module, qualname, attributes)
        return cast(tuple[Any, ...], super().__reduce__())


def _restore(module: str, qualname: str, attributes: dict[str, Any]) -> Workflow[Any, Any, Any, Any]:
    restored: Workflow[Any, Any, Any, Any] = Workflow.__new__(Workflow)
    restored.__dict__.update(attributes, code=find(module, qualname).code)
    return restored


class _Decorator(Protocol):
    def __call__(self, code: Callable[[RunContext[E, S, D], E], Coroutine[Any, Any, O]], /) -> Workflow[E, O, S, D]: ...


def workflow(
    *,
    name: str | None = None,
    model: str | Model | None = None,
    event_type: Any = None,
    output_type: Any = None,
    state_type: Any = None,
    on_event: Callable[[Any, Any], Any] | None = None,
    skip: Callable[[Any, Any], Any] | None = None,
    deps: Callable[[], Any] | None = None,
    history: History | None = None,
    revision: int = 1,
    budget: Budget | None = None,
    settings: ModelSettings | None = None,
    tools: Any = (),
) -> _Decorator:
    """Makes an `async def (ctx, event)` an agent: its steps are the calls it makes on `ctx`.

    The function runs again from the top after a crash and gets the recorded outcomes, so between its awaits it must
    do nothing that is random, asks a clock or leaves the process.

    Args:
        name: The function's by default.
        model: The model of `ctx.model`, `ctx.extract` and `ctx.classify`.
        event_type: From the second parameter's type hint by default.
        output_type: From the return type hint by default.
        state_type: As for `Agent`.
        on_event: As for `Agent`.
        skip: As for `Agent`.
        deps: As for `Agent`.
        history: As for `Agent`.
        revision: As for `Agent`.
        budget: As for `Agent`.
        settings: As for `Agent`.
        tools: The tools it calls, for the check that their effects need a ledger; calling others works too.
    """
    declared = dict(locals())

    def decorate(code: Callable[[RunContext[E, S, D], E], Awaitable[O]], /) -> Workflow[E, O, S, D]:
        if not inspect.iscoroutinefunction(code):
            raise ConfigurationError(f"@workflow on {code!r}: it must be an async def (ctx, event)")
        return Workflow(code, **declared)

    return cast(_Decorator, decorate)


def _hints(code: Callable[..., Any]) -> tuple[Any, Any, Any]:
    parameters = list(inspect.signature(code).parameters)
    if len(parameters) != 2:
        raise ConfigurationError(
            f"@workflow on {code.__name__!r}: it takes (ctx, event), not ({', '.join(parameters)})"
        )
    try:
        hints = get_type_hints(code)
    except NameError as error:
        raise ConfigurationError(
            f"@workflow on {code.__name__!r}: the annotation {error.name!r} cannot be found; import it at the top of "
            "the module, not under TYPE_CHECKING"
        ) from error
    return hints.get(parameters[0]), hints.get(parameters[1], Any), hints.get("return", Any)
