"""The offline model: a stand-in for a language model that decides by the rules of the instructions.

It is handed what a real model is handed, the text of the request, and returns what one returns: tool calls or an
answer. It cannot see events, states or the database. So the demo needs no key and no server, and everything around
the model is the real thing; `--model openai:NAME` puts a real one in its place.
"""

from __future__ import annotations

import json
import re
from typing import Any

from beam_agents.messages import AssistantMessage, Message, ModelRequest, ToolMessage, UserMessage
from beam_agents.models import FunctionModel, Price, calls, say
from examples.fraud.events import Verdict

NAME = "offline:fraud-rules"


def fraud_rules() -> FunctionModel:
    """The offline model."""
    return FunctionModel(answer, name=NAME, price=Price(input=0, output=0))


def answer(request: ModelRequest) -> AssistantMessage:
    """The model's turn: look the merchant up, put the card on hold if need be, answer."""
    past, said, told = _split(request.messages)
    if not {"blocklist", "merchant"} <= told.keys():
        asked = {"merchant_id": said["merchant"]}
        return calls(("blocklist", asked), ("merchant", asked))
    reasons = _reasons_to_hold(said, told)
    if not reasons:
        times = float(said["times the usual amount"])
        if times >= 8:
            return _verdict("review", [f"{times:g} times the usual amount"])
        return _verdict("approve", [])
    if _on_hold(past):
        return _verdict("hold", [*reasons, "the card is on hold already"])
    if "hold_card" not in told:
        return calls(("hold_card", {"reason": "; ".join(reasons)}))
    if told["hold_card"].outcome != "ok":
        return _verdict("review", [*reasons, "the bank did not put the card on hold"])
    return _verdict("hold", reasons, _read(told["hold_card"])["hold_id"])


def _reasons_to_hold(said: dict[str, str], told: dict[str, ToolMessage]) -> list[str]:
    listing, known = _read(told["blocklist"]) or {}, _read(told["merchant"])
    payments, times = int(said["payments in the last hour"]), float(said["times the usual amount"])
    speed = int(said["speed since the last payment"].removesuffix(" km/h"))
    reasons = []
    if listing.get("listed"):
        reasons.append(f"the merchant is on the blocklist: {listing['reason']}")
    if payments >= 5:
        reasons.append(f"{payments} payments in an hour")
    if speed > 1000:
        reasons.append(f"travelled at {speed} km/h")
    if times >= 8 and (known is None or known["high_risk"]):
        what = f"a high-risk merchant ({known['category']})" if known else "an unknown merchant"
        reasons.append(f"{times:g} times the usual amount at {what}")
    return reasons


def _split(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], dict[str, str], dict[str, ToolMessage]]:
    """The conversation before this payment, what the payment says, and what the tools have told about it."""
    starts = (
        index
        for index, message in enumerate(messages)
        if isinstance(message, UserMessage) and message.text.startswith("payment: ")
    )
    start = max(starts)
    payment, *rest = messages[start:]
    assert isinstance(payment, UserMessage)
    said = dict(re.findall(r"^([a-z ]+): (.*)$", payment.text, re.MULTILINE))
    return messages[:start], said, {message.name: message for message in rest if isinstance(message, ToolMessage)}


def _on_hold(past: tuple[Message, ...]) -> bool:
    return any(
        isinstance(message, ToolMessage) and message.name == "hold_card" and message.outcome == "ok" for message in past
    )


def _read(message: ToolMessage) -> Any:
    return json.loads(message.text) if message.outcome == "ok" else None


def _verdict(decision: Any, reasons: list[str], hold_id: int | None = None) -> AssistantMessage:
    return say(Verdict(decision=decision, reasons=tuple(reasons), hold_id=hold_id, decided_by=NAME))
