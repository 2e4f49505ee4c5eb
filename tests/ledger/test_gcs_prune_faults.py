import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

pytest.importorskip("google.auth")

import gcs_kit
import gcs_prune_kit
from gcs_kit import folder_of, names_in, needs_server, opened
from gcs_proxy import Fault, Proxy
from gcs_prune_kit import DAY, FRESH, PRUNE, SWEEP, kinds_in, work

from beam_agents.errors import LedgerError
from beam_agents.ledger import gcs_store
from beam_agents.ledger.base import Ledger, LedgerUnavailable
from beam_agents.ledger.commands import (
    Answer,
    Close,
    Closed,
    Command,
    FindClosed,
    FindOrphans,
    FindRuns,
    FoundRuns,
    HeadIs,
    Intend,
    Load,
    Loaded,
    Opened,
    Orphans,
    OtherOpen,
    Prune,
    PruneDone,
    ReadHead,
    ReadHorizon,
    Record,
    Resolve,
    Resolved,
    Summarize,
    TooOld,
)
from beam_agents.ledger.gcs import GcsLedger
from beam_agents.ledger.records import Resolution, RunKey
from beam_agents.testing.ledger_store import FakeClock, Store, attempt, opening, run_key
from runners.fake_gcs import FakeGcs

server, proxy, url, store = gcs_kit.server, gcs_kit.proxy, gcs_kit.url, gcs_kit.store
swept_at_once = gcs_prune_kit.swept_at_once
pytestmark = [needs_server, pytest.mark.timeout(600)]  # some tests make thousands of requests

# ---- faults ----


def prepare(ledger: GcsLedger, clock: FakeClock) -> None:
    """Runs to prune on keys of their own and on one key, some that stay, and tombstones to forget."""
    work(ledger, run_key("forgotten", '"a"'))
    work(ledger, run_key("forgotten", '"b"'))
    clock.now += 2 * DAY
    assert ledger.apply([PRUNE]) == [PruneDone(2, 0)]
    for run in (run_key("old", '"a"'), run_key("older", '"c"'), run_key("old", '"c"')):
        work(ledger, run, calls=1)
    ledger.apply([opening(run_key("doubtful", '"d"')), Intend(run_key("doubtful", '"d"'), 1, ONCE)])
    ledger.apply([Close(run_key("doubtful", '"d"'), 1, "end", None, "in_doubt")])
    clock.now += 2 * DAY
    work(ledger, run_key("young", '"a"'))
    ledger.apply([opening(run_key("open", '"c"'))])
    clock.now += 10


PRUNE_ALL = replace(PRUNE, tombstones_for=3 * DAY)
ONCE = attempt()._replace(effect="once")
RUNS = [
    *(run_key(run_id, '"a"') for run_id in ("forgotten", "old", "young")),
    run_key("forgotten", '"b"'),
    *(run_key(run_id, '"c"') for run_id in ("older", "old", "open")),
    run_key("doubtful", '"d"'),
]
READING: list[Command] = [
    *(Load(run) for run in RUNS),
    *(ReadHead(head) for head in sorted({run.head for run in RUNS})),
    FindRuns(),
    FindRuns(which="doubtful"),
    FindRuns(which="open"),
    FindClosed("scope", "fraud", 100 * DAY),
    FindOrphans("scope", "fraud"),
    ReadHorizon("scope", "fraud"),
    Summarize(),
]


