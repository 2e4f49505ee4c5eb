"""One event without Beam."""

from __future__ import annotations

import uuid
from typing import Any

from beam_agents.agent_base import AgentBase
from beam_agents.engine.emit import failure_of, outcome_of
from beam_agents.engine.end import Refused
from beam_agents.engine.task import Task
from beam_agents.engine.worker import this_worker
from beam_agents.events import RunFailure, RunResult
from beam_agents.ledger.base import Ledger
from beam_agents.ledger.records import RunKey


def run_one(
    agent: AgentBase[Any, Any, Any, Any],
    ledger: Ledger,
    run: RunKey,
    key: Any,
    event: str,
    digest: str,
    *,
    network_forbidden: bool,
) -> RunResult[Any, Any] | RunFailure[Any]:
    """Runs one event to its end on this process's worker, and waits for it."""
    worker = this_worker()
    # An identity of its own: the agent may be a copy with another model.
    host = worker.join(agent, uuid.uuid4().hex, ledger, run.scope)
    try:
        task = Task(run, key, event, digest, network_forbidden=network_forbidden)
        ended = host.start(task).done.result()
        if isinstance(ended, Refused):
            return failure_of(agent, run.run_id, event, ended)
        return outcome_of(agent, ended)
    finally:
        worker.leave(host)
