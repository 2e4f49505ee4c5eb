"""The sensor agent: it sees every window, keeps a baseline of its device, and thinks about suspicious windows only."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Literal, TypeAlias

from pydantic import BaseModel

from beam_agents import Agent, Budget, CannotHappen, Happened, History, Model, RunContext, Template, tool
from examples.sensors.alerts import Alert, AlertLog, Severity
from examples.sensors.state import LIMIT, Baseline, DeviceState, add_window
from examples.sensors.windows import WindowStats

Context: TypeAlias = RunContext[WindowStats, DeviceState, AlertLog]


class Assessment(BaseModel):
    status: Literal["normal", "watch", "known", "alert"]
    summary: str
    decided_by: str


@tool(effect="pure")
def baseline(ctx: Context) -> Baseline | None:
    """The device's usual mean and its spread over the two weeks before this window."""
    return ctx.state.baseline


@tool(effect="pure")
def recent_windows(ctx: Context, count: int) -> list[WindowStats]:
    """The newest windows of the device, oldest first; the last one is the window in question.

    Args:
        count: How many, at most 12.
    """
    return ctx.state.recent[-count:]


@tool(effect="pure")
def last_alert(ctx: Context) -> Alert | None:
    """The device's last alert within the 24 hours before this window, if there was one."""
    alert = ctx.deps.newest(ctx.event.device, before=ctx.event.end)
    return alert if alert and ctx.event.end - alert.raised_for < timedelta(hours=24) else None


def alert_status(ctx: Context, severity: Severity, reason: str) -> Happened[Alert] | CannotHappen:
    """After a crash in the middle of `raise_alert`: the alert that stands, or none, and then none will come."""
    alert = ctx.deps.find_or_call_off(f"{ctx.idempotency_key}/{ctx.attempt}")
    return Happened(alert) if alert else CannotHappen()


@tool(effect="once", reconcile=alert_status, timeout=timedelta(seconds=20))
def raise_alert(ctx: Context, severity: Severity, reason: str) -> Alert:
    """Wakes the person on duty for this device.

    Args:
        severity: How bad it is.
        reason: One sentence for the person on duty.
    """
    alert = Alert(device=ctx.event.device, raised_for=ctx.event.end, severity=severity, reason=reason)
    return ctx.deps.raise_alert(f"{ctx.idempotency_key}/{ctx.attempt}", alert)


INSTRUCTIONS = f"""\
You watch the sensors of machines. You are shown a window whose mean is far from what is usual for its device. Its
score is the distance from the usual mean in units of the usual spread; beyond {LIMIT} on either side is unusual.
Call `baseline`, `recent_windows` for 3 windows, and `last_alert`, all at once. Then decide:
- known: there was an alert within the last 24 hours. Raise no second one.
- alert: the means of all 3 windows are beyond {LIMIT} on the same side. Call `raise_alert` first: critical if this
  window is beyond {2 * LIMIT}, else warning.
- watch: otherwise.
Say in one sentence what is unusual, and give your name in `decided_by`."""

WINDOW = """\
device: {event.device}
window: {event.start} to {event.end}, {event.count} readings
mean: {event.mean}, standard deviation: {event.std}, from {event.min} to {event.max}
slope: {event.slope} an hour
score: {state.score}"""


def calm(state: DeviceState, window: WindowStats) -> Assessment | None:
    """Decides a window that is not suspicious, without a model."""
    if abs(state.score) > LIMIT:
        return None
    return Assessment(status="normal", summary=f"score {state.score}", decided_by="rule:calm")


def window_id(window: WindowStats) -> str:
    """The identity of a window: its device and its end, the same however often it is computed."""
    return f"{window.device}@{window.end.isoformat()}"


def sensor_agent(
    model: Model | str, open_log: Callable[[], AlertLog]
) -> Agent[WindowStats, Assessment, DeviceState, AlertLog]:
    """The agent, with the model that thinks for it and the log that its alerts go to.

    Args:
        model: A model, or the name of one, such as `"openai:gpt-5-mini"`.
        open_log: Connects to the log; called once in each worker process.
    """
    return Agent(
        "sensors",
        model=model,
        instructions=INSTRUCTIONS,
        prompt=Template(WINDOW),
        tools=[baseline, recent_windows, last_alert, raise_alert],
        deps=open_log,
        event_type=WindowStats,
        output_type=Assessment,
        state_type=DeviceState,
        on_event=add_window,
        skip=calm,
        history=History(max_messages=0),
        budget=Budget(steps=6, tool_calls=8, tokens=50_000, wall_clock=timedelta(minutes=2)),
    )
