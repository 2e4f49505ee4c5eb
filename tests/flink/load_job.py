"""The pipeline under load: an agent with three tools over an endless stream of events, whose outcomes are counted.

    python -m tests.flink.load_job --events FOLDER --out FOLDER --server ADDRESS --ledger FILE [Beam's options]

Each run asks its model four times and makes three calls, all at the outside world (`load_server`). The model's answers
and the tools' arguments carry the key's own count of events, so that state and output can be compared.

How outcomes are counted: the sink is not transactional, so it sees again what was emitted after the checkpoint that a
job was restored from. What a transactional sink would see is what Beam's own state downstream of the agent has seen,
since a restore takes both back to the same moment. So `Count` keeps, in state, a line for each outcome of a key, and
hands the lines out when an element of the stream (a census) asks for them, at the end. Each line is also appended to a
plain file as it comes: there an outcome may stand several times, but never two different ones for an event.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import PCollection
from apache_beam.transforms.userstate import BagStateSpec
from pydantic import BaseModel, ConfigDict

from beam_agents import (
    Agent,
    Budget,
    CannotHappen,
    Happened,
    History,
    Model,
    ModelError,
    ModelSettings,
    RunAgent,
    RunContext,
    tool,
)
from beam_agents.io import ReadLines
from beam_agents.messages import AssistantMessage, ModelRequest, ModelResponse, UserMessage
from beam_agents.models.function import calls, say
from beam_agents.tools import Tool
from tests.flink.load_server import Answer, Call, ask

SCOPE = "load"
OUTCOMES = "outcomes.jsonl"
CENSUS = "census.jsonl"
_CALL_SECONDS = 20.0
_WALL_CLOCK = timedelta(minutes=15)
"""Longer than a test waits: a run that only its deadline would end counts as lost."""
_WALL_CLOCK_UNRECORDED = timedelta(minutes=1)
"""Without a ledger nobody knows after a restore which runs were open: they start over when this time has passed."""


class Event(BaseModel):
    """What happens to a key."""

    model_config = ConfigDict(frozen=True)

    id: str
    key: str
    census: int | None = None
    """Number of the census that this element asks for; it is no event then."""


class KeyState(BaseModel):
    """What a key keeps."""

    events: int = 0


class Verdict(BaseModel):
    """What an event came to."""

    nth: int
    """Of the key's events, by the key's own count."""
    notice: int
    """Receipt of the `idempotent` call."""
    charge: int
    """Receipt of the `once` call."""


class Line(BaseModel):
    """An outcome, as it is counted and as it stands in the file."""

    key: str
    run: str
    kind: str
    """`result`, `duplicate`, or the reason of a failure."""
    outcome: str
    """The verdict as JSON, or what a failure says."""
    at: float
    """Seconds since 1970."""
    pid: int


@dataclass(frozen=True)
class Outside:
    """Where the outside world is: what tools get as `ctx.deps`."""

    address: str


class OutsideModel(Model):
    """Asks the outside world, so that answers are counted there, and then says what this load needs.

    Args:
        address: Of the outside world.
    """

    network = False  # it does not leave the machine

    def __init__(self, address: str) -> None:
        self._address = address

    @property
    def name(self) -> str:
        return "outside"

    async def request(self, request: ModelRequest) -> ModelResponse:
        start = max(index for index, message in enumerate(request.messages) if isinstance(message, UserMessage))
        asked = json.loads(request.messages[start].text or "")
        said = [message for message in request.messages[start:] if isinstance(message, AssistantMessage)]
        told = [message.text for message in request.messages[start:] if message.role == "tool"]
        call = Call(kind="model", name=self.name, run=asked["id"], step=request.digest(), pid=os.getpid())
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                await ask(self._address, call)
        except OSError as error:
            raise ModelError(f"model {self.name!r}: {error!r}") from error
        return ModelResponse(message=_turn(len(said), asked["nth"], told), model=self.name)


def _turn(turn: int, nth: int, told: Sequence[str]) -> AssistantMessage:
    match turn:
        case 0:
            return calls(("look_up", {"nth": nth}))
        case 1:
            return calls(("notify", {"nth": nth}))
        case 2:
            return calls(("charge", {"nth": nth}))
        case _:
            return say(Verdict(nth=nth, notice=int(told[1]), charge=int(told[2])))


def _prompt(state: KeyState, event: Event) -> str:
    return json.dumps({"id": event.id, "nth": state.events})


def _count_event(state: KeyState, event: Event) -> KeyState:
    return KeyState(events=state.events + 1)


async def _ask(ctx: RunContext[Event, KeyState, Outside], kind: str, name: str) -> Answer:
    call = Call(
        kind=kind, name=name, run=ctx.run_id, step=name, key=ctx.idempotency_key, attempt=ctx.attempt, pid=os.getpid()
    )
    return await ask(ctx.deps.address, call)


async def look_up(ctx: RunContext[Event, KeyState, Outside], nth: int) -> str:
    """Reads something."""
    await _ask(ctx, "pure", "look_up")
    return f"event {nth}"


async def notify(ctx: RunContext[Event, KeyState, Outside], nth: int) -> int:
    """Changes something; the other side honours the idempotency key."""
    return _receipt(await _ask(ctx, "idempotent", "notify"))


async def charge(ctx: RunContext[Event, KeyState, Outside], nth: int) -> int:
    """Changes something, each time."""
    return _receipt(await _ask(ctx, "once", "charge"))


async def charge_status(ctx: RunContext[Event, KeyState, Outside], nth: int) -> Happened[int] | CannotHappen:
    """What became of a charge; one that was not made is cancelled in the same moment."""
    answer = await _ask(ctx, "reconcile", "charge")
    return CannotHappen() if answer.receipt is None else Happened(answer.receipt)


def _receipt(answer: Answer) -> int:
    if answer.receipt is None:
        raise RuntimeError(f"the outside world answered {answer!r}")
    return answer.receipt


def load_agent(address: str, *, recorded: bool) -> Agent[Event, Verdict, KeyState, Outside]:
    """The agent of the load.

    Args:
        address: Of the outside world.
        recorded: Whether a ledger records what it does. Without one every tool is declared as `pure`, since `RunAgent`
            takes no others; the outside world does the same in both cases.
    """
    timeout = timedelta(seconds=_CALL_SECONDS)
    tools: tuple[Tool[Any], ...] = (
        tool(effect="pure", timeout=timeout)(look_up),
        tool(effect="idempotent" if recorded else "pure", timeout=timeout)(notify),
        tool(effect="once", reconcile=charge_status, timeout=timeout)(charge)
        if recorded
        else tool(effect="pure", timeout=timeout)(charge),
    )
    return Agent(
        "load",
        model=OutsideModel(address),
        instructions="Look up, notify, charge, then answer.",
        prompt=_prompt,
        tools=tools,
        event_type=Event,
        output_type=Verdict,
        state_type=KeyState,
        on_event=_count_event,
        deps=partial(Outside, address),
        history=History(max_messages=8),
        budget=Budget(wall_clock=_WALL_CLOCK if recorded else _WALL_CLOCK_UNRECORDED),
        settings=ModelSettings(retries=0),
    )


def events_of(line: str) -> Iterator[tuple[str, Event]]:
    """The event of a line of the stream, if it is one."""
    event = Event.model_validate_json(line)
    if event.census is None:
        yield event.key, event


def census_of(line: str) -> Iterator[tuple[str, bytes]]:
    """The census of a line of the stream, if it asks for one."""
    event = Event.model_validate_json(line)
    if event.census is not None:
        yield event.key, str(event.census).encode()


class ToLine(beam.DoFn):
    """Makes a line of an outcome."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def process(self, element: tuple[str, Any]) -> Iterator[tuple[str, bytes]]:
        key, value = element
        kind, outcome = self._kind, ""
        if kind == "result":
            outcome = value.output.model_dump_json()
        elif kind == "failure":
            kind, outcome = value.reason.value, value.message
        line = Line(key=key, run=value.run_id or "", kind=kind, outcome=outcome, at=time.time(), pid=os.getpid())
        yield key, line.model_dump_json().encode()


