"""What is bounded in a stream: runs that a worker holds, events that wait on a key, how long a bundle waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gated_agents import CALLS, GATE, booking
from key_state import KeyState, emitted_by

from beam_agents import RunAgent
from beam_agents.codec import canonical_json, digest
from beam_agents.errors import ConfigurationError
from beam_agents.ledger import SqliteLedger
from beam_agents.transforms import patience
from beam_agents.transforms.cells import KeyRecord
from beam_agents.transforms.doorbell import LOOK
from beam_agents.transforms.envelope import Envelope
from beam_agents.transforms.patience import Patience
from beam_agents.transforms.streaming import StreamingDoFn
from beam_agents.transforms.use import AgentUse


@pytest.fixture(autouse=True)
def _gate() -> Iterator[None]:
    GATE.clear()
    CALLS.clear()
    yield
    GATE.set()


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Callable[..., StreamingDoFn]]:
    made = []

    def make(**limits: Any) -> StreamingDoFn:
        use = AgentUse(
            pickled=AgentUse.pickle(booking()),
            identity=f"{len(made)} {tmp_path}",
            ledger=SqliteLedger(tmp_path / "ledger.db"),
            scope="booking",
            network_forbidden=False,
            ephemeral=False,
            dedupe_for=timedelta(days=1),
            session_ttl=None,
            **limits,
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


def record(state: KeyState) -> KeyRecord:
    return KeyRecord.from_json(state.cells["record"].read() or b"{}")


def until(done: Callable[[], bool], act: Callable[[], None]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        act()
        time.sleep(0.01)


def test_keys_that_find_no_room_wait_in_state_and_are_called_when_there_is(driver: Any) -> None:
    dofn = driver(max_open_runs=2)
    states = {name: KeyState(name) for name in "abcd"}
    for name, state in states.items():
        assert state.event(dofn, ticket(f"event of {name}")) == []
    assert [record(state).open is not None for state in states.values()] == [True, True, False, False]
    assert [record(state).waiting for state in states.values()] == [0, 0, 1, 1]
    assert dofn._host.status.in_flight == 2
    GATE.set()
    emitted: list[str] = []

    def serve() -> None:
        for key in dofn._host.drain() or ():
            emitted.extend(value.run_id for _, value in states[key].look(dofn))
            assert dofn._host.status.in_flight <= 2

    until(lambda: len(emitted) == 4, serve)
    assert sorted(emitted) == [f"event of {name}" for name in "abcd"]
    assert all(times == 1 for times in CALLS.values())


def test_a_key_without_room_is_looked_at_again_though_nobody_calls_it(driver: Any) -> None:
    dofn = driver(max_open_runs=1)
    dofn._host.drain()  # a bell rings in this process
    first, second = KeyState("first"), KeyState("second")
    first.event(dofn, ticket("a"))
    second.event(dofn, ticket("b"))
    [due] = second.cells["deadline"].due.values()
    assert 0 < due - time.time() <= 30
    GATE.set()
    until(lambda: bool(first.look(dofn)), lambda: None)
    [tag] = second.cells["deadline"].due
    emitted = second.timer(dofn, tag)
    until(lambda: bool(emitted), lambda: emitted.extend(second.look(dofn)))
    assert [value.run_id for _, value in emitted] == ["b"]


def test_an_event_too_many_for_its_key_is_a_dead_letter(driver: Any) -> None:
    dofn, state = driver(max_waiting=2), KeyState()
    for name in "abc":
        assert state.event(dofn, ticket(name)) == []
    [(tag, failure)] = state.event(dofn, ticket("d"))
    assert (tag, failure.reason, failure.run_id) == ("failures", "overloaded", "d")
    assert "2 events of the key wait already" in failure.message
    assert state.event(dofn, ticket("c")) == [], "one that waits already is no new event"
    GATE.set()
    emitted: list[Any] = []
    until(lambda: len(emitted) == 4, lambda: emitted.extend(state.look(dofn)))
    assert [(tag, value.run_id) for tag, value in emitted] == [
        ("results", "a"),
        ("results", "b"),
        ("results", "c"),
        ("duplicates", "c"),
    ]
    again = state.event(dofn, ticket("d"))
    until(lambda: bool(again), lambda: again.extend(state.look(dofn)))
    assert [tag for tag, _ in again] == ["results"], "it can be sent again"


def test_a_key_with_too_many_holds_up_its_bundle(driver: Any) -> None:
    dofn, state = driver(max_waiting=1, when_full="block"), KeyState()
    GATE.set()
    names = [f"t{number}" for number in range(20)]
    emitted = emitted_by(dofn, *(dofn.process(("k", ticket(name).encoded()), **state.cells) for name in names))
    until(lambda: len(emitted) == len(names), lambda: emitted.extend(state.look(dofn)))
    assert [value.run_id for _, value in emitted] == names
    assert state.cells["inbox"].most <= 2


def test_a_key_with_thousands_of_events_does_not_starve_another(driver: Any) -> None:
    dofn, busy, other = driver(), KeyState("busy"), KeyState("other")
    GATE.set()
    names = [f"t{number:03}" for number in range(400)]
    begun = time.monotonic()
    first = emitted_by(dofn, *(dofn.process(("busy", ticket(name).encoded()), **busy.cells) for name in names))
    in_one_bundle = time.monotonic() - begun
    emitted = list(first)
    served = other.event(dofn, ticket("of another key"))
    until(lambda: bool(served), lambda: served.extend(other.look(dofn)))
    assert [value.run_id for _, value in served] == ["of another key"]
    assert len(first) < len(names), f"a bundle ends though a key goes on: it took {in_one_bundle:.1f} s"

    def serve() -> None:
        for key in dofn._host.drain() or ():
            emitted.extend(busy.look(dofn) if key == "busy" else other.look(dofn))

    until(lambda: len(emitted) == len(names), serve)
    assert [value.run_id for _, value in emitted] == names


def test_a_bundle_with_looks_and_events_of_one_key_reads_its_state_once(driver: Any) -> None:
    dofn, state = driver(), KeyState()
    GATE.set()
    process = (
        dofn.process(("k", data), **state.cells) for data in (ticket("a").encoded(), LOOK, ticket("b").encoded())
    )
    emitted = emitted_by(dofn, *process)
    until(lambda: len(emitted) == 2, lambda: emitted.extend(state.look(dofn)))
    assert [value.output for _, value in emitted] == ["booked a after 0", "booked b after 1"]
    assert record(state).session_version == 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_open_runs": 0}, r"max_open_runs=0\) must be 1 or more"),
        ({"max_waiting": 0}, r"max_waiting=0\) must be 1 or more"),
        ({"when_full": "drop"}, r"when_full='drop'\) must be 'fail' or 'block'"),
    ],
)
def test_limits_that_cannot_work_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        RunAgent(booking(), event_id="id", ledger="memory:", **wrong)


class Clock:
    """Stands for `time` and for `concurrent.futures`: it goes on while somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, ends: Sequence[Ends], timeout: float) -> tuple[set[Ends], set[Ends]]:
        self.now = max(self.now, min(max(end.at for end in ends), self.now + timeout))
        done = {end for end in ends if end.done()}
        return done, {*ends} - done


