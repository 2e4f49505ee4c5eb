"""The model used when none is given: it follows the agent's instructions by rules, on what the request says."""

from __future__ import annotations

import json
import re
from typing import Any

from beam_agents.messages import AssistantMessage, ModelRequest, ToolMessage, UserMessage
from beam_agents.models import FunctionModel
from beam_agents.models.function import calls, say

NAME = "offline:sensor-rules"

_LIMIT = re.compile(r"beyond ([0-9.]+) on either side")
_SCORE = re.compile(r"^score: (-?[0-9.]+)$", re.MULTILINE)


def decide(request: ModelRequest) -> AssistantMessage:
    """Asks for the facts, then raises an alert if they call for one, then answers."""
    asked = max(place for place, message in enumerate(request.messages) if isinstance(message, UserMessage))
    limit = float(_LIMIT.findall(request.messages[0].text or "")[0])
    score = float(_SCORE.findall(request.messages[asked].text or "")[0])
    results = (message for message in request.messages[asked:] if isinstance(message, ToolMessage))
    told = {result.name: json.loads(result.text) for result in results if result.outcome == "ok"}
    if "baseline" not in told:
        return calls(("baseline", {}), ("recent_windows", {"count": 3}), ("last_alert", {}))
    usual, scores = told["baseline"], _scores(told)
    what = f"mean {told['recent_windows'][-1]['mean']:.2f}, usual {usual['median']:.2f}, score {score}"
    if "raise_alert" in told:
        return _assess("alert", f"out of the usual for {len(scores)} windows: {what}")
    if told["last_alert"] is not None:
        return _assess("known", f"alerted for {told['last_alert']['raised_for']}: {what}")
    if len(scores) == 3 and (min(scores) > limit or max(scores) < -limit):
        severity = "critical" if abs(score) > 2 * limit else "warning"
        return calls(("raise_alert", {"severity": severity, "reason": f"out of the usual for 3 windows: {what}"}))
    return _assess("watch", what)


def _scores(told: dict[str, Any]) -> list[float]:
    usual = told["baseline"]
    return [(window["mean"] - usual["median"]) / usual["spread"] for window in told["recent_windows"]]


def _assess(status: str, summary: str) -> AssistantMessage:
    return say({"status": status, "summary": summary, "decided_by": NAME})


MODEL = FunctionModel(decide, name=NAME)
