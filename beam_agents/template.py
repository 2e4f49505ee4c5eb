"""Instructions and prompts over event and state."""

from __future__ import annotations

import string
from typing import Any, get_args

from pydantic import BaseModel

from beam_agents.errors import ConfigurationError

_ROOTS = ("event", "state", "key")


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
            fields = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        except ValueError as error:
            raise ConfigurationError(f"Template({text!r}): {error}; write {{{{ and }}}} for braces") from error
        for name in fields:
            if name.split(".")[0].split("[")[0] not in _ROOTS:
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
            root, *path = name.split(".")
            for type_ in _members({"event": event_type, "state": state_type}.get(root)):
                if path and isinstance(type_, type) and issubclass(type_, BaseModel):
                    attribute = path[0].split("[")[0]
                    if attribute not in type_.model_fields and not hasattr(type_, attribute):
                        there = ", ".join(type_.model_fields)
                        raise ConfigurationError(
                            f"Template field {name!r}: {type_.__name__} has no {attribute!r}, it has: {there}"
                        )

    def render(self, *, event: Any, state: Any, key: Any) -> str:
        """The text with its fields filled in."""
        return self.text.format(event=event, state=state, key=key)


def _members(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) or (type_,)
