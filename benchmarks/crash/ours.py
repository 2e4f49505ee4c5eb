"""Our side: a ReAct agent whose model follows the ground truth, with and without a ledger that survives.

Each turn of a conversation is an event of its key, and the conversation is the key's session. `once` tools have a
`reconcile` that asks the other side by the idempotency key.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import apache_beam as beam
from apache_beam.transforms.window import TimestampedValue
from pydantic import BaseModel

from beam_agents import Agent, Budget, CannotHappen, FailureReason, Happened, History, RunAgent, RunContext, RunFailed
from beam_agents.codec import canonical_json
from beam_agents.engine import single  # noqa: F401 - imported here, once, and not by each forked child
from beam_agents.engine.fault_points import FAULT_VARIABLE
from beam_agents.ledger import Ledger, MemoryLedger, SqliteLedger
from beam_agents.messages import AssistantMessage, ModelRequest, ToolCall
from beam_agents.models import FunctionModel
from beam_agents.testing import FaultPoint, crash_at_each, say
from beam_agents.tools import Effect, Tool
from benchmarks.crash.client import Server
from benchmarks.crash.loop import until_it_ends
from benchmarks.crash.passes import Pass, Passed, System

_LEASE_OVER = 10.0
"""Seconds by which the ledger's clock goes ahead at each crash, so that nobody waits for the dead worker's lease."""

_FOR_EVER = timedelta(days=365)


class Request(BaseModel):
    """What a user says in one turn."""

    id: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """What the tools are given: the conversation on the other side."""

    server: Server
    scenario: str

    def call(self, ctx: RunContext[Any, Any, Conversation], tool: str, arguments: dict[str, Any], effect: str) -> str:
        """Has a call applied."""
        return str(
            self.server.post(
                "/call",
                scenario=self.scenario,
                call=ctx.run_id,
                key=ctx.idempotency_key,
                tool=tool,
                arguments={name: value for name, value in arguments.items() if value is not None},
                effect=effect,
            )["result"]
        )

    def asked(self, ctx: RunContext[Any, Any, Conversation]) -> Happened[str] | CannotHappen:
        """What became of a call."""
        found = self.server.post("/asked", scenario=self.scenario, key=ctx.idempotency_key)
        return Happened(found["result"]) if found["happened"] else CannotHappen()

    async def say(self, request: ModelRequest) -> AssistantMessage:
        """What the model says; the request's number is that of the answers before it."""
        position = sum(isinstance(message, AssistantMessage) for message in request.messages)
        said = await asyncio.to_thread(self.server.post, "/model", scenario=self.scenario, position=position)
        if "answer" in said:
            return say(said["answer"])
        calls = (ToolCall(id=c["id"], name=c["name"], arguments=canonical_json(c["arguments"])) for c in said["calls"])
        return AssistantMessage(tool_calls=tuple(calls))


class AheadLedger(SqliteLedger):
    """A ledger whose clock goes ahead of the real one.

    Args:
        path: Its file.
        ahead: Seconds.
    """

    def __init__(self, path: str | os.PathLike[str], ahead: float) -> None:
        super().__init__(path, clock=lambda: time.time() + ahead)
        self._made_of = (os.fspath(path), ahead)

    def __reduce__(self) -> tuple[type[AheadLedger], tuple[str, float]]:  # type: ignore[override]
        return AheadLedger, self._made_of


def make_agent(server: Server, scenario: str, told: dict[str, Any], changing: Effect) -> Agent[Any, Any, Any, Any]:
    """The agent of a scenario.

    Args:
        server: The other side.
        scenario: Its name.
        told: What the server says of it.
        changing: How tools that change a state are declared.
    """
    conversation = Conversation(server, scenario)
    return Agent(
        "assistant",
        model=FunctionModel(conversation.say, name="ground truth"),
        prompt=_text,
        tools=[_tool(each, changing) for each in told["tools"]],
        event_type=Request,
        deps=partial(Conversation, server, scenario),
        history=History(max_messages=1_000_000, max_tokens=1_000_000_000),
        budget=Budget(steps=1_000, tool_calls=1_000, wall_clock=_FOR_EVER),
    )


def _text(_: Any, request: Request) -> str:
    return request.text


