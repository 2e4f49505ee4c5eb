"""A program whose forked worker processes crash at each fault point, and are started again; it prints what it saw.

python tests/engine/crashing_worker.py FOLDER
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

from beam_agents import Agent, CannotHappen, Happened, RunContext, tool
from beam_agents.codec import key_text
from beam_agents.ledger import SqliteLedger
from beam_agents.ledger.commands import Load, Loaded
from beam_agents.ledger.records import RunKey
from beam_agents.messages import AssistantMessage, ModelRequest, ToolMessage
from beam_agents.models import FunctionModel
from beam_agents.testing import FAULT_POINTS, FaultPoint, calls, crash_at, say

RUN = RunKey("agent", "agent", 1, key_text("k"), "1")


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def append(file: Path, line: str) -> None:
    with file.open("a") as out:
        out.write(f"{line}\n")


def worker(folder: Path, ahead: float) -> None:
    """Handles one event: a model that has two tools called side by side, then answers."""

    def asked(ctx: RunContext[Any, Any, Any]) -> Happened[str] | CannotHappen:
        done = f"{ctx.idempotency_key}" in lines(folder / "keys")
        return Happened("done") if done else CannotHappen()

    @tool(effect="once", reconcile=asked)
    def first(ctx: RunContext[Any, Any, Any]) -> str:
        """Is quick."""
        append(folder / "keys", ctx.idempotency_key)
        append(folder / "calls", "first")
        return "done"

    @tool(effect="once", reconcile=asked)
    def second(ctx: RunContext[Any, Any, Any]) -> str:
        """Waits until it may go on."""
        while not (folder / "go").exists():
            time.sleep(0.01)
        append(folder / "keys", ctx.idempotency_key)
        append(folder / "calls", "second")
        return "done"

    def model(request: ModelRequest) -> AssistantMessage:
        append(folder / "calls", "model")
        if any(isinstance(message, ToolMessage) for message in request.messages):
            return say("answered")
        return calls(("first", {}), ("second", {}))

    agent = Agent("agent", model=FunctionModel(model), tools=[first, second])
    ledger = SqliteLedger(folder / "runs.db", clock=lambda: time.time() + ahead)
    result = agent.run_sync({}, key="k", event_id="1", ledger=ledger)
    (folder / "answer").write_text(result.output)


def start(folder: Path, ahead: float) -> int | None:
    """The exit code of a worker process."""
    process = multiprocessing.get_context("fork").Process(target=worker, args=(folder, ahead))
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    return code


def seen(folder: Path) -> dict[str, Any]:
    """What is outside and in the ledger."""
    ledger = SqliteLedger(folder / "runs.db")
    ledger.open()
    (loaded,) = ledger.apply([Load(RUN)])
    ledger.close()
    assert isinstance(loaded, Loaded)
    assert loaded.run is not None
    return {
        "calls": lines(folder / "calls"),
        "outcomes": {f"{effect.name}.{effect.attempt}": effect.status for effect in loaded.effects},
        "closed": loaded.run.end is not None,
        "answer": "".join(lines(folder / "answer")),
    }


def crash(point: FaultPoint, folder: Path) -> dict[str, Any]:
    """A worker that crashes at the point, and one that goes on."""
    folder.mkdir()
    if point == "after_close":
        (folder / "go").touch()
    os.environ.update(crash_at(point, kind="tool"))
    crashed = start(folder, 0.0)
    after_crash = seen(folder)
    os.environ.pop("BEAM_AGENTS_FAULT")
    (folder / "go").touch()
    ended = start(folder, 10.0)  # the lease of the dead worker is over
    return {"crashed": crashed, "after_crash": after_crash, "ended": ended, "in_the_end": seen(folder)}


if __name__ == "__main__":
    print(json.dumps({point: crash(point, Path(sys.argv[1]) / point) for point in FAULT_POINTS}))
