"""Tools: functions that a model or a workflow may call, and what it means to call one twice."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import (
    Any,
    Generic,
    Literal,
    Never,
    NoReturn,
    TypeAlias,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import docstring_parser
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from beam_agents.codec import canonical_json, explain, json_text, named, to_json_value
from beam_agents.context import RunContext
from beam_agents.errors import ConfigurationError, ToolError
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


class RedactionFailed(ToolError):
    """A tool's `redact` failed, so what it should have redacted is dropped."""


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
        in_flight: int | None = None,
        name: str | None = None,
        description: str | None = None,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self.function = function
        self.effect = effect
        self.reconcile = reconcile
        self.timeout = timeout
        self.retries = retries
        self.model_retries = model_retries
        self.in_flight = in_flight
        self.redact = redact
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        self.description = description or _docstring(function)[0]
        self._check()
        # Resolved once: a function that was pickled by value has lost the names that its annotations speak of.
        self._hints = hints_of(self.name, function)
        self._with_context = _drop_context(function, self._hints)
        self._reconcile_with_context = reconcile is not None and _drop_context(
            reconcile, hints_of(self.name, reconcile)
        )
        _ = self._arguments, self._result  # what they cannot be made of is refused here

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
        if self.redact is not None and not callable(self.redact):
            raise ConfigurationError(f"tool {self.name!r}: redact must be a function from text to text")
        if self.in_flight is not None and (not isinstance(self.in_flight, int) or self.in_flight < 1):
            raise ConfigurationError(
                f"tool {self.name!r}: in_flight={self.in_flight!r} must be a whole number above zero, or None"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> R | Awaitable[R]:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Tool({self.name!r}, effect={self.effect!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The decorated name is bound to the tool, so the function alone cannot be pickled by reference.
        module, qualname = self.function.__module__, getattr(self.function, "__qualname__", "")
        if module != "__main__" and find(module, qualname) is self:
            return find, (module, qualname)
        made = ("spec", "_arguments", "_result", "_exact", "_exact_result")
        attributes = {name: value for name, value in self.__dict__.items() if name not in made}
        return _rebuild, (type(self), attributes)

    # Cached, and not made when a tool is unpickled: runners do that a dozen times, mostly to look at a pipeline.

    @cached_property
    def _arguments(self) -> type[BaseModel]:
        return _arguments(self)

    @cached_property
    def _result(self) -> type[BaseModel]:
        return _result(self)

    # Values of these types are JSON data as they are. Most values are, and pydantic takes its time to say so.

    @cached_property
    def _exact(self) -> dict[str, type]:
        """The parameters that are just a text, a whole number, a truth value or nothing."""
        fields = self._arguments.model_fields.items()
        return {field: field_type for field, info in fields if (field_type := _exact_type(info)) is not None}

    @cached_property
    def _exact_result(self) -> type | None:
        return _exact_type(self._result.model_fields["value"])

    @cached_property
    def spec(self) -> ToolSpec:
        """The tool as a model sees it."""
        schema = self._arguments.model_json_schema()
        schema.pop("title", None)
        for parameter in schema.get("properties", {}).values():
            parameter.pop("title", None)
        return ToolSpec(name=self.name, description=self.description, parameters=schema)

    def arguments_from(self, arguments: str | dict[str, Any]) -> dict[str, Any]:
        """Arguments, checked, as plain JSON data: what is journaled and digested.

        Args:
            arguments: JSON text from a model, or values from a workflow; values that are JSON data are read as JSON.

        Raises:
            pydantic.ValidationError: They do not fit the signature, or JSON cannot hold them.
        """
        text = arguments or "{}" if isinstance(arguments, str) else json_text(arguments)
        if text is not None:
            checked = self._read(text)
        else:
            checked = self._arguments.model_validate(arguments, by_alias=True, by_name=True)
        plain: dict[str, Any] = {}
        for field in type(checked).model_fields:
            name, value = field.removeprefix(_FIELD), getattr(checked, field)
            try:
                plain[name] = value if _is_exactly(value, self._exact.get(field)) else _plain(checked, field)
            except ValueError as error:
                wrong = PydanticCustomError("json", "{error}", {"error": str(error)})
                details = InitErrorDetails(type=wrong, loc=(name,), input=getattr(checked, field))
                raise ValidationError.from_exception_data(self.name, [details]) from error
        return plain

    def _read(self, text: str) -> BaseModel:
        return self._arguments.model_validate_json(text, by_alias=True, by_name=True)

    def invoke(
        self, function: Callable[..., Any], context: RunContext[Any, Any, Any], arguments: dict[str, Any]
    ) -> Any:
        """Calls `function` (the tool's own, or its `reconcile`) with journaled arguments."""
        values = arguments
        if not self._are_exact(arguments):
            checked = self._read(canonical_json(arguments))
            values = {name.removeprefix(_FIELD): getattr(checked, name) for name in type(checked).model_fields}
        if self._with_context if function is self.function else self._reconcile_with_context:
            return function(context, **values)
        return function(**values)

    def _are_exact(self, arguments: dict[str, Any]) -> bool:
        """Whether these are the values that the function gets, because no type makes another of one."""
        exact = self._exact
        return len(arguments) == len(exact) == len(self._arguments.model_fields) and all(
            type(value) is exact.get(_FIELD + name) for name, value in arguments.items()
        )

    def result_json(self, result: Any) -> Any:
        """What the function returned, as plain JSON data that `result_from` reads back: what is journaled.

        Raises:
            ValueError: JSON cannot hold it.
        """
        if _is_exactly(result, self._exact_result):
            return result
        return _plain(self._result.model_construct(value=result), "value")

    def redacted(self, value: Any) -> Any:
        """JSON data with each text in it as `redact` returns it.

        Raises:
            RedactionFailed: `redact` raised, or did not return a text. Its message quotes neither.
        """
        if self.redact is None or value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, dict):
            return {key: self.redacted(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.redacted(item) for item in value]
        text: Any
        try:
            text = self.redact(value)
        except Exception as error:
            wrong = f"raised {type(error).__name__}"
        else:
            if isinstance(text, str):
                return text
            wrong = f"returned {type(text).__name__} instead of a text"
        raise RedactionFailed(f"tool {self.name!r}: its redact function {wrong}, so nothing of it is shown")

    def result_from(self, value: Any) -> R:
        """A journaled result as the function's return type.

        Raises:
            ToolError: It is something else than the return type.
        """
        if type(value) is self._exact_result:
            return cast(R, value)
        try:
            checked = self._result.model_validate_json(canonical_json({"value": value}), by_alias=True, by_name=True)
        except Exception as error:  # validators of the user's types may raise anything
            why = explain(error, "value") if isinstance(error, ValidationError) else named(error)
            raise ToolError(f"tool {self.name!r} returned something else than its return type: {why}") from error
        return cast(R, getattr(checked, "value"))  # noqa: B009 - the model is made here, its fields are unknown to types


@overload
def tool(
    *,
    effect: Effect,
    reconcile: Callable[..., Any] | None = None,
    timeout: timedelta = ...,
    retries: int = 0,
    model_retries: int = 2,
    in_flight: int | None = None,
    name: str | None = None,
    description: str | None = None,
    redact: Callable[[str], str] | None = None,
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
        in_flight: How many calls of it a worker process has under way at most, all runs and agents together.
        name: The name the model sees; the function's by default.
        description: What the model is told; the docstring by default.
        redact: Gets each text in a result and in an error, and returns what is recorded and seen in its place: by
            the ledger, the model, the trace. Keys and numbers stay as they are.

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


def _rebuild(kind: type[Tool[Any]], attributes: dict[str, Any]) -> Tool[Any]:
    rebuilt = kind.__new__(kind)
    rebuilt.__dict__.update(attributes)
    return rebuilt


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description and the parameters' descriptions."""
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    texts = filter(None, (doc.short_description, doc.long_description))
    return "\n\n".join(texts), {parameter.arg_name: parameter.description or "" for parameter in doc.params}


def hints_of(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The type hints of a tool's function or of its `reconcile`."""
    try:
        return get_type_hints(
            function if inspect.isroutine(function) else cast(Any, function).__call__, include_extras=True
        )
    except NameError as error:
        raise ConfigurationError(
            f"tool {name!r}: the annotation {error.name!r} cannot be found; "
            "import it at the top of the module, not under TYPE_CHECKING"
        ) from error
    except TypeError as error:
        raise ConfigurationError(
            f"tool {name!r}: the type hints of {function!r} cannot be read: {error}; write a function with type hints"
        ) from error


def _drop_context(function: Callable[..., Any], hints: dict[str, Any]) -> bool:
    """Whether the first parameter is the context; its hint is taken out then."""
    first = next(iter(inspect.signature(function).parameters), "")
    if (get_origin(hints.get(first)) or hints.get(first)) is not RunContext:
        return False
    del hints[first]
    return True


_LONGEST_INT = 1_024
"""Bits of a whole number that is plainly one that JSON can hold."""

_FIELD = "parameter "
"""Before the names of the fields, so that parameters may have the names of what `BaseModel` has."""

_CONFIG = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


def _arguments(declared: Tool[Any]) -> type[BaseModel]:
    """The model of a tool's arguments."""
    function = declared.function
    descriptions = _docstring(function)[1]
    fields: dict[str, Any] = {}
    parameters = list(inspect.signature(function).parameters.items())
    for name, parameter in parameters[1:] if declared._with_context else parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigurationError(f"tool {declared.name!r}: parameter {name!r} must be a plain named parameter")
        if name.startswith("_"):
            raise ConfigurationError(
                f"tool {declared.name!r}: parameter {name!r} is shown to the model; give it a name without '_' in front"
            )
        if name not in declared._hints:
            raise ConfigurationError(f"tool {declared.name!r}: parameter {name!r} needs a type hint for its schema")
        hint = declared._hints[name]
        try:
            TypeAdapter(hint).json_schema()
        except Exception as error:
            raise ConfigurationError(
                f"tool {declared.name!r}: parameter {name!r} has the type {hint!r}, "
                f"of which no JSON schema can be made: {error}"
            ) from error
        default = ... if parameter.default is parameter.empty else parameter.default
        description = FieldInfo.from_annotation(hint).description or descriptions.get(name) or None
        fields[_FIELD + name] = (hint, Field(default, alias=name, description=description))
    return create_model(f"{declared.name}_arguments", __config__=_CONFIG, **fields)


def _result(declared: Tool[Any]) -> type[BaseModel]:
    """The model of a tool's result, in the field `value`."""
    returns = declared._hints.get("return", Any)
    if get_origin(returns) in (Awaitable, Coroutine):
        returns = get_args(returns)[-1]
    if returns in (NoReturn, Never):
        returns = Any
    try:
        return create_model(f"{declared.name}_result", __config__=_CONFIG, value=(returns, ...))
    except Exception as error:
        raise ConfigurationError(
            f"tool {declared.name!r}: pydantic cannot read the return type {returns!r} back from a journal: {error}"
        ) from error


def _exact_type(field: FieldInfo) -> type | None:
    """The type of a field whose values are JSON data, and stay what they are when they are read."""
    exact: Any = None if field.metadata else field.annotation
    return exact if exact in (str, int, bool, type(None)) else None


def _is_exactly(value: Any, exact: type[Any] | None) -> bool:
    """Whether it is of this very type, and JSON can hold it.

    Raises:
        ValueError: It is a text with half a surrogate pair.
    """
    if exact is None or type(value) is not exact:
        return False
    if isinstance(value, int):
        return value.bit_length() <= _LONGEST_INT  # longer ones may have more digits than Python writes
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            canonical_json(value)  # says so as for all other values
    return True


def _plain(model: BaseModel, field: str) -> Any:
    """A field as plain JSON data that reads back to the same value.

    Raises:
        ValueError: JSON cannot hold it.
    """
    try:
        plain = model.model_dump(mode="json", include={field}, by_alias=False, round_trip=True, warnings=False)
        values = model.model_dump(include={field}, by_alias=False, round_trip=True, warnings=False)
    except Exception as error:  # serializers of the user's types may raise anything
        raise ValueError(f"{type(getattr(model, field)).__name__} cannot be held by JSON: {named(error)}") from error
    return to_json_value(_same_everywhere(plain[field], values[field]))


def _same_everywhere(plain: Any, value: Any) -> Any:
    """`plain`, the JSON data of `value`, with its sets sorted: their order differs between processes.

    Raises:
        ValueError: A value has become null, as pydantic does with infinity and NaN.
    """
    if plain is None and value is not None:
        raise ValueError(f"JSON cannot hold {value!r}")
    if isinstance(value, (set, frozenset)) and isinstance(plain, list):
        return sorted(plain, key=canonical_json)
    if isinstance(value, dict) and isinstance(plain, dict):
        pairs = zip(plain.items(), value.values(), strict=True)
        return {key: _same_everywhere(part, original) for (key, part), original in pairs}
    if isinstance(value, (list, tuple)) and isinstance(plain, list):
        return [_same_everywhere(part, original) for part, original in zip(plain, value, strict=True)]
    return plain