def _tool(told: dict[str, Any], changing: Effect) -> Tool[str]:
    """A tool of the other side, with the parameters that it describes."""
    name, effect = str(told["name"]), changing if told["effect"] == "once" else "pure"

    def call(ctx: RunContext[Any, Any, Conversation], **arguments: Any) -> str:
        return ctx.deps.call(ctx, name, arguments, effect)

    def reconcile(ctx: RunContext[Any, Any, Conversation], **arguments: Any) -> Happened[str] | CannotHappen:
        return ctx.deps.asked(ctx)

    _sign(call, told["parameters"])
    _sign(reconcile, told["parameters"])
    return Tool(
        call,
        effect=effect,
        reconcile=reconcile if effect == "once" else None,
        name=name,
        description=told["description"],
    )


def _sign(function: Callable[..., Any], schema: dict[str, Any]) -> None:
    """Gives a function the named parameters of a schema. They are not checked here: the other side's business."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("ctx", kind)]
    for name in sorted(schema["properties"], key=lambda name: name not in schema.get("required", ())):
        default = inspect.Parameter.empty if name in schema.get("required", ()) else None
        parameters.append(inspect.Parameter(name, kind, default=default))
    returns = inspect.get_annotations(function, eval_str=True)["return"]
    given: Any = function
    given.__signature__ = inspect.Signature(parameters)
    hints = {parameter.name: Any for parameter in parameters}
    given.__annotations__ = hints | {"ctx": RunContext[Any, Any, Conversation], "return": returns}


# ---- drivers: each hands the turns to the agent, in a process that may die, and returns the failures' reasons ----

Driver = Callable[[Agent[Any, Any, Any, Any], Ledger, list[Request], Path], list[str]]


def without_beam(agent: Agent[Any, Any, Any, Any], ledger: Ledger, turns: list[Request], folder: Path) -> list[str]:
    """One event after the other, with `run_sync`."""
    failures = []
    for turn in turns:
        try:
            agent.run_sync(turn, key="user", event_id=turn.id, ledger=ledger)
        except RunFailed as failed:
            failures.append(str(failed.failure.reason))
    return failures


def in_direct_runner(agent: Agent[Any, Any, Any, Any], ledger: Ledger, turns: list[Request], folder: Path) -> list[str]:
    """A batch pipeline in the engine that DirectRunner takes for it, named since the choice has conditions."""
    file = folder / "failures"
    file.unlink(missing_ok=True)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        events = pipeline | beam.Create([TimestampedValue(("user", turn), at) for at, turn in enumerate(turns)])
        outputs = events | beam.Map(_same) | RunAgent(agent, event_id="id", ledger=ledger)
        _ = outputs.failures | beam.Map(_note, str(file))
    return file.read_text().splitlines() if file.exists() else []


def _same(element: Any) -> Any:
    return element


def _note(failure: Any, file: str) -> None:
    with open(file, "a") as out:
        out.write(f"{failure[1].reason}\n")


@dataclass(frozen=True)
class Ours:
    """The product, or its loop with a ledger that dies with the process."""

    driver: Driver
    changing: Effect = "once"
    ledger: bool = True
    crashes_at: Literal["tool", "model"] = "tool"

    def __call__(self, made: Pass) -> Passed:
        """Takes a scenario through its crashes."""
        server = Server(made.url)
        told = server.get("/scenario", id=made.scenario)
        agent = make_agent(server, made.scenario, told, self.changing)
        turns = [Request(id=f"turn-{at}", text=turn["user"]) for at, turn in enumerate(told["turns"])]

        def child(crashes: int) -> list[str]:
            os.environ.pop(FAULT_VARIABLE, None)
            if made.fault_point != "none":
                point = cast(FaultPoint, made.fault_point)
                os.environ.update(crash_at_each(point, made.folder / "crashes", kind=self.crashes_at))
            ledger = AheadLedger(made.folder / "runs.db", crashes * _LEASE_OVER) if self.ledger else MemoryLedger()
            return self.driver(agent, ledger, turns, made.folder)

        crashes, failures = until_it_ends(child)
        return Passed(crashes, in_doubt=failures.count(str(FailureReason.IN_DOUBT)), failed=len(failures))


OURS: dict[str, System] = {
    "ours": Ours(without_beam),
    "ours-idempotent": Ours(without_beam, changing="idempotent"),
    "ours-model-calls": Ours(without_beam, crashes_at="model"),
    "ours-directrunner": Ours(in_direct_runner),
    "no-ledger": Ours(without_beam, ledger=False),
}
"""The product with a ledger: tools that change a state declared `once`, or `idempotent`; crashes at the boundaries of
model requests instead of tool calls; in Beam's DirectRunner. And the same loop without a ledger that survives."""
