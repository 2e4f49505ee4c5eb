from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

pytest.importorskip("google.auth")

import gcs_kit
from gcs_kit import folder_of, needs_server, new_url, opened
from gcs_proxy import Fault, Proxy

from beam_agents.errors import LedgerError
from beam_agents.ledger import gcs_store
from beam_agents.ledger.base import LEASE_SECONDS, Ledger, LedgerUnavailable
from beam_agents.ledger.commands import (
    Answer,
    Close,
    Closed,
    Command,
    Done,
    FindClosed,
    FindOrphans,
    FoundClosed,
    HeadIs,
    Intend,
    Load,
    Loaded,
    Opened,
    Orphans,
    ReadHead,
    Record,
    Release,
)
from beam_agents.testing.ledger_store import FakeClock, Store, attempt, opening, run_key
from runners.fake_gcs import FakeGcs

server, proxy, url, store = gcs_kit.server, gcs_kit.proxy, gcs_kit.url, gcs_kit.store
pytestmark = pytest.mark.timeout(600)  # some tests make thousands of requests


# ---- faults ----


def scenario() -> list[list[Command]]:
    """A run from its first event to the next run of its key."""
    run, next_run = run_key("a"), run_key("b")
    return [
        [replace(opening(run), nonce="first")],
        [Intend(run, 1, attempt("0")), Intend(run, 1, attempt("1"))],
        [Record(run, "0", 1, "ok", '"zero"')],
        [Record(run, "1", 1, "ok", '"one"')],
        [Close(run, 1, "end", "session")],
        [replace(opening(next_run), nonce="second")],
        [replace(opening(run, "worker-2"), nonce="third")],
    ]


READING: list[Command] = [Load(run_key("a")), Load(run_key("b")), ReadHead(run_key().head)]


def requests_of(server: FakeGcs, groups: Sequence[Sequence[Command]]) -> int:
    """How many requests groups of commands take in a new ledger."""
    with closing(opened(new_url(server), server.address, FakeClock())) as ledger:
        before = ledger.requests
        for group in groups:
            ledger.apply(group)
    return ledger.requests - before


@needs_server
@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER, Fault.UNAVAILABLE, Fault.TOO_MANY])
def test_a_fault_at_any_request_changes_no_answer(
    server: FakeGcs, proxy: Proxy, store: Store, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_store, "_PAUSES", (0.0, 0.0))
    # An opening without a nonce counts each time that it is carried out.
    groups = [*scenario(), [Release(run_key("b"), 1)], [opening(run_key("b"))]]
    expected = [store.ledger.apply(group) for group in groups]
    read = store.ledger.apply(READING)
    for number in range(requests_of(server, groups)):
        with closing(opened(new_url(server), proxy.address, FakeClock())) as ledger:
            first = proxy.requests
            proxy.fault = lambda request, *_, at=first + number: fault if request == at else None
            assert [ledger.apply(group) for group in groups] == expected, number
            assert ledger.apply(READING) == read, number
            assert proxy.requests > first + number


@needs_server
@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER])
def test_a_crash_at_any_request_loses_nothing_that_was_answered(
    server: FakeGcs, proxy: Proxy, store: Store, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_store, "_PAUSES", ())
    for group in scenario():
        store.ledger.apply(group)
    expected = store.ledger.apply(READING)
    outcomes = set()
    for number in range(requests_of(server, scenario())):
        url, clock = new_url(server), FakeClock()
        answers: list[list[Answer]] = []
        with closing(opened(url, proxy.address, clock)) as ledger:
            end = proxy.requests + number
            # The last request of the process gets the fault, the ones after it are never sent.
            proxy.fault = lambda request, *_, at=end: (
                None if request < at else fault if request == at else Fault.LOST_BEFORE
            )
            try:
                for group in scenario():
                    answers.append(ledger.apply(group))
            except LedgerUnavailable:
                outcomes.add(len(answers))
        proxy.fault = lambda *_: None
        with closing(opened(url, server.address, clock)) as heir:
            check_what_is_left(heir, answers)
            again = [heir.apply(group) for group in scenario()]
            assert heir.apply(READING) == expected, number
            assert [type(answer) for answer in again[-1]] == [Closed]
            clock.now += LEASE_SECONDS + 1
            assert heir.apply([FindOrphans("scope", "fraud"), FindClosed("scope", "fraud", 60)]) == [
                Orphans((loaded_run(expected[1]),)),
                FoundClosed((run_key("a"),)),
            ], number
    assert outcomes == set(range(7))


def loaded_run(answer: Answer):
    assert isinstance(answer, Loaded)
    assert answer.run is not None
    return answer.run


