"""The typed answer: its schema for the model, its reading, and what a model is told when it does not fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from beam_agents.codec import adapter, dump, explain, load
from beam_agents.errors import BeamAgentsError, ConfigurationError
from beam_agents.messages import OutputSpec, UserMessage

CORRECTION = "Your answer cannot be used"
"""How a message begins that tells the model what is wrong with its answer."""

_FENCED = re.compile(r"^\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)


class InvalidOutput(BeamAgentsError):
    """A model's answer did not fit the output type, also after it was told what was wrong."""


@dataclass(frozen=True)
class Output:
    """An output type, ready for use."""

    type: Any
    spec: OutputSpec | None
    """`None` for plain text."""

    @staticmethod
    def of(output_type: Any) -> Output:
        """The output of a type.

        Raises:
            ConfigurationError: pydantic has no JSON schema for the type.
        """
        try:
            return _output(output_type)
        except TypeError:
            return _output.__wrapped__(output_type)

    def read(self, text: str | None) -> Any:
        """The answer as the output type.

        Raises:
            ValueError: It does not fit; the message is fit to be shown to the model.
        """
        if text is None or not text.strip():
            raise ValueError("the answer is empty")
        if self.spec is None:
            return text
        fenced = _FENCED.match(text)
        try:
            value = load(self.type, fenced[1] if fenced else text)
        except ValidationError as error:
            raise ValueError(explain(error, "answer")) from error
        dump(self.type, value)  # raises for what cannot be recorded, such as NaN
        return value

    def correction(self, error: ValueError) -> UserMessage:
        """What the model is told about an answer that does not fit."""
        if self.spec is None:
            return UserMessage(text=f"{CORRECTION}: {error}. Answer again, in plain text.")
        return UserMessage(text=f"{CORRECTION}: {error}. Answer again, with nothing but JSON that fits the schema.")

    def invalid(self, error: ValueError) -> InvalidOutput:
        """The error that ends the run."""
        return InvalidOutput(f"the model's answer does not fit {_name(self.type)}: {error}")


@lru_cache(maxsize=256)
def _output(output_type: Any) -> Output:
    if output_type is str:
        return Output(str, None)
    try:
        schema = adapter(output_type).json_schema()
    except Exception as error:
        raise ConfigurationError(f"output_type={output_type!r}: no JSON schema can be made of it: {error}") from error
    return Output(output_type, OutputSpec(name=_name(output_type), json_schema=schema))


def _name(output_type: Any) -> str:
    name = getattr(output_type, "__name__", None) or "Answer"
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64]
