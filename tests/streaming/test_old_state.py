"""A job that goes on from an old state, or is given old events: what both drivers do when the ledger was pruned."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import apache_beam.testing.test_stream as test_stream
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import TimestampedValue

from beam_agents import RunAgent
from beam_agents.errors import LedgerChanged
from beam_agents.ledger import SqliteLedger
from beam_agents.ledger.commands import Answer, Command, Prune
from beam_agents.transforms import doorbell
from beam_agents.transforms.doorbell import ALIVE_SECONDS, LOOK, Alive, Paces, TickerDoFn
from beam_agents.transforms.run_agent import _Drain, _Restored, _transforms
from beam_agents.transforms.streaming import StreamingDoFn
from beam_agents.transforms.use import AgentUse
from tests.streaming_job import Sink
from tests.streaming_source import Arrival, ArrivalStream
from tests.transforms.gated_agents import CALLS, GATE, booking
from tests.transforms.key_state import Cell, KeyState
from tests.transforms.test_streaming_state import look_until_emitted, ticket

PACES = Paces(busy=0.05, quiet=0.15, idle=0.5, standby=2)
FAR = timedelta(days=1).total_seconds()


@pytest.fixture(autouse=True)
def _gate() -> Iterator[None]:
    CALLS.clear()
    GATE.set()
    yield
    GATE.clear()


class Tick:
    """A timer that notes nothing."""

    def set(self, due: float) -> None:
        assert due > 0


def ask(path: Path, command: Command) -> Answer:
    ledger = SqliteLedger(path)
    ledger.open()
    try:
        [answer] = ledger.apply([command])
        return answer
    finally:
        ledger.close()


def prune(path: Path, *, forget: bool = False) -> None:
    """All that is closed becomes a tombstone; to forget those takes a second round."""
    for _ in range(1 + forget):
        ask(path, Prune("booking", "booking", -1.0, -1.0 if forget else FAR))


# ---- what the state of a ticker says ----


def rung(ticker: TickerDoFn, cell: Cell, number: int = 0) -> list[Any]:
    return list(ticker.ring(number, Tick(), cell))


def test_a_ticker_tells_once_when_it_was_last_alive_and_notes_it_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=lambda: clock.now, now=1000.0)
    monkeypatch.setattr(doorbell, "time", clock)
    told: list[float] = []

    def restored(at: float) -> bool:
        told.append(at)
        return True

    def ticker() -> TickerDoFn:
        return TickerDoFn(lambda _: [], None, PACES, restored)

    first, cell = ticker(), Cell()
    noted = []
    for clock.now in (1000.0, 1000.5, 1000.0 + ALIVE_SECONDS / 2, 1001.0 + ALIVE_SECONDS, 1002.0 + ALIVE_SECONDS):
        rung(first, cell)
        noted.append(Alive.from_json(cell.read() or b"").at)
    assert noted == [1000.0, 1000.0, 1000.0, 1001.0 + ALIVE_SECONDS, 1001.0 + ALIVE_SECONDS]
    assert told == []
    second = ticker()
    clock.now = 9000.0
    for _ in range(2):
        rung(second, cell)
    assert told == [1001.0 + ALIVE_SECONDS]
    assert Alive.from_json(cell.read() or b"").at == 9000.0
    rung(second, Cell(), 5)  # another ticker of the same DoFn, which is new
    assert told == [1001.0 + ALIVE_SECONDS]


def test_a_ticker_tells_again_until_somebody_takes_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = False
    told: list[float] = []

    def restored(at: float) -> bool:
        told.append(at)
        return listening

    cell = Cell()
    cell.write(Alive(at=500.0).to_json())
    ticker = TickerDoFn(lambda _: ["card"], None, PACES, restored)
    assert [bell.value for bell in rung(ticker, cell)] == [("card", LOOK)]
    rung(ticker, cell)
    assert Alive.from_json(cell.read() or b"").at == 500.0
    listening = True
    rung(ticker, cell)
    rung(ticker, cell)
    assert told == [500.0, 500.0, 500.0]
    assert Alive.from_json(cell.read() or b"").at > 500.0


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes the two DoFns of a job on a ledger, as after a start: (driver, ticker)."""
    drivers: list[StreamingDoFn] = []

    def make(name: str, *, take_old: bool = False) -> tuple[StreamingDoFn, TickerDoFn]:
        use = AgentUse(
            pickled=AgentUse.pickle(booking()),
            identity=f"{name} {tmp_path}",
            ledger=SqliteLedger(tmp_path / "ledger.db"),
            scope="booking",
            network_forbidden=False,
            ephemeral=False,
            dedupe_for=timedelta(days=1),
            session_ttl=None,
        )
        driver = StreamingDoFn(use, waits=False)
        driver.setup()
        drivers.append(driver)
        return driver, TickerDoFn(_Drain(use), None, PACES, _Restored(use, take_old=take_old))

    yield make
    for driver in drivers:
        driver.teardown()


def ring_until(done: Callable[[], bool], ticker: TickerDoFn, cell: Cell) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        rung(ticker, cell)
        time.sleep(0.02)


