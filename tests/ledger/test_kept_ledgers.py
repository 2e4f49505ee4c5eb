import asyncio
import gc
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from beam_agents import workflow
from beam_agents.engine.worker import Worker
from beam_agents.ledger import Ledger, MemoryLedger, SqliteLedger, ledger_from
from beam_agents.ledger.commands import Closed, HeadIs, Load, Loaded, ReadHead
from beam_agents.ledger.memory import EphemeralLedger
from beam_agents.testing.ledger_store import FakeClock, Store, opening, run_key


class Deps:
    """Dependencies that say when they are closed: what the worker does last before it gives up a writer."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def use(worker: Worker, ledger: Ledger) -> bool:
    """Opens a run with the ledger, leaves, and returns whether the run was there before."""
    deps = Deps()

    @workflow(output_type=str, deps=lambda: deps)
    async def answer(ctx: Any, event: Any) -> str:
        return "done"

    host = worker.join(answer, "agent", ledger, "scope")
    loaded = host.ledger.ask_blocking(Load(run_key()), timeout=30)
    assert isinstance(loaded, Loaded)
    if loaded.run is None:
        host.ledger.ask_blocking(opening(run_key()), timeout=30)
    worker.leave(host)
    assert deps.closed.wait(30)
    return loaded.run is not None


def test_a_named_memory_ledger_lives_as_long_as_its_worker(worker: Worker) -> None:
    assert [use(worker, ledger_from("memory:shared")) for _ in range(3)] == [False, True, True]
    assert not use(worker, ledger_from("memory:other"))
    worker.close()
    another = Worker()
    assert not use(another, ledger_from("memory:shared"))
    another.close()


def test_what_an_agent_without_a_ledger_has_is_given_up(worker: Worker) -> None:
    ledger = EphemeralLedger("uuid")
    closed = threading.Event()
    ledger.close = closed.set  # type: ignore[method-assign]
    use(worker, ledger)
    assert closed.wait(30)
    assert not use(worker, EphemeralLedger("uuid"))


def test_only_memory_is_kept_open(tmp_path: Any) -> None:
    kept = [ledger.keep_open for ledger in (MemoryLedger(), EphemeralLedger(), SqliteLedger(tmp_path / "a.db"))]
    assert kept == [True, False, False]


def test_an_ephemeral_ledger_forgets_what_is_closed() -> None:
    store = Store(EphemeralLedger(), FakeClock())
    assert isinstance(store.complete(run_key()), Closed)
    assert store.do(ReadHead(run_key().head)) == HeadIs(None)
    assert store.expect(Loaded, Load(run_key())).run is None


def test_leaving_a_worker_that_is_ending_leaves_no_coroutine(worker: Worker) -> None:
    @workflow(output_type=str)
    async def answer(ctx: Any, event: Any) -> str:
        return "done"

    host = worker.join(answer, "agent", MemoryLedger(), "scope")
    held, ending, left = threading.Event(), threading.Event(), threading.Event()

    async def hold_up_the_end() -> None:
        held.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # what the loop is given from now on, it does not come to
            ending.set()
            left.wait(30)

    asyncio.run_coroutine_threadsafe(hold_up_the_end(), worker.loop)
    assert held.wait(30)
    closer = threading.Thread(target=worker.close)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        closer.start()
        assert ending.wait(30)
        worker.leave(host)
        left.set()
        closer.join()
        gc.collect()
    assert [str(warning.message) for warning in warned] == []
    assert host.users == 0
