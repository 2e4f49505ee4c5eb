import json
import pickle
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

pytest.importorskip("google.auth")

import gcs_kit
from gcs_kit import folder_of, names_in, needs_server, opened
from gcs_proxy import Fault, Proxy

from beam_agents.errors import ConfigurationError, LedgerError
from beam_agents.ledger import gcs_store
from beam_agents.ledger.base import LEASE_SECONDS, Ledger, LedgerUnavailable
from beam_agents.ledger.commands import (
    Close,
    FindClosed,
    FindOrphans,
    FoundClosed,
    Intend,
    Load,
    Opened,
    Orphans,
    Record,
    Release,
    Renew,
)
from beam_agents.ledger.gcs import GcsLedger
from beam_agents.ledger.gcs_clock import ServerClock
from beam_agents.testing.ledger_conformance import LedgerConformance
from beam_agents.testing.ledger_store import NOW, Store, attempt, opening, run_key
from runners.fake_gcs import FakeGcs

server, proxy, url, store = gcs_kit.server, gcs_kit.proxy, gcs_kit.url, gcs_kit.store
pytestmark = pytest.mark.timeout(600)  # some tests make thousands of requests


@needs_server
class TestGcsLedger(LedgerConformance):
    transactional = False

    @pytest.fixture
    def make_ledger(self, server: FakeGcs, url: str) -> Callable[..., Ledger]:
        return lambda clock=None: GcsLedger(url, clock=clock, emulator=server.address)


# ---- where it is ----


@pytest.mark.parametrize(
    "url", ["", "gs://", "gs://B/x", "gs:///x", "bucket/x", "gs://bucket/x?y=1", "gs://bucket/a//b", "gs://bucket/.."]
)
def test_a_url_that_names_no_prefix_of_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        GcsLedger(url)
    assert repr(url) in str(refused.value)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="connections=0"):
        GcsLedger("gs://bucket/x", connections=0)
    with pytest.raises(ConfigurationError, match="at most 120 bytes"):
        GcsLedger("gs://bucket/" + "x" * 121)


def test_the_url_and_the_emulator_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:4443")
    ledger = GcsLedger("gs://bucket/team/ledger/")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    copy = pickle.loads(pickle.dumps(ledger))
    assert copy.url == ledger.url == GcsLedger("gs://bucket/team/ledger").url == "gs://bucket/team/ledger"
    assert copy._emulator == ledger._emulator == "http://localhost:4443"
    assert GcsLedger("gs://bucket").url == "gs://bucket"
    with pytest.raises(RuntimeError, match="before open"):
        _ = copy.identity
    with pytest.raises(RuntimeError, match="call open"):
        copy.apply([])


@needs_server
def test_what_is_not_a_ledger_of_this_release_is_refused(server: FakeGcs, url: str) -> None:
    bucket = url.split("/")[2]
    put = gcs_store.GcsStore(bucket, "ledger/", emulator=server.address, connections=1, timeout=10).put
    name = "ledger.json"
    put(name, b'{"format":"beam-agents ledger","schema_version":99,"identity":"x"}')
    with pytest.raises(LedgerError, match=r"schema version 99.*use the release that wrote it"):
        opened(url, server.address)
    for other in (b'{"name":"notes"}', b"notes", b"[]"):
        put(name, other)
        with pytest.raises(LedgerError, match="not a ledger's"):
            opened(url, server.address)


@needs_server
def test_a_missing_bucket_is_named(server: FakeGcs) -> None:
    with pytest.raises(LedgerError, match=r"bucket 'nowhere'.*make the bucket first"):
        opened("gs://nowhere/ledger", server.address)


