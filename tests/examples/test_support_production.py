"""The support example behind an HTTP door on Flink: its commands as processes, and its agent on a real database."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import TimestampedValue
from pydantic import TypeAdapter, ValidationError

from beam_agents import RunAgent
from beam_agents.io import Identified
from beam_agents.models import FunctionModel
from examples.support.production.account import Account, account
from examples.support.production.agent import support_agent
from examples.support.production.commands import main
from examples.support.production.crm import CRM, ROLE, make_databases, make_tables, queue
from examples.support.production.events import Message
from examples.support.production.feed import endless_messages
from examples.support.production.servers import DOOR
from examples.support.production.topics import Answer
from examples.support.rules import MODEL
from runners.flink.cluster import FlinkCluster
from runners.postgres import PostgresServer, PostgresUnavailable
from tests.production_kit import LIMIT, command, committed, running, up

RATE = "What is the exchange rate for Swiss francs today?"
STOLEN = "My bag was stolen on the train and my card was in it."
PIN = "I typed my PIN wrong three times and now it is blocked."


@pytest.fixture
def crm(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of the help desk's database for its administrator; the agent finds its own in the environment."""
    try:
        server = PostgresServer(None, fsync="off")
    except PostgresUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    try:
        server.start()
        make_databases(server.url(), "secret")
        make_tables(server.url("crm"))
        monkeypatch.setenv(CRM.variable, server.url("crm", ROLE, "secret"))
        yield server.url("crm")
    finally:
        server.remove()


def chat(ticket: str, text: str, customer: str = "C001") -> dict[str, str]:
    return {"event_type": "chat", "ticket": ticket, "customer_id": customer, "text": text}


def handled(messages: list[dict[str, str]], folder: Path, model: FunctionModel = MODEL) -> list[dict[str, str]]:
    """What the agent says to messages, in their order."""
    file = folder / "out.jsonl"

    def keep(results: list[tuple[str, str]]) -> None:
        file.write_text(json.dumps([reply for _, reply in sorted(results)]))

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        events = [
            TimestampedValue((message["ticket"], Identified(id=f"{nth:03}", event=message)), nth)
            for nth, message in enumerate(messages)
        ]
        timed = pipeline | beam.Create(events) | beam.Map(lambda event: event)
        out = timed | RunAgent(support_agent(model), ledger=f"sqlite:///{folder}/ledger.db")
        replies = out.results | beam.Map(lambda pair: (pair[1].run_id, pair[1].output.model_dump(exclude_none=True)))
        assert_that(replies, keep)
        assert_that(out.failures, lambda failures: None if not failures else pytest.fail(str(failures)), label="None")
    found: list[dict[str, str]] = json.loads(file.read_text())
    return found


def test_a_person_is_handed_the_ticket_with_all_that_was_said_and_the_account(crm: str, tmp_path: Path):
    replies = handled(
        [
            chat("T-1", RATE),
            chat("T-2", PIN, "C002"),
            {**chat("T-1", STOLEN), "event_type": "email", "subject": "Help"},
            chat("T-1", "Is anybody there?"),
            {"event_type": "status", "ticket": "T-1", "customer_id": "C001", "status": "closed"},
            chat("T-1", RATE),
        ],
        tmp_path,
    )
    actions = ["answered", "answered", "handed_over", "handed_over", "noted", "answered"]
    assert [reply["action"] for reply in replies] == actions
    waiting = {place.number: place for place in queue(crm)}
    assert [(place.ticket, place.reason) for place in waiting.values()] == [
        ("T-1", "a person decides this"),
        ("T-1", "a person has this ticket"),
    ]
    assert waiting[1].transcript == [
        {"who": "customer", "text": RATE},
        {"who": "agent", "text": replies[0]["text"]},
        {"who": "customer", "text": f"Help\n{STOLEN}"},
    ]
    assert waiting[1].account == {"name": "Ben", "plan": "standard", "balance": "17.00", "card": "active"}
    assert waiting[1].urgent
    assert [line["text"] for line in waiting[2].transcript][-2:] == [replies[2]["text"], "Is anybody there?"]


def test_strangers_and_those_who_ask_for_the_third_time_get_a_person(crm: str, tmp_path: Path):
    replies = handled([chat("T-1", RATE), chat("T-1", RATE), chat("T-1", RATE), chat("T-2", RATE, "X1")], tmp_path)
    assert [reply["action"] for reply in replies] == ["answered", "answered", "handed_over", "handed_over"]
    assert {place.ticket: (place.reason, place.account is None) for place in queue(crm)} == {
        "T-1": ("asked 3 times", False),
        "T-2": ("nobody knows this customer", True),
    }


