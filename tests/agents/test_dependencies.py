"""`deps` is made once for a worker process and closed at its end."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from agent_kit import ECHO, Txn
from driving import BATCH, STREAM, run

from beam_agents import Agent, RunContext, tool
from beam_agents.engine.worker import Worker
from beam_agents.ledger.memory import EphemeralLedger
from beam_agents.testing import ScriptedModel, calls

LOG: dict[str, list[str]] = {}
CLOSED = threading.Condition()


def note(name: str, what: str) -> None:
    with CLOSED:
        LOG.setdefault(name, []).append(what)
        CLOSED.notify_all()


def wait_for(name: str, what: str) -> list[str]:
    """The log, once `what` stands in it; closing goes on after the last run."""
    with CLOSED:
        CLOSED.wait_for(lambda: what in LOG.get(name, []), timeout=10)
        return LOG.get(name, [])


class Closing:
    """Has a close()."""

    def __init__(self, name: str) -> None:
        self.name = name
        note(name, "open")

    def close(self) -> None:
        note(self.name, "close")


class Entering:
    """Is a context manager, and gives something else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> str:
        note(self.name, "open")
        return self.name

    def __exit__(self, *_: Any) -> None:
        note(self.name, "close")


@contextmanager
def yielding(name: str) -> Iterator[str]:
    """The usual way to write a context manager."""
    note(name, "open")
    try:
        yield name
    finally:
        note(name, "close")


class Opener:
    """Makes dependencies; pickled with the agent."""

    def __init__(self, make: Callable[[str], Any], name: str) -> None:
        self.make, self.name = make, name

    def __call__(self) -> Any:
        return self.make(self.name)


@tool(effect="pure")
def use(ctx: RunContext[Any, Any, Any]) -> str:
    """Says what the dependencies are."""
    return type(ctx.deps).__name__


def using(make: Callable[[str], Any], name: str) -> Agent[Any, Any, Any, Any]:
    model = ScriptedModel([calls(("use", {})), "Done."])
    return Agent("a", model=model, tools=[use], event_type=Txn, deps=Opener(make, name))


@pytest.mark.parametrize(("make", "given"), [(Closing, "Closing"), (Entering, "str"), (yielding, "str")])
def test_what_was_opened_is_closed(make: Any, given: str) -> None:
    name = uuid.uuid4().hex
    agent = using(make, name)
    agent.run_sync({"txn_id": "a"})

    assert agent.model.requests[-1].messages[-1].text == given
    assert wait_for(name, "close") == ["open", "close"]


@pytest.mark.parametrize("make", [Closing, Entering, yielding])
def test_it_is_closed_at_the_end_of_the_process(make: Any) -> None:
    name = uuid.uuid4().hex
    agent = using(make, name)
    worker = Worker()
    worker.join(agent, "identity", EphemeralLedger(), "scope")
    worker.close()

    assert LOG[name] == ["open", "close"]


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_it_is_made_once_for_all_runs_of_a_process(driver: str) -> None:
    name = uuid.uuid4().hex
    out = run(using(Closing, name), [(f"k{n}", {"txn_id": str(n)}) for n in range(5)], driver)

    assert len(out.results) == 5
    assert LOG[name].count("open") == 1
    assert wait_for(name, "close") == ["open", "close"]


def refuse(name: str) -> Any:
    raise ConnectionError(f"no database {name}")


def test_what_cannot_be_opened_stops_the_work_with_its_error() -> None:
    """Not a failure of each event: with a wrong password, none would be decided."""
    with pytest.raises(Exception, match="no database x"):
        using(refuse, "x").run_sync({"txn_id": "a"})
    assert Agent("a", model=ECHO, event_type=Txn).run_sync({"txn_id": "a"}).run_id


def test_runs_leave_no_threads_behind() -> None:
    agent = Agent("a", model=ECHO, event_type=Txn)
    agent.run_sync({"txn_id": "a"})
    before = threading.active_count()
    for _ in range(10):
        agent.run_sync({"txn_id": "a"})
    name = uuid.uuid4().hex
    using(Closing, name).run_sync({"txn_id": "a"})
    wait_for(name, "close")

    assert threading.active_count() < before + 10
