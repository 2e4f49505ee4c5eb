"""Functions without a body that declare a tool: their signature, return type and docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias, get_args

from beam_agents.codec import canonical_json, to_json_value
from beam_agents.context import RunContext
from beam_agents.errors import ConfigurationError
from beam_agents.tools import CannotHappen, Effect, Tool, Unknown, hints_of

Context: TypeAlias = RunContext[Any, Any, Any]
Call: TypeAlias = Callable[[Context, dict[str, Any]], Awaitable[Any]]
"""What carries a declared tool out: it gets the context and the arguments."""

KEY = "idempotency_key"
"""The name under which URLs and statements use the call's key."""


@dataclass(frozen=True)
class Reconcile:
    """How to ask the other side what became of a `once` call.

    Args:
        ask: A URL for GET, or a SELECT, with the tool's parameters and `idempotency_key`. What it finds is the result.
        absent: What it means that it finds nothing. `"cannot_happen"` only if the other side will also turn away a
            call that arrives late; else another call could be made beside one that is still on its way.
    """

    ask: str
    absent: Literal["unknown", "cannot_happen"] = "unknown"

    def __post_init__(self) -> None:
        if self.absent not in ("unknown", "cannot_happen"):
            raise ConfigurationError(f"Reconcile: absent={self.absent!r} must be 'unknown' or 'cannot_happen'")

    def nothing_found(self) -> CannotHappen | Unknown:
        """The answer when nothing is there."""
        if self.absent == "cannot_happen":
            return CannotHappen()
        return Unknown("nothing is known of it there, but it may still be on its way")


class Lost:
    """Returned for a result that cannot be had of a call that happened: no JSON, so the call ends as `result_lost`."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __repr__(self) -> str:
        return self._why


class Declaration:
    """A function without a body, read.

    Attributes:
        name: The function's.
        returns: Its return type.
        parameters: Their names, in order.

    Raises:
        ConfigurationError: It has a body, or no return type.
    """

    def __init__(self, kind: str, function: Callable[..., Any]) -> None:
        if isinstance(function, Tool) or not inspect.isfunction(function):
            raise ConfigurationError(f"@{kind} declares a function without a body, not {function!r}")
        self.name = function.__name__
        self._function = function
        self._hints = hints_of(self.name, function)
        if "return" not in self._hints:
            raise ConfigurationError(f"{kind} {self.name!r}: declare what it returns: def {self.name}(...) -> ...")
        if len(function.__code__.co_code) != len(_empty.__code__.co_code):
            raise ConfigurationError(
                f"{kind} {self.name!r}: its body would never run; leave a docstring or ..., in a plain def"
            )
        self.returns = self._hints["return"]
        self._signature = inspect.signature(function)
        self.parameters = tuple(self._signature.parameters)

    def calling(self, call: Call) -> Callable[..., Awaitable[Any]]:
        """A function with the declared signature, and the context in front, that calls `call`."""

        async def made(_context: Context, /, **values: Any) -> Any:
            return await call(_context, values)

        first = inspect.Parameter("_context", inspect.Parameter.POSITIONAL_ONLY, annotation=RunContext)
        parameters = [first, *self._positional()]
        made.__signature__ = self._signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        made.__annotations__ = {"_context": RunContext, **self._hints}
        for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(made, attribute, getattr(self._function, attribute))
        return made

    def _positional(self) -> list[inspect.Parameter]:
        """The parameters in an order that a signature may have, whatever the function's own kinds are."""
        parameters = self._signature.parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [one.replace(kind=named[1]) if one.kind in named else one for one in parameters]


def _empty() -> None: ...


def check_effect(kind: str, effect: Any) -> None:
    """Raises `ConfigurationError` if it is none."""
    if effect not in get_args(Effect):
        raise ConfigurationError(f"{kind}: effect={effect!r} must be 'pure', 'idempotent' or 'once'")


def check_limits(kind: str, *, timeout: timedelta, **above_zero: int) -> None:
    """Raises `ConfigurationError` for a limit that is not above zero."""
    if timeout <= timedelta(0):
        raise ConfigurationError(f"{kind}: timeout={timeout!r} must be above zero")
    for name, value in above_zero.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{kind}: {name}={value!r} must be a whole number above zero")


def without_user(url: Any) -> str:
    """A URL, or what was given for one, as errors show it: what stands before an `@` may be a password."""
    return re.sub(r"//[^/?#]*@", "//***@", repr(url))


def as_text(value: Any) -> str:
    """An argument as URLs write it: texts as they are, everything else as JSON."""
    plain = to_json_value(value)
    return plain if isinstance(plain, str) else canonical_json(plain)


def used_names(kind: str, names: Mapping[str, str], parameters: tuple[str, ...]) -> None:
    """Checks that what a template uses is a parameter.

    Args:
        kind: The tool, for the error.
        names: Each name that is used, and where.
        parameters: The function's.
    """
    for name, where in names.items():
        if name != KEY and name not in parameters:
            raise ConfigurationError(
                f"{kind}: {name!r} in {where} is no parameter; there is: {', '.join(parameters) or 'none'}"
            )
