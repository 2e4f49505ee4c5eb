import asyncio
import functools
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import ParamSpec

import pytest

from beam_agents.errors import LedgerError
from beam_agents.ledger import LedgerUnavailable, MemoryLedger, SqliteLedger
from beam_agents.ledger.commands import (
    Answer,
    Close,
    Closed,
    Command,
    Done,
    Intend,
    Load,
    Loaded,
    Opened,
    Record,
    Recorded,
    Renew,
)
from beam_agents.ledger.writer import LedgerWriter
from beam_agents.testing.ledger_store import attempt, opening, run_key

P = ParamSpec("P")


def on_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Runs a test on an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Gated(MemoryLedger):
    """Takes nothing while its gate is shut, and fails as told: the errors of the next openings and groups."""

    def __init__(self) -> None:
        super().__init__("gated")
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.opening_errors: list[Exception] = []
        self.errors: list[Exception] = []
        self.seen: list[Sequence[Command]] = []
        self.closed = 0

    def open(self) -> None:
        if self.opening_errors:
            raise self.opening_errors.pop(0)

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        self.entered.set()
        assert self.gate.wait(30)
        self.seen.append(list(commands))
        if self.errors:
            raise self.errors.pop(0)
        return super().apply(commands)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def ledger() -> Gated:
    return Gated()


@pytest.fixture
def writer(ledger: Gated) -> Iterator[LedgerWriter]:
    writer = LedgerWriter(ledger)
    yield writer
    ledger.gate.set()
    writer.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what it waits for happens in a thread
            await asyncio.sleep(0.001)


async def shut(ledger: Gated, writer: LedgerWriter) -> asyncio.Task[Answer]:
    """Holds the writer inside a first command, so that what is asked now waits in the queue."""
    ledger.gate.clear()
    ledger.entered.clear()
    first = asyncio.create_task(writer.ask(Renew("first")))
    await until(ledger.entered.is_set)
    return first


@on_loop
async def test_asking(writer: LedgerWriter, ledger: Gated) -> None:
    assert await writer.ready() == ledger.identity
    assert isinstance(await writer.ask(opening(run_key())), Opened)
    assert isinstance(await asyncio.to_thread(writer.ask_blocking, Load(run_key())), Loaded)
    assert (writer.groups, writer.commands, writer.down_since) == (2, 2, None)


@on_loop
async def test_what_waits_is_one_group(writer: LedgerWriter, ledger: Gated) -> None:
    first = await shut(ledger, writer)
    runs = [run_key(key=f'"k{number}"') for number in range(100)]
    tasks = [asyncio.create_task(writer.ask(opening(run))) for run in runs]
    await asyncio.sleep(0)
    ledger.gate.set()
    answers = await asyncio.gather(*tasks)
    assert [answer.run.key for answer in answers if isinstance(answer, Opened)] == runs
    assert isinstance(await first, Done)
    assert (writer.groups, writer.commands) == (2, 101)


@on_loop
async def test_what_the_tasks_of_a_loop_ask_in_one_turn_is_one_group(writer: LedgerWriter, ledger: Gated) -> None:
    await writer.ready()  # its thread waits for the first command
    await asyncio.gather(*(writer.ask(Renew(str(number))) for number in range(50)))
    assert [len(group) for group in ledger.seen] == [50]