class Ends(Future[Any]):
    """Ends at a time of the clock."""

    def __init__(self, clock: Clock, at: float) -> None:
        super().__init__()
        self._clock, self.at = clock, at

    def done(self) -> bool:
        return self._clock.now >= self.at


class Held:
    def __init__(self, done: Ends, *, moves: bool = True) -> None:
        self.done = done
        self.moves = moves


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    monkeypatch.setattr(patience, "futures", clock)
    return clock


def waited(clock: Clock, patient: Patience, *after: float, moves: bool = True) -> tuple[bool, float]:
    """Whether it was worth it, and the seconds."""
    begun = clock.now
    handles: Any = [Held(Ends(clock, begun + seconds), moves=moves) for seconds in after]
    return patient.begin().for_some(handles), clock.now - begun


def test_a_bundle_waits_as_long_as_runs_end(clock: Clock) -> None:
    assert waited(clock, Patience(), 0.01, 0.02, 0.03) == (True, pytest.approx(0.03))


def test_a_bundle_does_not_wait_for_slow_runs_and_the_next_ones_do_not_even_try(clock: Clock) -> None:
    patient = Patience()
    for _ in range(3):
        worth, seconds = waited(clock, patient, 5.0, 5.0)
        assert not worth
        assert 0 < seconds < 0.1
    assert not patient.willing
    assert waited(clock, patient, 5.0)[1] < 0.1, "one tries again"
    assert waited(clock, patient, 5.0) == (False, 0.0)
    clock.now += 1.5
    assert waited(clock, patient, 0.001) == (True, pytest.approx(0.001)), "after a while one tries again"
    assert patient.willing


def test_a_bundle_of_many_runs_that_all_wait_for_others_is_over_soon(clock: Clock) -> None:
    many = [5.0] * 200
    assert waited(clock, Patience(), *many) == (False, pytest.approx(0.62))
    assert waited(clock, Patience(), *many, moves=False) == (False, pytest.approx(0.1))
    assert waited(clock, Patience(), 0.04, 0.08, *many, moves=False) == (True, pytest.approx(0.2))


def test_runs_that_end_in_a_long_row_do_not_hold_a_bundle_for_ever(clock: Clock) -> None:
    _, seconds = waited(clock, Patience(), *(0.01 * number for number in range(1_000)))
    assert seconds == pytest.approx(patience.LONGEST_SECONDS, abs=0.05)