class Count(beam.DoFn):
    """Keeps the lines of each key in state and appends them to a file; see the text at the top.

    Args:
        folder: Where the files are.
    """

    _SEEN = BagStateSpec("seen", BytesCoder())

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, element: tuple[str, bytes], seen: Any = beam.DoFn.StateParam(_SEEN)) -> None:
        key, data = element
        if data.startswith(b"{"):
            seen.add(data)
            self._append(OUTCOMES, data)
        else:
            lines = [json.loads(line) for line in seen.read()]
            self._append(CENSUS, json.dumps({"census": int(data), "key": key, "lines": lines}).encode())

    def _append(self, name: str, line: bytes) -> None:
        file = os.open(os.path.join(self._folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(file, line + b"\n")  # in one call, so that lines of several processes do not mix
        finally:
            os.close(file)


def build(lines: PCollection[str], *, out: Path, server: str, ledger: Path | None) -> None:
    """Puts the load behind a stream.

    Args:
        lines: The stream: `Event` as JSON.
        out: Folder for what is counted.
        server: Address of the outside world.
        ledger: The SQLite file; `None` for none.
    """
    keyed = lines | "Events" >> beam.FlatMap(events_of).with_output_types(tuple[str, Event])
    census = lines | "Census" >> beam.FlatMap(census_of).with_output_types(tuple[str, bytes])
    agent = load_agent(server, recorded=ledger is not None)
    url = None if ledger is None else f"sqlite:///{ledger.absolute()}"
    outputs = keyed | "Agent" >> RunAgent(agent, event_id="id", ledger=url, scope=SCOPE)
    counted = [
        output | f"To{kind}" >> beam.ParDo(ToLine(kind)).with_output_types(tuple[str, bytes])
        for kind, output in (
            ("result", outputs.results),
            ("failure", outputs.failures),
            ("duplicate", outputs.duplicates),
        )
    ]
    _ = (*counted, census) | "Counted" >> beam.Flatten() | "Count" >> beam.ParDo(Count(str(out.absolute())))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; submits the job and waits for its end."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--events", metavar="FOLDER", type=Path, required=True, help="where the stream's files appear")
    made.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="for what is counted")
    made.add_argument("--server", metavar="ADDRESS", required=True, help="the outside world")
    made.add_argument("--ledger", metavar="FILE", required=True, help="SQLite file, or 'none'")
    arguments, options = made.parse_known_args(argv)
    ledger = None if arguments.ledger == "none" else Path(arguments.ledger)
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        lines = (pipeline | ReadLines(arguments.events)).lines | beam.Map(lambda line: line.text).with_output_types(str)
        build(lines, out=arguments.out, server=arguments.server, ledger=ledger)
    return 0


if __name__ == "__main__":
    from tests.flink import load_job  # what is pickled must not be of '__main__'

    sys.exit(load_job.main())