@on_loop
async def test_what_was_asked_before_the_writer_is_closed_is_carried_out(ledger: Gated) -> None:
    writer = LedgerWriter(ledger, max_group=10)
    await shut(ledger, writer)
    tasks = [asyncio.create_task(writer.ask(Renew(str(number)))) for number in range(25)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the turn in which they asked is over
    closing = asyncio.create_task(asyncio.to_thread(writer.close))
    await until(lambda: writer._closing)
    late = asyncio.create_task(writer.ask(Renew("late")))
    ledger.gate.set()
    assert all(isinstance(answer, Done) for answer in await asyncio.gather(*tasks))
    with pytest.raises(LedgerUnavailable, match="is closed"):
        await late
    await closing
    assert [len(group) for group in ledger.seen] == [1, 10, 10, 5]


@on_loop
async def test_who_asks_while_the_writer_is_being_closed_is_told(ledger: Gated) -> None:
    writer = LedgerWriter(ledger)
    await writer.ready()
    task = asyncio.create_task(writer.ask(Renew("late")))
    await asyncio.sleep(0)  # it has asked, and its turn of the loop is not over
    writer.close()
    with pytest.raises(LedgerUnavailable, match="is closed"):
        await task


@on_loop
async def test_a_group_is_bounded(ledger: Gated) -> None:
    writer = LedgerWriter(ledger, max_group=10)
    await shut(ledger, writer)
    tasks = [asyncio.create_task(writer.ask(Renew(str(number)))) for number in range(25)]
    await asyncio.sleep(0)
    ledger.gate.set()
    await asyncio.gather(*tasks)
    await asyncio.to_thread(writer.close)
    assert [len(group) for group in ledger.seen] == [1, 10, 10, 5]


@on_loop
async def test_each_loop_is_woken_once_for_a_group(
    writer: LedgerWriter, ledger: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, wakes = asyncio.get_running_loop(), []
    await shut(ledger, writer)
    tasks = [asyncio.create_task(writer.ask(Renew(str(number)))) for number in range(50)]
    await asyncio.sleep(0)
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *given: (wakes.append(given[0]), wake(*given))[1])
    ledger.gate.set()
    await asyncio.gather(*tasks)
    assert len(wakes) == 2


@on_loop
async def test_concurrent_runs_on_sqlite_share_transactions(tmp_path: Path) -> None:
    writer = LedgerWriter(SqliteLedger(tmp_path / "ledger.db"))

    async def live(key: str) -> Answer:
        run = run_key(key=key)
        await writer.ask(opening(run))
        for path in range(5):
            await writer.ask(Intend(run, 1, attempt(str(path))))
            await writer.ask(Record(run, str(path), 1, "ok", key))
        return await writer.ask(Close(run, 1, "end", key))

    ends = await asyncio.gather(*(live(f'"k{number}"') for number in range(50)))
    assert all(isinstance(end, Closed) and len(end.effects) == 5 for end in ends)
    await asyncio.to_thread(writer.close)
    assert writer.commands == 50 * 12
    assert writer.groups < writer.commands / 5


# ---- trouble ----


@on_loop
async def test_a_ledger_that_is_down_is_asked_again_with_the_same_group(
    writer: LedgerWriter, ledger: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    await shut(ledger, writer)
    ledger.errors = [LedgerUnavailable("disk full"), LedgerUnavailable("disk full")]
    caplog.set_level(logging.INFO)
    task = asyncio.create_task(writer.ask(Renew("second")))
    ledger.gate.set()
    await until(lambda: writer.down_since is not None)
    assert isinstance(await task, Done)
    assert writer.down_since is None
    assert ledger.seen == [[Renew("first")]] * 3 + [[Renew("second")]]
    messages = [record.getMessage() for record in caplog.records if record.name == "beam_agents.ledger.writer"]
    assert len(messages) == 2
    assert "memory:gated is unavailable" in messages[0]
    assert "disk full" in messages[0]
    assert "memory:gated is back" in messages[1]


@on_loop
async def test_a_ledger_that_cannot_be_opened_yet_is_waited_for(ledger: Gated) -> None:
    ledger.opening_errors = [LedgerUnavailable("not yet")] * 2
    writer = LedgerWriter(ledger)
    assert await writer.ready() == ledger.identity
    await asyncio.to_thread(writer.close)


@on_loop
async def test_a_ledger_that_cannot_be_used_says_so_and_may_be_repaired(ledger: Gated) -> None:
    ledger.opening_errors = [LedgerError("another schema"), LedgerError("another schema"), OSError("odd")]
    writer = LedgerWriter(ledger)
    with pytest.raises(LedgerError, match="another schema"):
        await writer.ready()
    with pytest.raises(LedgerError, match="another schema"):
        await writer.ask(Renew("worker"))
    with pytest.raises(OSError, match="odd"):
        await writer.ready()
    assert await writer.ready() == ledger.identity
    await asyncio.to_thread(writer.close)


@on_loop
async def test_only_the_culprit_of_a_group_fails(tmp_path: Path) -> None:
    class Slow(SqliteLedger):
        def open(self) -> None:
            assert ready.wait(30)
            super().open()

    ready = threading.Event()
    writer = LedgerWriter(Slow(tmp_path / "ledger.db"))
    good = [run_key(key=f'"k{number}"') for number in range(3)]
    asked = [opening(good[0]), Record(good[0], "0", 1, "ok", "1"), opening(good[1]), opening(good[2])]
    tasks = [asyncio.create_task(writer.ask(command)) for command in asked]
    await asyncio.sleep(0)
    ready.set()
    replies = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(reply) for reply in replies] == [Opened, LookupError, Opened, Opened]
    loaded = await writer.ask(Load(good[0]))
    assert isinstance(loaded, Loaded)
    assert loaded.run is not None
    assert loaded.run.epoch == 1
    await asyncio.to_thread(writer.close)


@on_loop
async def test_a_cancelled_asker_takes_nothing_back(writer: LedgerWriter, ledger: Gated) -> None:
    await shut(ledger, writer)
    tasks = [asyncio.create_task(writer.ask(opening(run_key(key=f'"k{number}"')))) for number in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    ledger.gate.set()
    replies = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(reply) for reply in replies] == [Opened, asyncio.CancelledError, Opened]
    loaded = await writer.ask(Load(run_key(key='"k1"')))
    assert isinstance(loaded, Loaded)
    assert loaded.run is not None


def test_the_askers_loop_may_be_gone(writer: LedgerWriter, ledger: Gated) -> None:
    async def leave() -> None:
        asked = asyncio.create_task(writer.ask(opening(run_key())))
        await until(ledger.entered.is_set)
        asked.cancel()

    ledger.gate.clear()
    asyncio.run(leave())
    ledger.gate.set()
    loaded = writer.ask_blocking(Load(run_key()), timeout=30)
    assert isinstance(loaded, Loaded)
    assert loaded.run is not None


def test_asking_from_threads_and_a_timeout(writer: LedgerWriter, ledger: Gated) -> None:
    assert isinstance(writer.ask_blocking(opening(run_key())), Opened)
    with pytest.raises(LookupError):
        writer.ask_blocking(Record(run_key(), "0", 1, "ok", "1"))
    ledger.gate.clear()
    with pytest.raises(TimeoutError):
        writer.ask_blocking(Intend(run_key(), 1, attempt()), timeout=0.01)
    ledger.gate.set()
    assert isinstance(writer.ask_blocking(Record(run_key(), "0", 1, "ok", "1"), timeout=30), Recorded)


# ---- close ----


@on_loop
async def test_closing_finishes_what_is_queued(writer: LedgerWriter, ledger: Gated) -> None:
    first = await shut(ledger, writer)
    tasks = [asyncio.create_task(writer.ask(Renew(str(number)))) for number in range(20)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(writer.close))
    await until(lambda: writer._closing)
    ledger.gate.set()
    await closing
    assert all(isinstance(answer, Done) for answer in await asyncio.gather(first, *tasks))
    assert ledger.closed == 1
    writer.close()
    assert ledger.closed == 1
    with pytest.raises(LedgerUnavailable, match="is closed"):
        await writer.ask(Renew("late"))
    with pytest.raises(LedgerUnavailable, match="is closed"):
        writer.ask_blocking(Renew("late"))


@on_loop
async def test_closing_gives_up_on_a_ledger_that_stays_down(writer: LedgerWriter, ledger: Gated) -> None:
    await shut(ledger, writer)
    ledger.errors = [LedgerUnavailable("down")] * 1_000
    tasks = [asyncio.create_task(writer.ask(Renew(str(number)))) for number in range(3)]
    ledger.gate.set()
    await until(lambda: writer.down_since is not None)
    await asyncio.to_thread(writer.close, 0.0)
    replies = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(reply) for reply in replies] == [LedgerUnavailable] * 3


def test_closing_a_writer_that_was_never_asked() -> None:
    ledger = Gated()
    LedgerWriter(ledger).close()
    assert ledger.closed == 0
