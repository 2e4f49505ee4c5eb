"""Agents whose runs do what their events say: a plan of calls, sleeps, branches and questions."""

from __future__ import annotations

import asyncio
import copy
import random
from datetime import timedelta
from functools import cache
from typing import Any

from pydantic import BaseModel

from beam_agents import Agent, Budget, RunContext, tool, workflow
from beam_agents.agent_base import AgentBase
from beam_agents.errors import ToolError, ToolFailed
from beam_agents.messages import AssistantMessage, ModelRequest, ModelSettings, ToolMessage, UserMessage
from beam_agents.models.function import FunctionModel, calls, say
from beam_agents.output import CORRECTION

TIMEOUT = timedelta(seconds=2)


class Happening(BaseModel):
    """An event."""

    id: str
    plan: Any = None
    text: str = ""


class Seen(BaseModel):
    """What a key remembers: the events that its runs took in, in order."""

    ids: list[str] = []


Ctx = RunContext[Happening, Seen, None]


def take_in(state: Seen, event: Happening) -> Seen:
    return Seen(ids=[*state.ids, event.id])


def _wire() -> Any:
    return asyncio.get_running_loop().owner  # type: ignore[attr-defined]


async def _status(ctx: RunContext[Happening, Seen, None], n: int) -> Any:
    return await _wire().reconcile(ctx, n)


@tool(effect="pure", timeout=TIMEOUT)
async def look_up(ctx: RunContext[Happening, Seen, None], n: int) -> str:
    """Reads."""
    return str(await _wire().call("look_up", "pure", ctx, n))


@tool(effect="pure", timeout=TIMEOUT, retries=2)
async def fetch(ctx: RunContext[Happening, Seen, None], n: int) -> str:
    """Reads, again when that fails."""
    return str(await _wire().call("fetch", "pure", ctx, n))


@tool(effect="idempotent", timeout=TIMEOUT, retries=2)
async def book(ctx: RunContext[Happening, Seen, None], n: int) -> str:
    """Changes something, once for one key."""
    return str(await _wire().call("book", "idempotent", ctx, n))


@tool(effect="once", timeout=TIMEOUT, reconcile=_status)
async def pay(ctx: RunContext[Happening, Seen, None], n: int) -> str:
    """Changes something each time."""
    return str(await _wire().call("pay", "once", ctx, n))


@tool(effect="once", timeout=TIMEOUT)
async def mail(ctx: RunContext[Happening, Seen, None], n: int) -> str:
    """Changes something each time, and nobody can say whether it did."""
    return str(await _wire().call("mail", "once", ctx, n))


TOOLS = {made.name: made for made in (look_up, fetch, book, pay, mail)}


async def _answer(request: ModelRequest) -> AssistantMessage:
    """Does the next round of the plan in the event that the conversation ends with."""
    await _wire().ask_model(request)
    last = _last_event(request)
    event = Happening.model_validate_json(request.messages[last].text or "{}")
    said = [message for message in request.messages[last + 1 :] if isinstance(message, AssistantMessage)]
    rounds = event.plan or []
    if len(said) < len(rounds):
        return calls(*((name, {"n": n}) for name, n in rounds[len(said)]))
    told = [message.outcome for message in request.messages[last + 1 :] if isinstance(message, ToolMessage)]
    return say(f"{event.id} after {last} messages: {told}")


def _last_event(request: ModelRequest) -> int:
    return max(
        index
        for index, message in enumerate(request.messages)
        if isinstance(message, UserMessage) and not message.text.startswith(CORRECTION)
    )


def asked_by(request: ModelRequest) -> str:
    """The id of the event whose run asks."""
    return Happening.model_validate_json(request.messages[_last_event(request)].text or "{}").id


_MODEL = FunctionModel(_answer, name="sim")
_SETTINGS = ModelSettings(timeout=2.0, retries=2)


