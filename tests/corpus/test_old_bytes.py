"""What earlier releases wrote is read for what it says, or refused by name; it is never misread.

The files of `form_1` were written once, by the first release that had each. They are never made again: a test
that fails here says that this release would misread, or stop, the jobs of users. A new form gets a folder of its own
beside them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from beam_agents import RunAgent
from beam_agents.codec import digest
from beam_agents.engine.end import End
from beam_agents.engine.task import Task
from beam_agents.engine.worker import Worker
from beam_agents.errors import LedgerError, StoredFormUnknown
from beam_agents.events import FailureReason, RunFailure, RunResult
from beam_agents.history import Session
from beam_agents.io.files import Positions
from beam_agents.io.kafka_read import Offsets
from beam_agents.io.postgres.place import ChangesPosition
from beam_agents.io.tail import Position
from beam_agents.ledger import SqliteLedger
from beam_agents.ledger.records import RunKey
from beam_agents.messages import AssistantMessage, UserMessage
from beam_agents.stored import Stored
from beam_agents.transforms.cells import ClosedId, ClosedIds, KeyRecord
from beam_agents.transforms.coders import KeyCoder, PydanticCoder
from beam_agents.transforms.doorbell import Alive
from beam_agents.transforms.envelope import Envelope
from beam_agents.transforms.use import AgentUse
from tests.corpus.agents import Payment, Verdict, watch

FORM_1 = Path(__file__).parent / "form_1"

IN_A_WINDOW = Envelope(
    run_id="p-2@1700000010000000",
    event='{"amount":70.0,"id":"p-2"}',
    digest="7aed983a1f2eced28fbc422e58f8301e",
    micros=1_700_000_001_000_000,
    window="8000018bcfe5680080",
)
SESSION = Session(
    version=1,
    touched=1_700_000_000_000_000,
    history=(UserMessage(text="p-1"), AssistantMessage(text="fine")),
    state={"payments": 1, "total": 40.0},
)
STORED: dict[str, Stored] = {
    "envelope": Envelope(
        run_id="p-1",
        event='{"amount":40.0,"id":"p-1"}',
        digest="d503a3dd1750455eb98cbf9aa258abcb",
        micros=1_700_000_000_000_000,
    ),
    "envelope_in_a_window": IN_A_WINDOW,
    "record": KeyRecord(
        open=IN_A_WINDOW,
        revision=1,
        waiting=5,
        batch_left=2,
        ledger="0123456789abcdef0123456789abcdef",
        session_revision=1,
        session_version=1,
        session=SESSION.model_dump_json(),
        touched=1_700_000_000_000_000,
        expiry_set=True,
        recent=(ClosedId("p-1", "d503a3dd1750455eb98cbf9aa258abcb", 1_700_000_002.5),),
        closed=17,
    ),
    "closed_ids": ClosedIds(ids=(ClosedId("p-1", "d503a3dd1750455eb98cbf9aa258abcb", 1_700_000_002.5),)),
    "alive": Alive(at=1_700_000_002.5),
    "session": SESSION,
    "end_answer": End(kind="answer", output={"ok": True, "why": "held"}),
    "end_failure": End(
        kind="failure",
        reason=FailureReason.IN_DOUBT,
        message="hold may or may not have happened",
        transcript=(UserMessage(text="p-1"),),
        emitted=({"n": 1},),
    ),
    "positions": Positions(
        files={"a.jsonl": Position(4096, "0123abcd"), "b.jsonl": Position(0, "", True, 1_700_000_000.5)}
    ),
    "changes_position": ChangesPosition(
        system="77",
        lsn="16/B374D848",
        commit="16/B374D900",
        done=3,
        seen="7:9:8",
        until="0/5",
        table="public.readings",
        key=("1", "a"),
    ),
    "offsets": Offsets(started=True, next={"payments": {0: 4_096, 3: 0}}),
}
CODED: dict[str, tuple[Any, Any]] = {
    "key": (KeyCoder(), ("card", 7)),
    "result": (
        PydanticCoder(RunResult[Payment, Verdict]),
        RunResult[Payment, Verdict](
            run_id="p-1", event=Payment(id="p-1", amount=40.0), output=Verdict(ok=True, why="held")
        ),
    ),
    "failure": (
        PydanticCoder(RunFailure[Payment]),
        RunFailure[Payment](
            reason=FailureReason.DEADLINE, message="late", run_id="p-2", event=Payment(id="p-2", amount=70.0)
        ),
    ),
}


def old(name: str) -> bytes:
    return (FORM_1 / f"{name}.bytes").read_bytes()


@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_reads_as_what_it_was(name: str) -> None:
    assert type(STORED[name]).from_json(old(name)) == STORED[name]


@pytest.mark.parametrize("name", CODED)
def test_what_was_coded_reads_as_what_it_was(name: str) -> None:
    coder, value = CODED[name]
    assert coder.decode(old(name)) == value


def test_keys_are_coded_as_they_were() -> None:
    """Other bytes would be another key: its state would be gone."""
    assert KeyCoder().encode(("card", 7)) == old("key")


def test_every_form_is_in_the_corpus() -> None:
    forms = {form.__name__ for form in Stored.__subclasses__() if form.__module__.startswith("beam_agents.")}
    assert forms == {type(value).__name__ for value in STORED.values()}


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize(
    "change", [{"schema_version": 2}, {"a_field_of_a_later_release": 1}, {"schema_version": "1.5"}]
)
def test_a_form_of_a_later_release_is_refused_by_name(name: str, change: dict[str, Any]) -> None:
    form = type(STORED[name])
    with pytest.raises(StoredFormUnknown, match=rf"stored {form.__name__} .*{next(iter(change))}"):
        form.from_json(json.dumps(json.loads(old(name)) | change))


def test_coded_values_of_another_form_are_refused() -> None:
    coder, _ = CODED["result"]
    with pytest.raises(ValueError, match="was written in form"):
        coder.decode(b"\x02" + old("result")[1:])


@pytest.fixture
def ledger(tmp_path: Path) -> SqliteLedger:
    """A copy of the old ledger: `p-1` was decided, `p-2` was killed between its first call and its second."""
    shutil.copy(FORM_1 / "ledger.sqlite", tmp_path / "ledger.db")
    return SqliteLedger(tmp_path / "ledger.db")


def test_runs_of_an_old_ledger_are_replayed_and_gone_on_with(ledger: SqliteLedger) -> None:
    worker = Worker()
    try:
        host = worker.join(watch, "watch", ledger, "cards")

        def run(name: str, amount: float) -> Any:
            text = f'{{"amount":{amount},"id":"{name}"}}'
            key = RunKey("cards", "watch", 1, '"card-1"', name)
            return host.start(Task(key, "card-1", text, digest(text), session_version=1)).done.result(timeout=30)

        decided = run("p-1", 40.0)
        assert decided.replayed
        assert decided.end.output == {"ok": True, "why": "held 40"}
        resumed = run("p-2", 70.0)
        assert not resumed.replayed
        # `hold` raises here: its outcome is the recorded one. The state is that of both payments.
        assert resumed.end.output == {"ok": False, "why": "held 70"}
        assert Session.from_json(resumed.session).state == {"payments": 2, "total": 110.0}
    finally:
        worker.close()


def test_a_ledger_of_another_schema_is_refused_by_name(ledger: SqliteLedger) -> None:
    import sqlite3

    with sqlite3.connect(ledger.url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    connection.close()
    with pytest.raises(LedgerError, match="schema version 99, this release reads"):
        ledger.open()


def test_the_agent_of_the_corpus_is_one_that_a_pipeline_takes() -> None:
    assert RunAgent(watch, event_id="id", ledger="sqlite:////tmp/unused.db").scope == "watch"
    assert AgentUse.pickle(watch)