class Prepared:
    """Copies of a ledger to be pruned."""

    def __init__(self, server: FakeGcs, store: Store, url: str) -> None:
        assert isinstance(store.ledger, GcsLedger)
        prepare(store.ledger, store.clock)
        store.ledger.close()
        self.server, self.url, self.now, self.copies = server, url, store.clock.now, 0
        with closing(self.copy(server.address)) as ledger:
            self.before = ledger.apply(READING)
            first = ledger.requests
            assert ledger.apply([PRUNE_ALL]) == [PruneDone(3, 2)]
            self.requests = ledger.requests - first
            self.after = ledger.apply(READING)
        self.left = self.names()

    def copy(self, address: str) -> GcsLedger:
        """The ledger as it was before, open."""
        self.copies += 1
        source = folder_of(self.server, self.url)
        self.copied_url = f"gs://{source.parent.name}-{self.copies}/ledger"
        shutil.copytree(source.parent, self.server.bucket(f"{source.parent.name}-{self.copies}"))
        return opened(self.copied_url, address, FakeClock(self.now))

    def again(self) -> GcsLedger:
        """The last copy, as another worker sees it."""
        return opened(self.copied_url, self.server.address, FakeClock(self.now))

    def names(self) -> list[str]:
        """What the last copy has, but for notes of what is to be swept, whose names have times."""
        names = names_in(folder_of(self.server, self.copied_url))
        return [name for name in names if not name.startswith("sweeps/")]


@pytest.fixture
def prepared(server: FakeGcs, store: Store, url: str, swept_at_once: None) -> Prepared:
    return Prepared(server, store, url)


def prune_until_done(ledger: Ledger) -> None:
    """Prunes twice: the logs that a first prune could not sweep are swept by the next."""
    ledger.apply([PRUNE_ALL])
    assert ledger.apply([PRUNE_ALL]) == [PruneDone(0, 0)]


def test_a_prune_that_died_at_any_request_is_finished_by_the_next(
    proxy: Proxy, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_store, "_PAUSES", ())
    died = 0
    for number in range(prepared.requests):
        with closing(prepared.copy(proxy.address)) as ledger:
            end = proxy.requests + number
            proxy.fault = lambda request, *_, at=end: Fault.LOST_BEFORE if request >= at else None
            try:
                ledger.apply([PRUNE_ALL])
            except LedgerUnavailable:
                died += 1
        proxy.fault = lambda *_: None
        with closing(prepared.again()) as heir:
            # Each run and each head is as before or as after; searches find some runs as before and some as after.
            single = [command for command in READING if isinstance(command, Load | ReadHead)]
            for answer, *both in zip(heir.apply(single), prepared.before, prepared.after, strict=False):
                assert answer in both, number
            prune_until_done(heir)
            assert heir.apply(READING) == prepared.after, number
        assert prepared.names() == prepared.left, number
    assert died > prepared.requests / 2


def test_an_answer_lost_at_any_request_changes_nothing_of_a_prune(
    proxy: Proxy, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_store, "_PAUSES", (0.0, 0.0))
    for number in range(prepared.requests):
        with closing(prepared.copy(proxy.address)) as ledger:
            at = proxy.requests + number
            proxy.fault = lambda request, *_, at=at: Fault.LOST_AFTER if request == at else None
            assert ledger.apply([PRUNE_ALL]) == [PruneDone(3, 2)], number
            assert ledger.apply(READING) == prepared.after, number
        assert prepared.names() == prepared.left, number


@pytest.mark.parametrize(("fault", "error"), [(Fault.UNAVAILABLE, LedgerUnavailable), (Fault.FORBIDDEN, LedgerError)])
def test_deletes_that_fail_are_made_up_for(
    proxy: Proxy, prepared: Prepared, fault: Fault, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_store, "_PAUSES", ())
    with closing(prepared.copy(proxy.address)) as ledger:
        proxy.fault = lambda number, method, path: fault if method == "DELETE" else None
        for command in (PRUNE_ALL, PRUNE, PRUNE_ALL):
            with pytest.raises(error):
                ledger.apply([command])
        loaded = ledger.apply([Load(run) for run in RUNS])
        assert all(answer in pair for answer, *pair in zip(loaded, prepared.before, prepared.after, strict=False))
        proxy.fault = lambda *_: None
        prune_until_done(ledger)
        assert ledger.apply(READING) == prepared.after
    assert prepared.names() == prepared.left