def test_a_savepoint_from_before_runs_that_were_pruned_is_refused_unless_somebody_accepts_it(
    job: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver, ticker = job("first")
    state, cell = KeyState(), Cell()
    rung(ticker, cell)
    saved = state.checkpoint()  # the savepoint
    first = state.event(driver, ticket("a")) or look_until_emitted(state, driver)
    assert [tag for tag, _ in first] == ["results"]
    prune(tmp_path / "ledger.db")

    driver, ticker = job("refused")
    with pytest.raises(LedgerChanged, match="accept_state_older_than_ledger"):
        ring_until(lambda: False, ticker, cell)

    driver, ticker = job("accepted", take_old=True)
    state.cells = saved
    ring_until(lambda: "taken all the same" in caplog.text, ticker, cell)
    again = state.event(driver, ticket("a")) or look_until_emitted(state, driver)
    assert [tag for tag, _ in again] == ["duplicates"]
    after = state.event(driver, ticket("b")) or look_until_emitted(state, driver)
    assert [(tag, value.output) for tag, value in after] == [("results", "booked b after 1")]
    assert CALLS == {"a": 1, "b": 1}


@pytest.mark.parametrize("accepts", [False, True])
def test_the_option_reaches_the_tickers(accepts: bool) -> None:
    options = PipelineOptions(["--accept_state_older_than_ledger"] if accepts else [])
    pipeline = beam.Pipeline(options=options)
    arrivals = [Arrival(0, ("k", {"id": "a"}), 0)]
    events = pipeline | ArrivalStream(arrivals, then="idle", element_type=tuple[str, dict[str, str]])
    _ = events | RunAgent(booking(), event_id="id", ledger="memory:option")
    fns = [getattr(t, "fn", None) for t in _transforms(pipeline.transforms_stack[0])]
    [ticker] = [fn for fn in fns if isinstance(fn, TickerDoFn)]
    assert isinstance(ticker._restored, _Restored)
    assert ticker._restored._take_old is accepts


# ---- events that come back when the ledger was pruned ----


def test_an_event_that_the_ledger_has_forgotten_is_a_duplicate_where_the_state_knows_it(
    job: Any, tmp_path: Path
) -> None:
    driver, _ = job("only")
    state = KeyState()
    assert (state.event(driver, ticket("a")) or look_until_emitted(state, driver))[0][0] == "results"
    prune(tmp_path / "ledger.db", forget=True)
    again = state.event(driver, ticket("a")) or look_until_emitted(state, driver)
    assert [tag for tag, _ in again] == ["duplicates"]
    another = ticket("a").model_copy(update={"digest": "of another content"})
    conflict = state.event(driver, another) or look_until_emitted(state, driver)
    assert [(tag, value.reason) for tag, value in conflict] == [("failures", "id_conflict")]
    elsewhere = KeyState()  # a state that has lost it
    lost = elsewhere.event(driver, ticket("a")) or look_until_emitted(elsewhere, driver)
    assert [(tag, value.reason) for tag, value in lost] == [("failures", "too_old")]
    assert lost[0][1].event.id == "a"
    assert elsewhere.cells["record"].read() is None
    assert CALLS == {"a": 1}


def run_pipeline(driver: str, ledger: Path, *events: tuple[str, float]) -> tuple[list[str], int]:
    """What is emitted, and how many duplicates were counted."""
    timed = [TimestampedValue(("k", {"id": name}), at) for name, at in events]
    kv, sink = tuple[str, dict[str, str]], Sink()
    if driver == "batch":
        pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
        created = pipeline | beam.Create(timed) | beam.Map(lambda value: value).with_output_types(kv)
    else:
        pipeline = beam.Pipeline(options=PipelineOptions(["--runner=BundleBasedDirectRunner", "--streaming"]))
        stream = test_stream.TestStream().add_elements(timed).advance_watermark_to_infinity()
        created = pipeline | stream | beam.Map(lambda value: value).with_output_types(kv)
    out = created | RunAgent(booking(), event_id="id", ledger=f"sqlite:///{ledger}")
    told = {
        "result": out.results | beam.MapTuple(lambda _, value: f"result {value.run_id}: {value.output}"),
        "failure": out.failures | beam.MapTuple(lambda _, value: f"failure {value.run_id}: {value.reason.value}"),
        "duplicate": out.duplicates | beam.MapTuple(lambda _, value: f"duplicate {value.run_id}"),
    }
    tuple(told.values()) | beam.Flatten() | sink
    result = pipeline.run()
    result.wait_until_finish()
    counted = result.metrics().query(MetricsFilter().with_name("duplicates"))["counters"]
    return sorted(sink.values()), sum(counter.committed for counter in counted)


@pytest.mark.parametrize("driver", ["batch", "stream"])
def test_events_come_back_after_their_runs_were_pruned_and_forgotten(driver: str, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    emitted, _ = run_pipeline(driver, ledger, ("a", 10.0), ("b", 20.0))
    assert emitted == ["result a: booked a after 0", "result b: booked b after 1"]
    prune(ledger)
    emitted, duplicates = run_pipeline(driver, ledger, ("a", 10.0), ("c", 30.0))
    assert emitted == ["duplicate a", "result c: booked c after 2"]
    assert duplicates == 1
    prune(ledger, forget=True)
    emitted, duplicates = run_pipeline(driver, ledger, ("a", 10.0), ("d", 40.0), ("late", 29.0))
    assert emitted == ["failure a: too_old", "failure late: too_old", "result d: booked d after 3"]
    assert duplicates == 0
    assert CALLS == {"a": 1, "b": 1, "c": 1, "d": 1}
