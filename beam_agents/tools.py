"""Tools: functions that a model or a workflow may call, and what it means to call one twice."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast, get_args, get_origin, get_type_hints, overload

import docstring_parser
from pydantic import BaseModel, ConfigDict, Field, create_model

from beam_agents.codec import adapter, to_json_value
from beam_agents.context import RunContext
from beam_agents.errors import ConfigurationError
from beam_agents.messages import ToolSpec

R = TypeVar("R")

Effect: TypeAlias = Literal["pure", "idempotent", "once"]
"""What it means to make a call again.

`pure` changes nothing outside, so it may run again. `idempotent` changes something, but the other side makes it
once for one idempotency key. `once` must not run again unless it is known that it did not happen.
"""

_NAME = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")  # what chat servers accept


@dataclass(frozen=True)
class Happened(Generic[R]):
    """Answer of `reconcile`: the call took effect, and this is what it returned."""

    result: R


@dataclass(frozen=True)
class CannotHappen:
    """Answer of `reconcile`: the call did not take effect and never will any more, so it may be made anew."""


@dataclass(frozen=True)
class Unknown:
    """Answer of `reconcile`: nobody can say; the run ends in `failures` as in doubt."""

    why: str = ""


class Tool(Generic[R]):
    """A function with the declaration of its effect; made by `@tool`. Calling it calls the function."""

    def __init__(
        self,
        function: Callable[..., R | Awaitable[R]],
        *,
        effect: Effect,
        reconcile: Callable[..., Any] | None = None,
        timeout: timedelta = timedelta(seconds=30),
        retries: int = 0,
        model_retries: int = 2,
        name: str | None = None,
        description: str | None = None,
    ) -> None:
        self.function = function
        self.effect = effect
        self.reconcile = reconcile
        self.timeout = timeout
        self.retries = retries
        self.model_retries = model_retries
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        self.is_async = inspect.iscoroutinefunction(function)
        self.description = description or _docstring(function)[0]
        self._check()
        self._parameters = _parameters(self)

    def _check(self) -> None:
        if not _NAME.match(self.name):
            raise ConfigurationError(f"tool {self.name!r}: a name has 1 to 64 letters, digits, _ or -; give name=...")
        if self.effect not in get_args(Effect):
            raise ConfigurationError(
                f"tool {self.name!r}: effect={self.effect!r} must be 'pure', 'idempotent' or 'once'"
            )
        if self.effect == "once" and self.retries:
            raise ConfigurationError(
                f"tool {self.name!r}: retries={self.retries} would make a 'once' call again without knowing whether it "
                "happened; drop retries, or declare effect='idempotent' if the other side honours ctx.idempotency_key"
            )
        if self.reconcile is not None and self.effect != "once":
            raise ConfigurationError(
                f"tool {self.name!r}: reconcile is asked about 'once' calls only; drop it or declare effect='once'"
            )
        if self.timeout <= timedelta(0):
            raise ConfigurationError(f"tool {self.name!r}: timeout={self.timeout!r} must be above zero")
        if self.retries < 0 or self.model_retries < 0:
            raise ConfigurationError(f"tool {self.name!r}: retries and model_retries may not be below zero")

    def __call__(self, *args: Any, **kwargs: Any) -> R | Awaitable[R]:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Tool({self.name!r}, effect={self.effect!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The decorated name is bound to the tool, so the function alone cannot be pickled by reference.
        module, qualname = self.function.__module__, getattr(self.function, "__qualname__", "")
        if module != "__main__" and find(module, qualname) is self:
            return find, (module, qualname)
        attributes = {name: value for name, value in self.__dict__.items() if name not in ("spec", "_parameters")}
        return _rebuild, (attributes,)

    @cached_property
    def spec(self) -> ToolSpec:
        """The tool as a model sees it."""
        schema = self._parameters.model_json_schema()
        schema.pop("title", None)
        for parameter in schema.get("properties", {}).values():
            parameter.pop("title", None)
        return ToolSpec(name=self.name, description=self.description, parameters=schema)

    def arguments_from(self, arguments: str | dict[str, Any]) -> dict[str, Any]:
        """Arguments, checked, as plain JSON data: what is journaled and digested.

        Args:
            arguments: JSON text from a model, or values from a workflow.

        Raises:
            pydantic.ValidationError: They do not fit the signature.
        """
        if isinstance(arguments, str):
            checked = self._parameters.model_validate_json(arguments or "{}")
        else:
            checked = self._parameters.model_validate(arguments)
        return cast(dict[str, Any], to_json_value(checked.model_dump(mode="json")))

    def invoke(
        self, function: Callable[..., Any], context: RunContext[Any, Any, Any], arguments: dict[str, Any]
    ) -> Any:
        """Calls `function` (the tool's own, or its `reconcile`) with journaled arguments."""
        checked = self._parameters.model_validate(arguments)
        values = {name: getattr(checked, name) for name in type(checked).model_fields}
        if _context_parameter(function) is not None:
            return function(context, **values)
        return function(**values)

    def result_from(self, value: Any) -> R:
        """A journaled result as the function's return type."""
        returns = get_type_hints(self.function).get("return", Any)
        if get_origin(returns) is Awaitable:
            returns = get_args(returns)[0]
        return cast(R, adapter(returns).validate_python(value) if returns is not Any else value)


@overload
def tool(
    *,
    effect: Effect,
    reconcile: Callable[..., Any] | None = None,
    timeout: timedelta = ...,
    retries: int = 0,
    model_retries: int = 2,
    name: str | None = None,
    description: str | None = None,
) -> _Decorator: ...
@overload
def tool(function: Callable[..., Any], /) -> Any: ...
def tool(function: Callable[..., Any] | None = None, /, **declaration: Any) -> Any:
    """Makes a function a tool. Its schema comes from type hints and docstring.

    Args:
        effect: `"pure"`, `"idempotent"` or `"once"`: what it means to call it again. There is no default, since a
            wrong one is found out only after a crash.
        reconcile: For `once`: a function with the tool's parameters that says what became of a call whose outcome
            was not recorded. It returns `Happened(result)`, `CannotHappen()` or `Unknown()`.
        timeout: For one attempt. A function that is not async goes on in its thread after it, but its result is
            not used.
        retries: Further attempts after an exception or a time-out; not for `once`.
        model_retries: How often the model is told of wrong arguments or a `ModelRetry` in one run.
        name: The name the model sees; the function's by default.
        description: What the model is told; the docstring by default.

    A first parameter annotated as `RunContext` is filled by the engine and hidden from the model.
    """
    if function is not None or "effect" not in declaration:
        name = getattr(function, "__name__", "...")
        raise ConfigurationError(
            f"@tool on {name!r}: declare what calling it again means: @tool(effect='pure'), 'idempotent' or 'once'"
        )
    return lambda decorated: Tool(decorated, **declaration)


class _Decorator:
    """The type of what `tool(...)` returns, for type checkers."""

    @overload
    def __call__(self, function: Callable[..., Awaitable[R]], /) -> Tool[R]: ...
    @overload
    def __call__(self, function: Callable[..., R], /) -> Tool[R]: ...
    def __call__(self, function: Any, /) -> Any: ...


def find(module: str, qualname: str) -> Any:
    """The object that an importable module has under a dotted name, or `None`; used to unpickle by reference."""
    found: Any = sys.modules.get(module)
    if found is None:
        try:
            __import__(module)
        except ImportError:
            return None
        found = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _rebuild(attributes: dict[str, Any]) -> Tool[Any]:
    rebuilt: Tool[Any] = Tool.__new__(Tool)
    rebuilt.__dict__.update(attributes)
    rebuilt._parameters = _parameters(rebuilt)
    return rebuilt


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description and the parameters' descriptions."""
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    texts = filter(None, (doc.short_description, doc.long_description))
    return "\n\n".join(texts), {parameter.arg_name: parameter.description or "" for parameter in doc.params}


def _context_parameter(function: Callable[..., Any]) -> str | None:
    parameters = list(inspect.signature(function).parameters)
    if not parameters:
        return None
    hint = _hints(function).get(parameters[0])
    return parameters[0] if (get_origin(hint) or hint) is RunContext else None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"tool {getattr(function, '__name__', function)!r}: the annotation {error.name!r} cannot be found; "
            "import it at the top of the module, not under TYPE_CHECKING"
        ) from error


def _parameters(declared: Tool[Any]) -> type[BaseModel]:
    function = declared.function
    hints = _hints(function)
    descriptions = _docstring(function)[1]
    hidden = _context_parameter(function)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == hidden:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigurationError(f"tool {declared.name!r}: parameter {name!r} must be a plain named parameter")
        if name not in hints:
            raise ConfigurationError(f"tool {declared.name!r}: parameter {name!r} needs a type hint for its schema")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints[name], Field(default, description=descriptions.get(name) or None))
    return create_model(f"{declared.name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)
