"""What is measured: events in bursts, an agent of two model calls and a tool call for each, and the bare floor."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.pvalue import PCollection
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from pydantic import BaseModel, ConfigDict

from beam_agents import Agent, Budget, Model, RunAgent, RunContext, tool
from beam_agents.messages import AssistantMessage, ModelRequest, ModelSettings, ToolMessage
from beam_agents.models.function import FunctionModel, calls, say
from beam_agents.models.openai_chat import OpenAIModel
from benchmarks.load.stamps import Stamp, begin, end

Side: TypeAlias = Literal["bare", "at_once", "server"]
"""A stateful DoFn that reads and writes one cell; the agent with a model in its process; with one behind a server."""

AGENT = "load"
"""The agent's name and scope."""


class Burst(BaseModel):
    """Events that come all at once."""

    model_config = ConfigDict(frozen=True)

    id: str
    events: int


class Event(BaseModel):
    """An event; each has a key of its own."""

    model_config = ConfigDict(frozen=True)

    id: str
    burst: str


class Verdict(BaseModel):
    """What the agent says."""

    ok: bool


@tool(effect="idempotent")
async def look_up(ctx: RunContext[Event, Any, Any], name: str) -> str:
    """Looks a name up.

    Args:
        name: Whom to look up.
    """
    return f"{name} is known as {ctx.key}"


def answer(request: ModelRequest) -> AssistantMessage:
    """The model in the process: a call of the tool, then an answer."""
    if isinstance(request.messages[-1], ToolMessage):
        return say(Verdict(ok=True))
    return calls(("look_up", {"name": "Smith"}))


def agent_with(model: Model) -> Agent[Event, Verdict, Any, Any]:
    """The agent."""
    return Agent(
        AGENT,
        model=model,
        instructions="Look the name of the event up, then say whether all is well.",
        tools=[look_up],
        event_type=Event,
        output_type=Verdict,
        settings=ModelSettings(timeout=300),
        budget=Budget(steps=4, wall_clock=timedelta(minutes=10)),
    )


class BareDoFn(beam.DoFn):
    """The floor: the least that a runner does for an event of a key with state."""

    _CELL = ReadModifyWriteStateSpec("cell", BytesCoder())

    def process(
        self,
        element: tuple[str, bytes],
        cell: Any = beam.DoFn.StateParam(_CELL),  # noqa: B008
    ) -> Iterator[tuple[str, bytes]]:
        """Reads and writes the cell."""
        key, event = element
        cell.write((cell.read() or b"") + event)
        yield key, event


def spread(burst: Burst, out: str) -> Iterator[tuple[str, Event]]:
    """The events of a burst, and a stamp of the first."""
    begin(Path(out), burst.id)
    for number in range(burst.events):
        name = f"{burst.id}-{number:06}"
        yield name, Event(id=name, burst=burst.id)


def build(bursts: PCollection[Burst], side: Side, out: Path, server: str | None = None) -> None:
    """Puts a side behind bursts, and stamps behind it.

    Args:
        bursts: What comes.
        side: What is measured.
        out: An existing folder for stamps and the ledger.
        server: Base URL of the chat server, for the side `server`.
    """
    events = bursts | "Spread" >> beam.FlatMap(spread, str(out)).with_output_types(tuple[str, Event])
    if side == "bare":
        encoded = events | "Encode" >> beam.MapTuple(
            lambda key, event: (key, event.model_dump_json().encode())
        ).with_output_types(tuple[str, bytes])
        done = encoded | "Bare" >> beam.ParDo(BareDoFn()).with_output_types(tuple[str, bytes])
        _ = done | "Stamp" >> beam.ParDo(StampBare(out))
        return
    model = FunctionModel(answer) if side == "at_once" else OpenAIModel("mock", base_url=server)
    done = events | RunAgent(agent_with(model), event_id="id", ledger=f"sqlite:///{out / 'ledger.db'}")
    _ = done.results | "Stamp" >> beam.ParDo(StampResult(out))
    _ = done.failures | "Stamp failures" >> beam.Map(stamp_failure, str(out))


class StampBare(Stamp):
    """Stamps events that left the bare DoFn."""

    def process(self, element: tuple[str, bytes]) -> None:
        """Notes it."""
        self.note(element[0])


class StampResult(Stamp):
    """Stamps results of the agent."""

    def process(self, element: tuple[str, Any]) -> None:
        """Notes it."""
        self.note(element[0])


def stamp_failure(element: tuple[str, Any], out: str) -> None:
    """Notes that an event failed, and why."""
    key, failure = element
    end(Path(out), key, f"{failure.reason.value}: {failure.message}")
