"""The parts of the support example: rules, desk, input, and the workflow without Beam."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_agents import RunFailure
from beam_agents.messages import AssistantMessage, ModelRequest, OutputSpec, SystemMessage, UserMessage
from beam_agents.models import FunctionModel
from examples.common import read_rows
from examples.support import rules
from examples.support.agent import Chat, Email, support_agent
from examples.support.desk import SAMPLE_CUSTOMERS, Customer, Desk, sample_customer
from examples.support.inbox import SAMPLE, accuracy, events, messages
from examples.support.intents import ARTICLES, INSTRUCTIONS, INTENTS, NEEDS_PERSON, article


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    opened = Desk(str(tmp_path / "desk.db"))
    yield opened
    opened.close()


def classification(text: str, instructions: str) -> ModelRequest:
    schema = {"type": "object", "properties": {"label": {"type": "string"}}}
    return ModelRequest(
        messages=(SystemMessage(text=instructions), UserMessage(text=text)),
        output=OutputSpec(name="Classification", json_schema=schema),
    )


def test_there_are_77_intents_each_with_one_line() -> None:
    assert len(INTENTS) == 77
    assert all(meaning and "\n" not in meaning for meaning in INTENTS.values())
    assert set(INTENTS) >= NEEDS_PERSON


def test_articles_are_about_the_intent() -> None:
    assert article("topping_up_by_card") == ARTICLES["top topping balance"]  # "pin" within "topping" is no match
    assert article("pin_blocked") == ARTICLES["pin passcode"]
    assert article("visa_or_mastercard") == "Our help pages are in the app under Help."


def test_rules_know_nothing_but_the_request() -> None:
    instructions = (
        "The labels mean:\n- cat: an animal that purrs\n- dog: an animal that barks\nAnswer with one of: cat, dog."
    )
    asked = classification("It barked all night.", instructions)
    assert json.loads(rules.answer(asked).text or "") == {"label": "dog"}


def test_rules_take_the_first_label_by_name_where_no_word_fits() -> None:
    assert rules.Labels({"b": "one", "a": "two"}).nearest("???") == "a"


def test_rules_find_most_of_the_sample() -> None:
    labels = rules.Labels.of(INSTRUCTIONS)
    rows = [row for row in read_rows(SAMPLE) if isinstance(row, dict)]
    right = sum(labels.nearest(f"{row.get('subject', '')}\n{row['text']}") == row["category"] for row in rows)
    assert len(rows) == 30
    assert right >= 20


def test_the_sample_names_only_known_intents_and_both_kinds() -> None:
    rows = [row for row in read_rows(SAMPLE) if isinstance(row, dict)]
    assert {row["category"] for row in rows} <= set(INTENTS)
    assert {row["kind"] for row in rows} == {"chat", "email"}


def test_the_offline_model_names_itself_in_its_answers() -> None:
    asked = ModelRequest(messages=(UserMessage(text="Ada writes: hello\nHelp article: Look in the app."),))
    assert rules.answer(asked).text == "[offline:support-rules] Look in the app."
    assert rules.MODEL.name == "offline:support-rules"


def test_the_desk_knows_its_customers(desk: Desk) -> None:
    assert desk.customer("C000") == Customer(customer_id="C000", name="Ada", plan="premium")
    assert desk.customer("X999") is None
    assert sample_customer(SAMPLE_CUSTOMERS) == "C000"


def test_one_request_waits_once_however_often_it_is_made(desk: Desk, tmp_path: Path) -> None:
    for _ in range(3):
        desk.enqueue("key-1", "T-1", "C001", "card_swallowed", True)
    desk.enqueue("key-2", "T-2", "C001", "card_swallowed", True)
    assert desk.waiting() == 2
    again = Desk(str(tmp_path / "desk.db"))
    assert again.waiting() == 2
    again.close()


def test_rows_without_ids_are_named_by_their_number(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text("text,category\nWhere is my card?,card_arrival\nbad,row,here\nHello,age_limit\n")
    read = list(messages(file))
    assert [row["message_id"] for row in read if isinstance(row, dict)] == ["000001", "000003"]
    assert [type(row) for row in read] == [dict, RunFailure, dict]


def test_the_true_intent_does_not_reach_the_agent() -> None:
    assert all("category" not in event for event in events(str(SAMPLE)))


def test_accuracy_counts_a_missing_result_as_wrong(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text("text,category\na,card_arrival\nb,age_limit\nc,age_limit\nd,age_limit\n")
    results = [{"event": {"message_id": f"{n:06d}"}, "output": {"intent": "age_limit"}} for n in (1, 2, 3)]
    assert accuracy(file, results) == "2 of 4 intents right (50.0%)"
    file.write_text("text\na\n")
    assert "no column category" in accuracy(file, results)


# ---- the workflow, without Beam ----


def labelled(intent: str) -> FunctionModel:
    """Always finds one intent, and answers with what it was asked."""

    def answer(request: ModelRequest) -> AssistantMessage:
        if request.output is not None:
            return AssistantMessage(text=json.dumps({"label": intent}))
        return AssistantMessage(text=request.messages[-1].text)

    return FunctionModel(answer, name="test:labelled")


def run(desk_file: Path, model: FunctionModel, event: Chat | Email) -> tuple[str, str, str]:
    result = support_agent(model, lambda: Desk(str(desk_file))).run_sync(event, key=event.customer_id)
    return result.output.intent, result.output.answered_by, result.output.text


def test_a_question_is_answered_from_the_article(tmp_path: Path) -> None:
    event = Chat(message_id="1", customer_id="C001", text="how?")
    found = run(tmp_path / "d.db", labelled("exchange_via_app"), event)
    assert found == ("exchange_via_app", "agent", f"Ben writes: how?\nHelp article: {article('exchange_via_app')}")


def test_a_grave_matter_waits_for_a_person(tmp_path: Path) -> None:
    event = Email(kind="email", message_id="1", customer_id="C001", subject="Help", text="stolen")
    assert run(tmp_path / "d.db", labelled("lost_or_stolen_card"), event)[1:] == (
        "person",
        "A colleague will answer you soon (T-1).",
    )
    desk = Desk(str(tmp_path / "d.db"))
    assert desk.waiting() == 1
    desk.close()


def test_a_stranger_is_routed_to_a_person(tmp_path: Path) -> None:
    event = Chat(message_id="1", customer_id="nobody", text="how?")
    assert run(tmp_path / "d.db", labelled("exchange_via_app"), event)[1] == "person"
