"""DBOS: the loop as a durable workflow on its SQLite system database; each model request and each tool call is a step.

Each turn of the conversation is a workflow whose id is the turn's, so that to start it again is to get its handle;
those that a crash interrupted are recovered by `DBOS.launch`. Calls of one answer are steps that `asyncio.gather` runs
side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dbos import DBOS, SetWorkflowID

from benchmarks.crash.rivals.crashing import Calls, Faults
from benchmarks.crash.rivals.yardstick import Call, Scenario

POLLING = 0.02
"""Seconds between looks at a workflow that was recovered."""


def register(calls: Calls) -> Callable[[int], Any]:
    """Declares the steps and the workflow to DBOS; the workflow."""

    @DBOS.step()
    async def ask(position: int) -> dict[str, Any]:
        reply = await asyncio.to_thread(calls.ask, position)
        return {"calls": [(call.position, call.tool, call.arguments) for call in reply.calls], "text": reply.text}

    @DBOS.step()
    async def call_tool(position: str, tool: str, arguments: dict[str, Any]) -> str:
        return await asyncio.to_thread(calls.make, Call(position, tool, arguments))

    async def made(position: str, tool: str, arguments: dict[str, Any]) -> str:
        result = await call_tool(position, tool, arguments)
        calls.recorded(position)
        return result

    @DBOS.workflow()
    async def take_turn(position: int) -> int:
        """One turn of the conversation, from this answer of the model on; the position where the next turn begins."""
        while True:
            reply = await ask(position)
            position += 1
            if not reply["calls"]:
                return position
            await asyncio.gather(*(made(*call) for call in reply["calls"]))

    return take_turn


def run(scenario: Scenario, faults: Faults, folder: Path) -> None:
    DBOS(
        config={
            "name": "crash-yardstick",
            "system_database_url": f"sqlite:///{folder / 'dbos.db'}",
            "log_level": "ERROR",
        }
    )
    take_turn = register(Calls(scenario, faults, records_each=True))
    DBOS.launch()
    position = 0
    for turn in range(len(scenario.users)):
        with SetWorkflowID(f"{scenario.name}/{turn}"):
            handle = DBOS.start_workflow(take_turn, position)
        position = handle.get_result(polling_interval_sec=POLLING)
        faults.reach("after_close", str(turn))