@needs_server
def test_a_ledger_that_is_emptied_while_it_is_used_stops(
    server: FakeGcs, store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beam_agents.ledger.gcs._IDENTITY_SECONDS", -1.0)
    store.do(opening(run_key()))
    shutil.rmtree(folder_of(server, url))
    with pytest.raises(LedgerError, match="moved, deleted or replaced while it was in use"):
        store.do(Intend(run_key(), 1, attempt()))
    with closing(opened(url, server.address)) as again:
        assert again.identity != store.ledger.identity


# ---- markers ----


@needs_server
def test_markers_are_deleted_when_they_are_over(server: FakeGcs, store: Store, url: str) -> None:
    folder = folder_of(server, url)
    store.do(opening(run_key()))
    store.do(Release(run_key(), 1))
    store.do(opening(run_key(), "worker-2"))
    store.do(Close(run_key(), 2, "end", None))
    store.ledger.close()
    assert names_in(folder / "open") == []
    assert len(names_in(folder / "closed")) == 1


@needs_server
def test_searches_are_not_deceived_by_markers_of_what_never_was(
    server: FakeGcs, proxy: Proxy, store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_store, "_PAUSES", ())
    folder = folder_of(server, url)

    def fail_at_logs(number: int, method: str, path: str) -> Fault | None:
        return Fault.UNAVAILABLE if method == "POST" and "%2Flog%2F" in path else None

    with closing(opened(url, proxy.address, store.clock)) as other:
        store.do(opening(run_key("a", '"a"')))
        other.apply([Load(run_key("a", '"a"'))])
        proxy.fault = fail_at_logs
        for command in (Close(run_key("a", '"a"'), 1, "end", None), opening(run_key("b", '"b"'), "gone")):
            with pytest.raises(LedgerUnavailable):
                other.apply([command])
    assert (len(names_in(folder / "open")), len(names_in(folder / "closed"))) == (2, 1)
    store.clock.now += 1
    assert store.do(FindClosed("scope", "fraud", 60)) == FoundClosed(())
    store.do(Renew("worker-1"))
    store.clock.now += LEASE_SECONDS - 1
    assert store.do(FindOrphans("scope", "fraud")) == Orphans(())
    assert len(names_in(folder / "open")) == 2
    store.clock.now += 4000
    assert [run.key.run_id for run in store.expect(Orphans, FindOrphans("scope", "fraud")).runs] == ["a"]
    assert len(names_in(folder / "open")) == 1


@needs_server
def test_searches_find_runs_whose_texts_are_too_long_for_names(store: Store) -> None:
    run = run_key("r" * 900, json.dumps("k" * 3_000), scope="s" * 700)
    store.expect(Opened, opening(run, "w" * 400))
    assert store.do(FindOrphans(run.scope, "fraud")) == Orphans(())
    store.clock.now += LEASE_SECONDS + 1
    assert [each.key for each in store.expect(Orphans, FindOrphans(run.scope, "fraud")).runs] == [run]
    store.do(Close(run, 1, "end", None))
    assert store.do(FindClosed(run.scope, "fraud", 60)) == FoundClosed((run,))


# ---- costs ----


@needs_server
def test_an_effect_costs_two_writes_however_long_its_run_is(proxy: Proxy, url: str) -> None:
    sent = []
    with closing(opened(url, proxy.address)) as ledger:
        ledger.apply([opening(run_key()), Intend(run_key(), 1, attempt("first"))])
        for number in range(100, 160):
            before, requests = replace(ledger.traffic), ledger.requests
            ledger._identity_seen = time.monotonic()
            ledger.apply([Intend(run_key(), 1, attempt(str(number)))])
            ledger.apply([Record(run_key(), str(number), 1, "ok", '"answer"')])
            assert (ledger.traffic.writes - before.writes, ledger.requests - requests) == (2, 2)
            sent.append(ledger.traffic.sent - before.sent)
        assert ledger.requests == proxy.requests
    assert max(sent) - min(sent) < 20  # digits of the times


@needs_server
def test_the_commands_of_a_key_in_a_group_are_one_write(store: Store) -> None:
    ledger = store.ledger
    assert isinstance(ledger, GcsLedger)
    store.do(opening(run_key()))
    before = ledger.traffic.writes
    ledger.apply([Intend(run_key(), 1, attempt(str(number))) for number in range(20)])
    assert ledger.traffic.writes == before + 1
    ledger.apply([Record(run_key(), str(number), 1, "ok", "1") for number in range(20)])
    assert ledger.traffic.writes == before + 2


@needs_server
def test_a_lease_is_written_once_a_second(server: FakeGcs, store: Store, url: str) -> None:
    lease = folder_of(server, url) / "leases" / "worker-1"
    for number in range(20):
        store.do(opening(run_key("run", f'"k{number}"')))
        store.clock.now += 0.1
    assert json.loads(lease.read_bytes())["renewed_at"] == pytest.approx(NOW + 1.0)
    store.clock.now += 1
    store.do(Renew("worker-1"))
    assert json.loads(lease.read_bytes())["renewed_at"] == store.clock.now


# ---- time ----


@needs_server
def test_times_are_the_servers(proxy: Proxy, url: str) -> None:
    proxy.seconds_ahead = 3600.0
    with closing(opened(url, proxy.address)) as ledger:
        (answer,) = ledger.apply([opening(run_key())])
        assert isinstance(answer, Opened)
        assert 3590 < answer.run.opened_at - time.time() < 3610


def test_the_servers_time_gets_sharper_with_each_answer() -> None:
    clock = ServerClock()
    with pytest.raises(RuntimeError, match="before its first answer"):
        clock.at(0.0)
    clock.observe("not a date", 0.0, 0.0)
    local = [100.0 + number * 0.37 for number in range(30)]
    for moment in local:
        true = 1_700_000_000.75 + moment  # what the server's clock says when ours says `moment`
        clock.observe(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(true)), moment - 0.01, moment + 0.01)
    assert clock.at(200.0) == pytest.approx(1_700_000_200.75, abs=0.06)


def test_a_clock_that_was_set_is_followed_at_once() -> None:
    clock = ServerClock()
    clock.observe("Tue, 14 Nov 2023 22:13:20 GMT", 10.0, 10.0)
    assert clock.at(10.0) == pytest.approx(1_700_000_000.5)
    clock.observe("Tue, 14 Nov 2023 23:13:20 GMT", 11.0, 11.0)
    assert clock.at(11.0) == pytest.approx(1_700_003_600.5)
