"""Where in a request the run in hand begins."""

from __future__ import annotations

from collections.abc import Sequence

from beam_agents.messages import AssistantMessage, Message, UserMessage
from beam_agents.output import CORRECTION


def split_turn(messages: Sequence[Message]) -> tuple[int, str]:
    """The turn in hand: from the newest user message that is not a correction to the end.

    What precedes is instructions and history. A request is all that a model may look at, so this works on the
    messages alone; the history can be cut anywhere without changing the turn.

    Returns:
        The index of the turn's first message and its text; 0 and no text when there is no user message.
    """
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if isinstance(message, UserMessage) and not message.text.startswith(CORRECTION):
            return index, message.text
    return 0, ""


def answers_so_far(turn: Sequence[Message]) -> int:
    """How often the model has answered in a turn."""
    return sum(isinstance(message, AssistantMessage) for message in turn)
