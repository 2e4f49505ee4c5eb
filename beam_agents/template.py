"""Instructions and prompts over event and state."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from typing_extensions import is_typeddict

from beam_agents.errors import ConfigurationError

_ROOTS = ("event", "state", "key")
_FIELD = re.compile(r"(\w*)(?:\.(\w+))?")


class Template:
    """Text with fields of the event, the state and the key: `Template("Card {key}: {event.amount} EUR")`.

    The fields are those of `str.format`, format specifications included; `{{` and `}}` stand for braces. Names are
    checked when the agent is made, as far as the types tell.

    Args:
        text: The text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            fields = list(_fields(text))
        except ValueError as error:
            raise ConfigurationError(f"Template({text!r}): {error}; write {{{{ and }}}} for braces") from error
        for name in fields:
            if _split(name)[0] not in _ROOTS:
                raise ConfigurationError(f"Template field {name!r} must begin with one of {', '.join(_ROOTS)}")
        self._fields = fields

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def check(self, event_type: Any, state_type: Any) -> None:
        """Refuses fields that the types do not have.

        Raises:
            ConfigurationError: It names the field and what there is instead.
        """
        for name in self._fields:
            root, attribute = _split(name)
            if root == "state" and name != root and state_type is None:
                raise ConfigurationError(f"Template field {name!r}: the agent has no state; give it state_type=...")
            for type_ in members({"event": event_type, "state": state_type}.get(root)):
                names = field_names(type_)
                if attribute and names is not None and attribute not in names and not hasattr(type_, attribute):
                    raise ConfigurationError(
                        f"Template field {name!r}: {type_.__name__} has no {attribute!r}, it has: {', '.join(names)}"
                    )

    def render(self, *, event: Any, state: Any, key: Any) -> str:
        """The text with its fields filled in."""
        return self.text.format(event=event, state=state, key=key)


def members(type_: Any) -> tuple[Any, ...]:
    """The members of a union, also of one within `Annotated`; of any other type, the type."""
    if get_origin(type_) is Annotated:
        return members(get_args(type_)[0])
    if get_origin(type_) in (Union, UnionType):
        return tuple(member for part in get_args(type_) for member in members(part))
    return (type_,)


def field_names(type_: Any) -> list[str] | None:
    """The fields of a pydantic model, a dataclass or a `TypedDict`; of another type nothing is known."""
    if is_typeddict(type_):
        return list(type_.__annotations__)
    if isinstance(type_, type) and issubclass(type_, BaseModel):
        return list(type_.model_fields)
    if isinstance(type_, type) and dataclasses.is_dataclass(type_):
        return [field.name for field in dataclasses.fields(type_)]
    return None


def _fields(text: str) -> Iterator[str]:
    for _, name, specification, _ in string.Formatter().parse(text):
        if name is not None:
            yield name
            yield from _fields(specification or "")


def _split(name: str) -> tuple[str, str | None]:
    """`("event", "amount")` of `event.amount.real`; no attribute when an item is taken."""
    found = _FIELD.match(name)
    assert found is not None
    return found[1], found[2]
