"""What an effect came to, and how it is written in the journal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from beam_agents.codec import printable
from beam_agents.errors import FailRun, ModelError, ModelRetry, ToolError, ToolFailed
from beam_agents.ledger.records import Effect
from beam_agents.messages import ModelResponse

Status: TypeAlias = Literal["ok", "retry", "failed", "rejected", "error", "result_lost", "in_doubt", "not_happened"]
"""`ok`; `retry`, `failed`, `rejected`: a tool raised ModelRetry, ToolFailed, FailRun; `error`: it raised otherwise,
timed out, or the model could not be asked; `result_lost`: it happened, but JSON or the tool's return type cannot
hold what it returned; `in_doubt`: nobody knows; `not_happened`: this attempt is known to have had no effect, another
one follows."""


class Fenced(Exception):
    """Another worker has the run, or it has ended."""


class Answered(Fenced):
    """An attempt is wanted no more, because the outcome of an earlier one has come late.

    Args:
        effect: The earlier attempt.
    """

    def __init__(self, effect: Effect) -> None:
        super().__init__(f"{effect.path} attempt {effect.attempt}")
        self.effect = effect


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt came to."""

    status: Status
    value: str
    """JSON: the result, or a message."""

    @staticmethod
    def of(status: Status, value: Any) -> Outcome:
        """An outcome with a JSON value, or with a message.

        Raises:
            ValueError: JSON cannot hold the value.
        """
        if isinstance(value, str):
            value = printable(value)
        return Outcome(status, json.dumps(value, ensure_ascii=False, allow_nan=False))


_RAISED: dict[str, Callable[[str], Exception]] = {"retry": ModelRetry, "failed": ToolFailed, "rejected": FailRun}


def read(effect: Effect) -> tuple[Any, Exception | None]:
    """A recorded outcome as what the code's await returns, or raises."""
    assert effect.value is not None
    if effect.status == "ok":
        if effect.kind == "model":
            return ModelResponse.model_validate_json(effect.value), None
        return json.loads(effect.value), None
    message = json.loads(effect.value)
    if effect.status in _RAISED:
        return None, _RAISED[effect.status](message)
    return None, ModelError(message) if effect.kind == "model" else ToolError(message)
