"""The streaming driver, callback by callback: what it does with state that another worker or release has left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import gated_agents
import pytest
from gated_agents import CALLS, GATE, booking
from key_state import KeyState

from beam_agents.codec import canonical_json, digest
from beam_agents.errors import LedgerError
from beam_agents.ledger import MemoryLedger, SqliteLedger
from beam_agents.ledger.base import Ledger
from beam_agents.ledger.commands import Answer, Command, Open
from beam_agents.transforms import patience
from beam_agents.transforms.cells import KeyRecord
from beam_agents.transforms.envelope import Envelope
from beam_agents.transforms.streaming import StreamingDoFn
from beam_agents.transforms.use import AgentUse


@pytest.fixture(autouse=True)
def _gate() -> Iterator[None]:
    GATE.clear()
    CALLS.clear()
    yield
    GATE.set()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., StreamingDoFn]]:
    """Makes DoFns that share a ledger; each name is a host of its own, as in another process."""
    made = []

    def make(name: str, *, revision: int = 1, ledger: Ledger | None = None) -> StreamingDoFn:
        use = AgentUse(
            pickled=AgentUse.pickle(booking(revision)),
            identity=f"{name} {tmp_path}",
            ledger=ledger or SqliteLedger(tmp_path / "ledger.db"),
            scope="booking",
            network_forbidden=False,
            ephemeral=False,
            dedupe_for=timedelta(days=1),
            session_ttl=None,
        )
        dofn = StreamingDoFn(use, waits=False)
        dofn.setup()
        made.append(dofn)
        return dofn

    yield make
    GATE.set()
    for dofn in made:
        dofn.teardown()


def ticket(name: str) -> Envelope:
    text = canonical_json({"id": name})
    return Envelope(run_id=name, event=text, digest=digest(text), micros=1_000_000)


def look_until_emitted(state: KeyState, dofn: StreamingDoFn, count: int = 1) -> list[tuple[str, Any]]:
    emitted: list[tuple[str, Any]] = []
    deadline = time.monotonic() + 30
    while len(emitted) < count:
        assert time.monotonic() < deadline, f"emitted only {emitted}"
        emitted += state.look(dofn)
        time.sleep(0.005)
    return emitted


def wait_for_call(name: str) -> None:
    deadline = time.monotonic() + 30
    while not CALLS[name]:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_open_run_ends_under_the_revision_it_began_with(worker: Any) -> None:
    state, old = KeyState(), worker("old", revision=1)
    assert state.event(old, ticket("a")) == []
    assert KeyRecord.from_json(state.cells["record"].read()).revision == 1
    assert state.event(old, ticket("b")) == []
    wait_for_call("a")
    GATE.set()
    new = worker("new", revision=2)
    emitted = look_until_emitted(state, new, 2)
    assert [(tag, value.output) for tag, value in emitted] == [
        ("results", "booked a after 0"),
        ("results", "booked b after 1"),
    ]
    assert CALLS == {"a": 1, "b": 1}
    assert KeyRecord.from_json(state.cells["record"].read()).session_revision == 2


def test_going_back_to_an_older_revision_goes_on_from_the_session_in_state(worker: Any) -> None:
    GATE.set()
    state, old, new = KeyState(), worker("old", revision=1), worker("new", revision=2)
    for dofn, name in ((old, "a"), (new, "b"), (new, "c"), (old, "d")):
        emitted = state.event(dofn, ticket(name)) or look_until_emitted(state, dofn)
        assert [value.output for _, value in emitted] == [f"booked {name} after {'abcd'.index(name)}"]


def test_an_event_that_another_worker_emitted_meanwhile_is_a_duplicate(worker: Any) -> None:
    state, first, second = KeyState(), worker("first"), worker("second")
    assert state.event(first, ticket("a")) == []
    wait_for_call("a")
    GATE.set()
    # The key moves to the second worker while the first still holds the end, and comes back.
    assert [tag for tag, _ in look_until_emitted(state, second)] == ["results"]
    run = first._use.run_key("k", ticket("a"))
    assert first._host.find(run).done.result(timeout=30).replayed is False
    assert [tag for tag, _ in state.event(first, ticket("a"))] == ["duplicates"]
    assert CALLS == {"a": 1}


class RefusingLedger(MemoryLedger):
    """Refuses openings for good, after longer than `process` waits."""

    refuses = True

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        if self.refuses and any(isinstance(command, Open) for command in commands):
            time.sleep(0.1)
            raise LedgerError("the disk is read-only")
        return super().apply(commands)


def test_a_ledger_that_refuses_for_good_stops_the_job_and_is_tried_again_by_the_next(worker: Any) -> None:
    GATE.set()
    ledger = RefusingLedger()
    state, dofn = KeyState(), worker("only", ledger=ledger)
    assert state.event(dofn, ticket("a")) == []
    with pytest.raises(LedgerError, match="read-only"):
        look_until_emitted(state, dofn)
    ledger.refuses = False
    assert [tag for tag, _ in look_until_emitted(state, dofn)] == ["results"]


def test_the_inbox_of_a_key_that_is_never_idle_is_compacted(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "QUICK_SECONDS", -1)  # no callback waits for a run, so each takes one event
    GATE.set()
    state, dofn = KeyState(), worker("only")
    names = [f"t{number}" for number in range(200)]
    emitted: list[tuple[str, Any]] = []
    for number, name in enumerate(names):
        emitted += state.event(dofn, ticket(name))
        if len(emitted) < number - 5:
            emitted += look_until_emitted(state, dofn)
    emitted += look_until_emitted(state, dofn, len(names) - len(emitted))
    assert [value.run_id for _, value in emitted] == names
    assert dict.fromkeys(names, 1) == CALLS
    assert state.cells["inbox"].most < 100
    assert not state.cells["inbox"].values
    assert KeyRecord.from_json(state.cells["record"].read()).waiting == 0
    assert state.cells["batch"].read() is None


def test_the_timer_of_an_event_that_came_twice_stays_until_both_are_done(worker: Any) -> None:
    state, dofn = KeyState(), worker("only")
    assert state.event(dofn, ticket("a")) == []
    assert state.event(dofn, ticket("a")) == []
    [tag] = state.cells["deadline"].due
    GATE.set()
    assert [tag for tag, _ in look_until_emitted(state, dofn, 2)] == ["results", "duplicates"]
    assert state.cells["deadline"].due == {}
    assert CALLS == {"a": 1}
    state.cells["deadline"].set(0, dynamic_timer_tag=tag)
    assert state.timer(dofn, tag) == []  # a cleared timer may fire all the same
    assert state.cells["deadline"].due == {}


def test_a_bundle_that_is_made_again_from_an_older_state_emits_the_recorded_end(worker: Any) -> None:
    state, dofn = KeyState(), worker("only")
    assert state.event(dofn, ticket("a")) == []
    before = state.checkpoint()
    GATE.set()
    first = look_until_emitted(state, dofn)
    state.cells = before
    again = look_until_emitted(state, worker("another"))
    assert [(tag, value.output) for tag, value in again] == [(tag, value.output) for tag, value in first]
    assert CALLS == {"a": 1}
    assert gated_agents.CALLS is CALLS
