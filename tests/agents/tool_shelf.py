"""Tools and a workflow of an importable module: pickled by name."""

from __future__ import annotations

from typing import Literal

from agent_kit import Count, Txn

from beam_agents import Agent, RunContext, tool, workflow
from beam_agents.testing import SchemaModel


@tool(effect="pure")
def shelf_lookup(ctx: RunContext[Txn, Count, None], kind: Literal["a", "b"]) -> dict[str, str]:
    """Looks something up."""
    return {"kind": kind}


class Shelf:
    """Holds a tool."""

    @staticmethod
    @tool(effect="pure")
    def held(number: int) -> int:
        """Gives it back."""
        return number


@workflow(model=SchemaModel())
async def shelf_flow(ctx: RunContext[Txn, None, None], event: Txn) -> dict[str, str]:
    """Looks up."""
    return await ctx.call(shelf_lookup, kind="a")


SHELF_AGENT = Agent("shelf", model=SchemaModel(), tools=[shelf_lookup], event_type=Txn, state_type=Count)
