"""What every ledger backend has to do: a suite of pytest tests to inherit from."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from beam_agents.errors import LedgerError
from beam_agents.ledger.base import Ledger
from beam_agents.ledger.commands import (
    Answer,
    Busy,
    Close,
    Closed,
    Command,
    Done,
    Fenced,
    FindOrphans,
    HeadIs,
    Intend,
    Load,
    Loaded,
    Open,
    Opened,
    Orphans,
    OtherOpen,
    ReadHead,
    Record,
    Recorded,
    Release,
)
from beam_agents.ledger.records import Head
from beam_agents.testing.ledger_race import race
from beam_agents.testing.ledger_resolving import LedgerResolving
from beam_agents.testing.ledger_retention import LedgerRetention
from beam_agents.testing.ledger_rules import LedgerRules
from beam_agents.testing.ledger_searches import LedgerSearches
from beam_agents.testing.ledger_store import Store, attempt, opening, run_key

ODD_TEXTS = (
    "",
    " ",
    "run ",
    "RUN",
    "run",
    "%",
    "_",
    "'; DROP TABLE runs; --",
    '"quoted"',
    "back\\slash",
    "tab\tline\nreturn\r\x01\x1b\x7f",
    "é",
    "e\u0301",
    "日本語 🂡",
    "\ufeff",
    "\uffff",
    "None",
    "0",
    "x" * 5_000,
    "x" * 5_001,
)
"""Texts that must stay themselves, and apart from each other."""


class LedgerConformance(LedgerRules, LedgerSearches, LedgerRetention, LedgerResolving):
    """Inherit from this in a test module, and say how to make the ledger:

        class TestMyLedger(LedgerConformance):
            @pytest.fixture
            def make_ledger(self, tmp_path):
                return lambda clock=time.time: MyLedger(tmp_path / "store", clock=clock)

    Attributes:
        transactional: Whether a group that fails leaves nothing behind.
        processes: How many processes race for runs in a durable store.
    """

    transactional: bool = True
    processes: int = 8

    # ---- groups ----

    def test_the_commands_of_a_group_see_each_other(self, store: Store) -> None:
        run, next_run = run_key("a"), run_key("b")
        answers = store.ledger.apply(
            [
                opening(run),
                opening(next_run),
                Intend(run, 1, attempt("0")),
                Load(run),
                Record(run, "0", 1, "ok", "1"),
                Intend(run, 1, attempt("1")),
                FindOrphans("scope", "fraud"),
                Record(run, "1", 1, "ok", "2"),
                Record(run, "1", 1, "ok", "3"),
                Close(run, 1, "end", "session"),
                opening(next_run),
                ReadHead(run.head),
                Release(next_run, 1),
                FindOrphans("scope", "fraud"),
            ]
        )
        assert [type(answer) for answer in answers] == [
            Opened, OtherOpen, Done, Loaded, Recorded, Done, Orphans, Recorded, Recorded, Closed, Opened, HeadIs, Done,
            Orphans,
        ]  # fmt: skip
        loaded, closed, read, orphans = answers[3], answers[9], answers[11], answers[13]
        assert isinstance(loaded, Loaded)
        assert [effect.path for effect in loaded.effects] == ["0"]
        assert isinstance(closed, Closed)
        assert [effect.value for effect in closed.effects] == ["1", "2"]
        assert read == HeadIs(Head(run.head, 1, "session", "b"))
        assert isinstance(orphans, Orphans)
        assert [orphan.key for orphan in orphans.runs] == [next_run]

    def test_a_large_group_of_many_runs(self, store: Store) -> None:
        runs = [run_key(f"r{number}", f'"k{number}"') for number in range(700)]
        store.ledger.apply([opening(run) for run in runs])
        store.ledger.apply([Intend(run, 1, attempt()) for run in runs])
        store.ledger.apply([Record(run, "0", 1, "ok", str(number)) for number, run in enumerate(runs)])
        answers = store.ledger.apply([Close(run, 1, "end", run.run_id) for run in runs])
        for number, (run, answer) in enumerate(zip(runs, answers, strict=True)):
            assert isinstance(answer, Closed)
            assert (answer.run.key, answer.session, answer.effects[0].value) == (run, run.run_id, str(number))

    def test_an_empty_group(self, store: Store) -> None:
        assert store.ledger.apply([]) == []

    def test_a_group_may_be_given_twice(self, store: Store) -> None:
        store.do(opening(run_key()))
        group: list[Command] = [
            Intend(run_key(), 1, attempt()),
            Record(run_key(), "0", 1, "ok", "1"),
            Close(run_key(), 1, "end", "session"),
        ]
        first = store.ledger.apply(group)
        again = store.ledger.apply(group)
        assert again[2] == first[2]
        assert isinstance(again[0], Fenced)
        assert isinstance(again[1], Recorded)
        assert not again[1].new

    def test_a_group_that_fails_leaves_nothing(self, store: Store) -> None:
        if not self.transactional:
            pytest.skip("this ledger has no transactions")
        store.do(opening(run_key("a", '"a"')))
        group: list[Command] = [
            Intend(run_key("a", '"a"'), 1, attempt()),
            opening(run_key("b", '"b"')),
            Record(run_key("a", '"a"'), "without intent", 1, "ok", "1"),
        ]
        with pytest.raises(LookupError):
            store.ledger.apply(group)
        assert store.expect(Loaded, Load(run_key("a", '"a"'))).effects == ()
        assert store.expect(Loaded, Load(run_key("b", '"b"'))).run is None
        assert [type(answer) for answer in store.ledger.apply(group[:2])] == [Done, Opened]

    # ---- texts ----

    @pytest.mark.parametrize("field", ["scope", "agent", "key", "run_id"])
    def test_odd_texts_stay_themselves(self, store: Store, field: str) -> None:
        for text in ODD_TEXTS:
            changed: dict[str, Any] = {field: text}
            run = run_key("run")._replace(**changed)
            opened = store.expect(Opened, Open(run, text, text, "worker", nonce=text))
            assert (opened.run.key, opened.run.event, opened.run.digest, opened.run.nonce) == (run, text, text, text)
            store.do(Intend(run, 1, attempt(text)._replace(name=text, arguments=text)))
            store.do(Record(run, text, 1, "ok", text))
            closed = store.expect(Closed, Close(run, 1, text, text))
            assert (closed.run.end, closed.session) == (text, text)
            assert store.expect(Loaded, Load(run)) == Loaded(closed.run, closed.effects)
            effect = closed.effects[0]
            assert (effect.path, effect.name, effect.arguments, effect.value) == (text, text, text, text)

    def test_an_empty_run_id_counts_as_open(self, store: Store) -> None:
        store.do(opening(run_key("")))
        assert store.expect(OtherOpen, opening(run_key("b"))).run.key == run_key("")

    # ---- the store ----

    def test_handles_of_one_store_agree(self, store: Store, make_ledger: Callable[..., Ledger]) -> None:
        other = make_ledger()
        other.open()
        assert other.url == store.ledger.url
        assert other.identity == store.ledger.identity != ""
        if other is not store.ledger:
            other.close()

    def test_a_ledger_travels_unopened(self, make_ledger: Callable[..., Ledger]) -> None:
        ledger = make_ledger()
        copy = pickle.loads(pickle.dumps(ledger))
        assert (type(copy), copy.url) == (type(ledger), ledger.url)
        assert (copy.durable, copy.keep_open) == (ledger.durable, ledger.keep_open)

    def test_a_restart_keeps_everything(self, store: Store, make_ledger: Callable[..., Ledger]) -> None:
        if not store.ledger.durable:
            pytest.skip("this ledger does not outlive the process")
        store.complete(run_key("a"), "session")
        store.do(opening(run_key("b")))
        store.do(Intend(run_key("b"), 1, attempt()))
        store.do(Record(run_key("b"), "0", 1, "ok", "1"))
        reading: list[Command] = [Load(run_key("a")), Load(run_key("b")), ReadHead(run_key().head)]
        before, identity = store.ledger.apply(reading), store.ledger.identity
        store.ledger.close()
        again = make_ledger(clock=store.clock)
        again.open()
        assert (again.apply(reading), again.identity) == (before, identity)
        assert isinstance(again.apply([opening(run_key("b"), "worker-2")])[0], Busy)
        again.close()

    def test_looking_makes_no_ledger(self, make_ledger: Callable[..., Ledger]) -> None:
        ledger = make_ledger()
        if not ledger.durable:
            pytest.skip("this ledger is there from the start")
        for _ in range(2):
            with pytest.raises(LedgerError, match="there is no ledger"):
                ledger.open(make=False)
        ledger.open()
        ledger.close()
        again = make_ledger()
        again.open(make=False)
        assert again.identity == ledger.identity
        assert again.schema_version == ledger.schema_version >= 1
        again.close()

    # ---- processes ----

    def test_racing_processes_have_one_opener_for_each_run(self, make_ledger: Callable[..., Ledger]) -> None:
        runs = [run_key("run", f'"k{number}"') for number in range(6)]
        turns = [[[opening(run, f"worker-{racer}")] for run in runs] for racer in range(self.processes)]
        for number, answers in enumerate(self._race(make_ledger, turns)):
            kinds = sorted(type(answer).__name__ for (answer,) in answers)
            assert kinds == ["Busy"] * (self.processes - 1) + ["Opened"], runs[number]

    def test_racing_processes_open_one_run_of_each_key(self, make_ledger: Callable[..., Ledger]) -> None:
        keys = [f'"k{number}"' for number in range(6)]
        turns = [
            [[opening(run_key(f"run-{racer}", key), f"worker-{racer}")] for key in keys]
            for racer in range(self.processes)
        ]
        for answers in self._race(make_ledger, turns):
            (winner,) = [answer.run.key for (answer,) in answers if isinstance(answer, Opened)]
            losers = [answer.run.key for (answer,) in answers if isinstance(answer, OtherOpen)]
            assert losers == [winner] * (self.processes - 1)

    def test_racing_processes_agree_on_the_end(self, make_ledger: Callable[..., Ledger]) -> None:
        runs = [run_key("run", f'"k{number}"') for number in range(6)]
        ledger = make_ledger()
        ledger.open()
        ledger.apply([opening(run) for run in runs])
        turns = [
            [[Close(run, 1, f"end-{racer}", f"session-{racer}")] for run in runs] for racer in range(self.processes)
        ]
        for run, answers in zip(runs, self._race(make_ledger, turns), strict=True):
            (opened,) = ledger.apply([opening(run)])
            assert isinstance(opened, Closed)
            assert answers == [[opened]] * self.processes
            assert opened.session_version == 1
            assert opened.session == str(opened.run.end).replace("end", "session")
        ledger.close()

    def _race(
        self, make_ledger: Callable[..., Ledger], turns: Sequence[Sequence[Sequence[Command]]]
    ) -> list[list[list[Answer]]]:
        ledger = make_ledger()
        if not ledger.durable:
            pytest.skip("this ledger does not outlive the process")
        return race(ledger, turns)
