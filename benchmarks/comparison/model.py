"""The model as a process: what it says follows from the conversation alone, and each request is logged.

    python -m benchmarks.comparison.model --log FILE [--latency 0.125] [--spread 0.6]

prints its base URL and serves until it is ended.

For a message it looks the account up, then makes the one effect that the message asks for, if any, then answers. It
calls no tool whose result for this message it can see in the conversation, so a framework that remembers more is asked
to do less. A conversation in which a tool call is followed by something else than its result is refused with status
400, as providers do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from beam_agents.messages import AssistantMessage, ToolCall
from beam_agents.models import say
from beam_agents.testing.chat_server import MockChatServer, Reply
from benchmarks.comparison.task import amount_of, kind_of

_MESSAGE = re.compile(r"\[(M-\d+)\] Customer (\w+) writes:")


class ModelCall(BaseModel):
    """A line of the log: a request that was answered."""

    reference: str
    step: str
    """What the answer was: a tool's name, or `answer`."""


class Scripted:
    """Answers.

    Args:
        log: The file.
    """

    def __init__(self, log: Path) -> None:
        self._log = log.open("a")

    def answer(self, body: dict[str, Any]) -> Reply:
        """The answer to a request's body."""
        messages = body["messages"]
        if (hole := missing_result(messages)) is not None:
            error = f"An assistant message with 'tool_calls' must be followed by a tool message for {hole!r}."
            return web.json_response({"error": {"message": error, "type": "invalid_request_error"}}, status=400)
        reference, turn = next_turn(messages)
        step = turn.tool_calls[0].name if turn.tool_calls else "answer"
        self._log.write(ModelCall(reference=reference, step=step).model_dump_json() + "\n")
        self._log.flush()
        os.fsync(self._log.fileno())
        return turn


def missing_result(messages: Sequence[dict[str, Any]]) -> str | None:
    """The id of a tool call without a result before the next turn."""
    open_calls: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            open_calls.discard(message["tool_call_id"])
        elif open_calls:
            break
        else:
            open_calls = {call["id"] for call in message.get("tool_calls") or ()}
    return min(open_calls) if open_calls else None


def next_turn(messages: Sequence[dict[str, Any]]) -> tuple[str, AssistantMessage]:
    """What a conversation's last message is called, and what the model says to it."""
    reference = customer = ""
    calls: dict[str, tuple[str, str]] = {}
    done: set[tuple[str, str]] = set()
    for message in messages:
        if message["role"] == "user" and (found := _MESSAGE.findall(text_of(message["content"]))):
            reference, customer = found[-1]
        elif message["role"] == "tool":
            done.add(calls[message["tool_call_id"]])
        for call in message.get("tool_calls") or ():
            calls[call["id"]] = reference, call["function"]["name"]
    if (reference, "look_up_account") not in done:
        return reference, _call("look_up_account", customer=customer)
    kind = kind_of(reference)
    if kind == "refund" and (reference, "refund") not in done:
        return reference, _call("refund", customer=customer, amount=amount_of(reference), reference=reference)
    if kind == "person" and (reference, "route_to_person") not in done:
        return reference, _call("route_to_person", customer=customer, queue="complaints", reference=reference)
    return reference, say(f"About {reference}: it is taken care of.")


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """A message's text, which may come in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


def _call(tool: str, **arguments: Any) -> AssistantMessage:
    call = ToolCall(id=f"call_{uuid.uuid4().hex[:24]}", name=tool, arguments=json.dumps(arguments))
    return AssistantMessage(tool_calls=(call,))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--log", type=Path, required=True)
    made.add_argument("--latency", type=float, default=0.125, help="seconds (%(default)s)")
    made.add_argument("--spread", type=float, default=0.6, help="how far that varies: 0.6 is 60 %% up or down, evenly")
    given = made.parse_args(argv)
    scripted = Scripted(given.log)
    with MockChatServer(scripted.answer, latency=given.latency, spread=given.spread) as server:
        print(server.base_url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
