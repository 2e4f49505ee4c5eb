"""Three agents, one for each kind of device: what each is told, and what it may look up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from beam_agents import Agent, Budget, History, Model, RunContext, Template, Tool, tool
from beam_agents.toolkit import sql_tool
from examples.sensors.production.memory import (
    DeviceState,
    Score,
    Taken,
    above_the_usual,
    is_open,
    out_of_the_usual,
    quiet,
    remember,
)
from examples.sensors.production.plant import PLANT, Device, Neighbour
from examples.sensors.production.readings import Assessment, Kind, Readings

Context: TypeAlias = RunContext[Readings, DeviceState, Any]


@tool(effect="pure")
def last_readings(ctx: Context, count: int) -> list[Taken]:
    """The newest readings of this device, the last one at the end.

    Args:
        count: How many; 100 are remembered.
    """
    return ctx.state.readings[-max(1, count) :]


@sql_tool(PLANT, 'select device, kind, place, "limit", note from devices where device = :name', effect="pure")
def device(name: str) -> Device | None:
    """What is known of a device: its place, the value that it must not go beyond, and a note.

    Args:
        name: The device.
    """


@sql_tool(
    PLANT,
    'select distinct on (d.device) d.device, d."limit", r.mean from devices own '
    "join devices d on d.place = own.place and d.kind = own.kind and d.device <> own.device "
    "join rolling r on r.device = d.device and r.ending > now() - interval '2 minutes' "
    "where own.device = :name order by d.device, r.ending desc",
    effect="pure",
)
def neighbours(name: str) -> list[Neighbour]:
    """The devices of the same kind at the same place: the mean of their last minute, and their limits.

    Args:
        name: The device whose neighbours they are.
    """


_COMMON = """\
You watch the {what} of a plant. You are shown a reading when {patience} in a row, or a multiple of it, were unusual
beside the last 100 of their device. Call {tools}, all at once. Then decide:
- known: more than {patience} in a row were unusual. There was an alert when there were {patience}.
{rules}
Say in one sentence what is unusual, and give your name in `decided_by`. An alert is sent to the people on duty."""

_PROMPT = Template("""\
device: {key}
reading: {event.row.value}, taken {event.row.taken}
score: {state.score}
unusual in a row: {state.unusual}""")


class Watch(NamedTuple):
    """How a kind of device is watched."""

    score: Score
    patience: int
    """How many unusual readings in a row are a cause to ask the model."""
    tools: tuple[Tool[Any], ...]
    what: str
    rules: str


WATCHES: dict[Kind, Watch] = {
    "temperature": Watch(
        out_of_the_usual,
        5,
        (last_readings, device, neighbours),
        "temperatures",
        "- watch: a neighbour is beyond its limit, too: then it is the hall and not the machine.\n"
        "- alert: otherwise; critical if the reading is beyond the device's limit, else warning.",
    ),
    "vibration": Watch(
        above_the_usual,
        3,
        (last_readings, device),
        "vibrations",
        "- alert: the last 3 readings have all risen above half of the device's limit; critical if the reading is "
        "beyond the limit, else warning.\n"
        "- watch: otherwise.",
    ),
    "door": Watch(
        is_open,
        8,
        (device,),
        "doors",
        "- alert: otherwise; critical if the door's place is a cold store, else warning.",
    ),
}


def device_agent(kind: Kind, model: Model | str) -> Agent[Readings, Assessment, DeviceState, Any]:
    """The agent for a kind of device, with the model that thinks for it.

    Args:
        kind: Its name, too.
        model: A model, or the name of one, such as `"openai:gpt-5-mini"`.
    """
    watch = WATCHES[kind]
    told = {"what": watch.what, "patience": watch.patience, "rules": watch.rules}
    named = ", ".join(f"`{one.name}`" for one in watch.tools)
    on_event: Callable[[DeviceState, Readings], DeviceState] = partial(remember, watch.score)
    skip: Callable[[DeviceState, Readings], Assessment | None] = partial(quiet, watch.patience)
    return Agent(
        kind,
        model=model,
        instructions=_COMMON.format(tools=named, **told),
        prompt=_PROMPT,
        tools=watch.tools,
        event_type=Readings,
        output_type=Assessment,
        state_type=DeviceState,
        on_event=on_event,
        skip=skip,
        history=History(max_messages=0),
        budget=Budget(steps=6, tool_calls=8, tokens=50_000, wall_clock=timedelta(minutes=2)),
    )