def check_what_is_left(heir: Ledger, answers: list[list[Answer]]) -> None:
    """Another worker sees everything that was answered, and nothing half done."""
    first, head = heir.apply([Load(run_key("a")), ReadHead(run_key().head)])
    assert isinstance(first, Loaded)
    assert isinstance(head, HeadIs)
    effects = {effect.path: effect.value for effect in first.effects}
    assert set(effects) in (set(), {"0", "1"})
    if len(answers) > 0:
        assert first.run is not None
        assert first.run.epoch == 1
    if len(answers) > 1:
        assert set(effects) == {"0", "1"}
    if len(answers) > 2:
        assert effects["0"] == '"zero"'
    if len(answers) > 3:
        assert effects["1"] == '"one"'
    if len(answers) > 4:
        assert first.run is not None
        assert first.run.end == "end"
    is_closed = first.run is not None and first.run.end is not None
    assert (head.head is not None and head.head.session == "session") is is_closed
    (found,) = heir.apply([FindClosed("scope", "fraud", 60)])
    assert found == FoundClosed((run_key("a"),) if is_closed else ())


@needs_server
def test_a_run_whose_worker_died_at_its_close_is_kept_by_the_next_opener(
    server: FakeGcs, proxy: Proxy, store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_store, "_PAUSES", ())
    with closing(opened(url, proxy.address, store.clock)) as dying:
        dying.apply(
            [opening(run_key("a")), Intend(run_key("a"), 1, attempt()), Record(run_key("a"), "0", 1, "ok", "1")]
        )
        proxy.fault = lambda number, method, path: (
            Fault.LOST_BEFORE if method == "POST" and ("%2Fruns%2F" in path or "%2Fheads%2F" in path) else None
        )
        (closed,) = dying.apply([Close(run_key("a"), 1, "end", "session")])
    assert isinstance(closed, Closed)
    assert not (folder_of(server, url) / "runs").exists()
    assert store.expect(Opened, opening(run_key("b"))).session == "session"
    for address in (server.address, proxy.address):
        with closing(opened(url, address, store.clock)) as reader:
            assert reader.apply([Load(run_key("a"))]) == [Loaded(closed.run, closed.effects)]
            assert isinstance(reader.apply([opening(run_key("a"), "worker-2")])[0], Closed)


@needs_server
def test_a_store_that_is_down_takes_nothing_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_store, "_PAUSES", (0.01,))
    with FakeGcs(tmp_path) as server, closing(opened(url := new_url(server), server.address)) as ledger:
        ledger.apply([opening(run_key()), Intend(run_key(), 1, attempt("0"))])
        server.stop()
        with pytest.raises(LedgerUnavailable, match=r"bucket '[0-9a-f]{32}'"):
            ledger.apply([Intend(run_key(), 1, attempt("1"))])
        with pytest.raises(LedgerUnavailable):
            opened(url, server.address)
        server.start()
        loaded, done = ledger.apply([Load(run_key()), Intend(run_key(), 1, attempt("1"))])
        assert isinstance(loaded, Loaded)
        assert [effect.path for effect in loaded.effects] == ["0"]
        assert isinstance(done, Done)


@needs_server
def test_a_slow_store_is_unavailable(proxy: Proxy, url: str) -> None:
    with closing(opened(url, proxy.address, timeout=0.3)) as ledger:
        ledger.apply([opening(run_key())])
        proxy.fault = lambda number, method, path: Fault.SLOW if method == "POST" else None
        with pytest.raises(LedgerUnavailable, match="timed out"):
            ledger.apply([Intend(run_key(), 1, attempt())])
        proxy.fault = lambda *_: None
        assert isinstance(ledger.apply([Intend(run_key(), 1, attempt())])[0], Done)
        (loaded,) = ledger.apply([Load(run_key())])
        assert isinstance(loaded, Loaded)
        assert len(loaded.effects) == 1


@needs_server
def test_a_refusal_names_the_role_to_give(proxy: Proxy, url: str) -> None:
    with closing(opened(url, proxy.address)) as ledger:
        proxy.fault = lambda number, method, path: Fault.FORBIDDEN if method == "POST" else None
        with pytest.raises(LedgerError, match=r"403 on purpose; .*roles/storage.objectUser"):
            ledger.apply([opening(run_key())])
        with pytest.raises(LedgerError, match="objectUser"):
            opened(f"{url}-2", proxy.address)


@needs_server
def test_one_refused_key_does_not_undo_the_others(proxy: Proxy, store: Store, url: str) -> None:
    runs = [run_key("run", f'"k{number}"') for number in range(4)]
    with closing(opened(url, proxy.address, store.clock)) as ledger:
        ledger.apply([opening(run) for run in runs])
        failing = count()
        proxy.fault = lambda number, method, path: Fault.FORBIDDEN if method == "POST" and next(failing) == 0 else None
        with pytest.raises(LedgerError):
            ledger.apply([Intend(run, 1, attempt()) for run in runs])
    loaded = [store.expect(Loaded, Load(run)) for run in runs]
    assert sorted(len(each.effects) for each in loaded) == [0, 1, 1, 1]