def test_a_resolution_whose_answer_was_lost_is_answered(
    proxy: Proxy, store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_store, "_PAUSES", (0.0,))
    run = run_key()
    store.ledger.apply([opening(run), Intend(run, 1, ONCE), Close(run, 1, "end", None, "in_doubt")])
    with closing(opened(url, proxy.address, store.clock)) as ledger:
        lost: list[int] = []

        def lose_once(number: int, method: str, path: str) -> Fault | None:
            if method == "POST" and "%2Fruns%2F" in path and not lost:
                lost.append(number)
                return Fault.LOST_AFTER
            return None

        proxy.fault = lose_once
        (answer,) = ledger.apply([Resolve(run, Resolution("0", 1, "ok", '"held"', "operator"))])
    assert lost
    assert isinstance(answer, Resolved)
    assert answer.run == store.load(run)


# ---- races ----


def test_workers_and_prunes_of_one_key_go_side_by_side(
    server: FakeGcs, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SWEEP, 3.0)
    monkeypatch.setattr(FRESH, 0.5)
    deadline = time.monotonic() + 300
    rounds = 25

    def insist(ledger: Ledger, command: Command) -> Answer:
        """Gives a command until it is carried out, as a ledger's writer does."""
        while True:
            try:
                (answer,) = ledger.apply([command])
            except LedgerUnavailable:  # on a busy machine half a second is soon over
                assert time.monotonic() < deadline
            else:
                return answer

    def drive(worker: int) -> list[RunKey]:
        runs = [run_key(f"{worker}-{number}") for number in range(rounds)]
        with closing(opened(url, server.address)) as ledger:
            for run in runs:
                event = replace(opening(run, f"worker-{worker}"), nonce="n", event_time=time.time_ns() // 1000)
                while not isinstance(answer := insist(ledger, event), Opened):
                    assert isinstance(answer, OtherOpen | TooOld), answer
                    assert time.monotonic() < deadline
                    event = replace(event, event_time=(event.event_time or 0) + 10**9)
                insist(ledger, Intend(run, 1, attempt()))
                insist(ledger, Record(run, "0", 1, "ok", run.run_id))
                session = str(int(answer.session or 0) + 1)
                closed = insist(ledger, Close(run, 1, run.run_id, session))
                assert isinstance(closed, Closed)
                assert (closed.run.end, [effect.value for effect in closed.effects]) == (run.run_id, [run.run_id])
                assert closed.session_version >= int(session)
        return runs

    def prune(is_over: Callable[[], bool]) -> list[Answer]:
        answers: list[Answer] = []
        with closing(opened(url, server.address)) as ledger:
            while not is_over():
                answers.append(insist(ledger, Prune("scope", "fraud", closed_for=0.2, tombstones_for=0.5)))
        return answers

    with ThreadPoolExecutor(4) as threads:
        workers = [threads.submit(drive, worker) for worker in range(2)]
        pruners = [threads.submit(prune, lambda: all(worker.done() for worker in workers)) for _ in range(2)]
        runs = [run for worker in workers for run in worker.result()]
        answers = [answer for pruner in pruners for answer in pruner.result()]
    assert sum(isinstance(answer, PruneDone) and answer.runs > 0 for answer in answers) > 3
    assert any(isinstance(answer, PruneDone) and answer.tombstones > 0 for answer in answers)
    with closing(opened(url, server.address)) as ledger:
        head, *loaded = [insist(ledger, command) for command in (ReadHead(run_key().head), *map(Load, runs))]
        assert isinstance(head, HeadIs)
        assert head.head is not None
        assert (head.head.session_version, head.head.session) == (2 * rounds, str(2 * rounds))
        for answer in loaded:
            assert isinstance(answer, Loaded)
            assert answer.run is None or answer.run.tombstone or len(answer.effects) == 1
        monkeypatch.setattr(SWEEP, -10.0)
        for _ in range(3):
            insist(ledger, Prune("scope", "fraud", closed_for=-10, tombstones_for=-10))
        assert insist(ledger, FindRuns()) == FoundRuns(())
        assert insist(ledger, FindOrphans("scope", "fraud")) == Orphans(())
    # What may be left are markers of openings that came too late: searches delete them after an hour.
    left = kinds_in(folder_of(server, url)).keys() - {"open"}
    assert left == {"heads", "horizons", "leases", "ledger.json"}