async def _step(ctx: Ctx, step: list[Any], path: str, done: list[str]) -> None:
    kind = step[0]
    if kind == "sleep":
        await ctx.sleep(timedelta(seconds=step[1]))
    elif kind == "emit":
        await ctx.emit([ctx.run_id, path])
    elif kind == "note":
        ctx.state = Seen(ids=[*ctx.state.ids, f"{ctx.run_id}!"])
    elif kind == "model":
        prompt = Happening(id=ctx.run_id, text=path).model_dump_json()
        done.append(await ctx.model(prompt, remember=step[1]))
    elif kind == "gather":
        await ctx.gather(*(_steps(ctx, plan, f"{path}.{branch}", done) for branch, plan in enumerate(step[1])))
    elif kind == "try":
        try:
            await _step(ctx, step[1], path, done)
        except (ToolError, ToolFailed) as error:
            done.append(type(error).__name__)
    else:
        done.append(await ctx.call(TOOLS[kind], n=step[1]))


async def _steps(ctx: Ctx, plan: list[Any], path: str, done: list[str]) -> None:
    for index, step in enumerate(plan):
        await _step(ctx, step, f"{path}.{index}", done)


async def _workflow(ctx: Ctx, event: Happening) -> str:
    done: list[str] = []
    await _steps(ctx, event.plan or [], "", done)
    return f"{event.id} as {len(ctx.state.ids)}: {done}"


@cache
def _agents() -> dict[str, AgentBase[Any, Any, Any, Any]]:
    tools = tuple(TOOLS.values())
    flow: AgentBase[Any, Any, Any, Any] = workflow(
        name="flow", model=_MODEL, event_type=Happening, output_type=str, state_type=Seen, on_event=take_in,
        settings=_SETTINGS, tools=tools,
    )(_workflow)  # fmt: skip
    loop: AgentBase[Any, Any, Any, Any] = Agent(
        "loop", model=_MODEL, event_type=Happening, output_type=str, state_type=Seen, on_event=take_in,
        settings=_SETTINGS, tools=tools, skip=_skip,
    )  # fmt: skip
    return {"flow": flow, "loop": loop}


def _skip(state: Seen, event: Happening) -> str | None:
    return f"{event.id} skipped as {len(state.ids)}" if event.text == "skip" else None


def agent_of(kind: str, budget: Budget) -> AgentBase[Any, Any, Any, Any]:
    """A copy of the agent with a budget of its own."""
    agent = copy.copy(_agents()[kind])
    agent.budget = budget
    return agent


# ---- plans ----

_NAMES = ("look_up", "fetch", "book", "book", "pay", "pay", "pay", "mail")


def plan_of(kind: str, rng: random.Random) -> Any:
    """A random plan for one event."""
    if kind == "loop":
        rounds = rng.choice((0, 1, 1, 2, 3))
        return [
            [[rng.choice(_NAMES), rng.randrange(3)] for _ in range(rng.choice((1, 1, 2, 3)))] for _ in range(rounds)
        ]
    return _plan(rng, rng.choice((1, 2, 3, 4)), 0)


def _plan(rng: random.Random, length: int, depth: int) -> list[Any]:
    return [_random_step(rng, depth) for _ in range(length)]


def _random_step(rng: random.Random, depth: int) -> list[Any]:
    roll = rng.random()
    if roll < 0.2 and depth < 2:
        return ["gather", [_plan(rng, rng.choice((0, 1, 1, 2)), depth + 1) for _ in range(rng.choice((1, 2, 3)))]]
    if roll < 0.27:
        return ["sleep", rng.choice((0.0, 0.3, 1.0, 2.5))]
    if roll < 0.33:
        return ["emit"]
    if roll < 0.39:
        return ["note"]
    if roll < 0.52:
        return ["model", rng.random() < 0.5]
    call = [rng.choice(_NAMES), rng.randrange(3)]
    return ["try", call] if roll < 0.7 else call
