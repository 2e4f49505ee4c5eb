"""A key's session: the conversation and the domain state that outlive a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from beam_agents.errors import ConfigurationError
from beam_agents.messages import Message, UserMessage, repair
from beam_agents.output import CORRECTION
from beam_agents.stored import Stored

_CHARACTERS_PER_TOKEN = 4  # the usual rule of thumb for English; exact counts differ by model and are not needed here


@dataclass(frozen=True, kw_only=True)
class History:
    """How much of a key's conversation the next run is told. `History(max_messages=0)` for none."""

    max_messages: int = 40
    """Messages, tool calls and their results included."""
    max_tokens: int = 8_000
    """Tokens, estimated at four characters each."""

    def __post_init__(self) -> None:
        if self.max_messages < 0 or self.max_tokens < 0:
            raise ConfigurationError(f"{self!r}: neither bound may be below zero; 0 messages is no history")

    def trim(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The newest messages that fit, each tool call with its result.

        They begin with a user's message, not with one that corrects an answer which is gone.
        """
        kept: list[Message] = []
        tokens = 0
        for message in reversed(repair(messages)):
            tokens += message.size // _CHARACTERS_PER_TOKEN
            if len(kept) == self.max_messages or tokens > self.max_tokens:
                break
            kept.append(message)
        kept.reverse()
        starts = (index for index, message in enumerate(kept) if _may_begin(message))
        return tuple(kept[next(starts, len(kept)) :])


def _may_begin(message: Message) -> bool:
    return isinstance(message, UserMessage) and not message.text.startswith(CORRECTION)


class Session(Stored):
    """What the engine keeps for a key between runs."""

    version: int = 0
    """Counts the changes; the ledger's head has the newest."""
    touched: int | None = None
    """Event time of the newest event that it took in, microseconds since 1970; a session expires by event time."""
    history: tuple[Message, ...] = ()
    state: JsonValue = None
    """Domain state as JSON; `None` until the first event."""
