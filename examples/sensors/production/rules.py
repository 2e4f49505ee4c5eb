"""The models used when none is given: they follow the agents' instructions by rules, on what the request says."""

from __future__ import annotations

import json
import re
from typing import Any

from beam_agents.messages import AssistantMessage, ModelRequest, ToolMessage
from beam_agents.models import FunctionModel
from beam_agents.models.function import calls, say
from examples.sensors.alerts import Severity
from examples.sensors.production.readings import Kind

NAME = "offline:plant-rules"

_PATIENCE = re.compile(r"more than (\d+) in a row were unusual")
_FACTS = re.compile(
    r"device: (?P<device>.+)\nreading: (?P<value>[-0-9.e]+), .+\nscore: .+\nunusual in a row: (?P<unusual>\d+)"
)


def decide_temperature(request: ModelRequest) -> AssistantMessage:
    """For the agent of temperatures."""
    facts, told = _facts(request), _told(request)
    if "device" not in told:
        return _look_up(request, facts["device"])
    warm = [one["device"] for one in told["neighbours"] if one["limit"] is not None and one["mean"] > one["limit"]]
    what = f"{facts['value']} degrees, unusual {facts['unusual']} times in a row"
    if _known(request, facts):
        return _assess("known", what)
    if warm:
        return _assess("watch", f"{what}, as at {', '.join(warm)}")
    return _assess("alert", what, _severity(facts, told))


def decide_vibration(request: ModelRequest) -> AssistantMessage:
    """For the agent of vibrations."""
    facts, told = _facts(request), _told(request)
    if "device" not in told:
        return _look_up(request, facts["device"])
    limit = (told["device"] or {}).get("limit") or 0.0
    risen = [reading["value"] > limit / 2 for reading in told["last_readings"][-3:]]
    what = f"{facts['value']} mm/s, unusual {facts['unusual']} times in a row"
    if _known(request, facts):
        return _assess("known", what)
    return _assess("alert", what, _severity(facts, told)) if all(risen) else _assess("watch", what)


def decide_door(request: ModelRequest) -> AssistantMessage:
    """For the agent of doors."""
    facts, told = _facts(request), _told(request)
    if "device" not in told:
        return _look_up(request, facts["device"])
    what = f"open at {facts['unusual']} readings in a row"
    if _known(request, facts):
        return _assess("known", what)
    cold = "cold store" in ((told["device"] or {}).get("place") or "")
    return _assess("alert", what, "critical" if cold else "warning")


def _facts(request: ModelRequest) -> dict[str, str]:
    found = [match for message in request.messages if (match := _FACTS.search(message.text or ""))]
    return found[-1].groupdict()


def _told(request: ModelRequest) -> dict[str, Any]:
    results = (message for message in request.messages if isinstance(message, ToolMessage))
    return {result.name: json.loads(result.text) for result in results if result.outcome == "ok"}


def _look_up(request: ModelRequest, name: str) -> AssistantMessage:
    arguments = {"last_readings": {"count": 10}}
    return calls(*((one.name, arguments.get(one.name, {"name": name})) for one in request.tools))


def _known(request: ModelRequest, facts: dict[str, str]) -> bool:
    patience = int(_PATIENCE.findall(request.messages[0].text or "")[0])
    return int(facts["unusual"]) > patience


def _severity(facts: dict[str, str], told: dict[str, Any]) -> Severity:
    limit = (told["device"] or {}).get("limit")
    return "critical" if limit is not None and float(facts["value"]) > limit else "warning"


def _assess(status: str, summary: str, severity: Severity | None = None) -> AssistantMessage:
    return say({"status": status, "severity": severity, "summary": summary, "decided_by": NAME})


MODELS: dict[Kind, FunctionModel] = {
    "temperature": FunctionModel(decide_temperature, name=NAME),
    "vibration": FunctionModel(decide_vibration, name=NAME),
    "door": FunctionModel(decide_door, name=NAME),
}