def test_a_model_that_talks_nonsense_is_no_reason_to_leave_a_customer_alone(crm: str, tmp_path: Path):
    (reply,) = handled([chat("T-1", RATE)], tmp_path, FunctionModel(lambda request: "nonsense", name="nonsense"))
    assert reply["action"] == "handed_over"
    assert [place.reason for place in queue(crm)] == ["the model did not understand it"]


def test_the_agent_can_be_sent_to_workers():
    agent = pickle.loads(pickle.dumps(support_agent(MODEL)))
    closed = {"event_type": "status", "ticket": "T-1", "customer_id": "C001", "status": "closed"}
    assert agent.run_sync(closed, key="T-1").output.action == "noted"


@pytest.mark.flink
@pytest.mark.timeout(900)
def test_each_message_is_answered_once_though_workers_die(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with up("support", tmp_path, "--port=0") as (folder, started):

        def said(name: str, *options: str) -> str:
            assert main([name, f"--folder={folder}", *options]) == 0
            return capsys.readouterr().out

        workers = FlinkCluster.load(folder / "flink").workers()
        sent = list(islice(endless_messages(1), 40))
        fed = command("support", folder, "feed", "--count=20", "--rate=20", "--seed=1")
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        os.kill(running(folder).pids[DOOR], signal.SIGKILL)
        again = said("feed", "--count=40", "--rate=20", "--seed=1")
        assert "20 messages sent with --seed=1" in fed
        assert "40 messages sent with --seed=1" in again
        outcomes(folder)
        until = time.monotonic() + LIMIT
        while "the door said 200 1 times" not in said("feed", "--count=1", "--seed=7", "--wait"):
            assert time.monotonic() < until
        counted = outcomes(folder)

        noted = running(folder)
        answers = [Answer.model_validate_json(record.value() or b"") for record in committed(noted.servers, "answers")]
        bodies = {each.id: each.body for each in sent} | {each.id: each.body for each in islice(endless_messages(7), 1)}
        valid = {id: body for id, body in bodies.items() if body["event_type"] != "fax"}
        assert Counter(answer.message for answer in answers) == Counter(list(valid))
        assert counted.failures == {}
        assert counted.answered_twice == 0
        handed = [valid[answer.message] for answer in answers if answer.action == "handed_over"]
        places = queue(noted.database("crm"))
        assert Counter(place.ticket for place in places) == Counter(body["ticket"] for body in handed)
        assert handed
        for place in places:
            assert place.transcript[-1]["who"] == "customer"
            assert (place.account is None) == (place.customer_id == "X999")

        shown = said("show")
        assert all(place.ticket in shown and place.transcript[-1]["text"].split("\n")[0] in shown for place in places)
        status = said("status")
        assert "is RUNNING" in status
        assert "; 0 open" in status
        assert Account.model_validate_json(said("status", "--json")) == counted
        command("support", folder, "down")
        assert started.wait(LIMIT) == 0
        assert not folder.exists()


def outcomes(folder: Path) -> Account:
    """What came of the messages, when nothing is open any more."""
    until = time.monotonic() + LIMIT
    while (found := account(running(folder))).open:
        assert time.monotonic() < until, found
        time.sleep(0.2)
    return found


def test_customers_write_all_kinds_and_other_seeds_give_others():
    sent = list(islice(endless_messages(1), 400))
    assert sent == list(islice(endless_messages(1), 400))
    assert not {each.id for each in sent} & {each.id for each in islice(endless_messages(2), 400)}
    assert len({each.id for each in sent}) < len(sent)
    assert {each.body["event_type"] for each in sent} == {"chat", "email", "status", "fax"}
    for each in sent:
        if each.id.endswith("-bad"):
            with pytest.raises(ValidationError, match="union_tag_invalid"):
                TypeAdapter(Message).validate_python(each.body)
        else:
            assert TypeAdapter(Message).validate_python(each.body).ticket == each.body["ticket"]


def test_nothing_is_open_when_each_message_has_an_outcome_or_came_before():
    counted = Account(messages=10, repeats=2, answers={"answered": 5, "noted": 1}, failures={"deadline": 1})
    assert counted.open == 1


@pytest.mark.parametrize("name", ["feed", "show", "status"])
def test_commands_say_that_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    assert main([name, f"--folder={tmp_path}"]) == 1
    assert f"nothing runs in {str(tmp_path)!r}" in capsys.readouterr().err
