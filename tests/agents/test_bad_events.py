"""Whatever comes in ends in exactly one of results, failures and duplicates, on each driver."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from agent_kit import COUNTING, ECHO, JUDGING, Txn
from driving import BATCH, DRIVERS, STREAM, At, Outputs, collect, collected, options_of, pairs, run
from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator

from beam_agents import Agent, RunAgent


def fine(name: str, **more: Any) -> dict[str, Any]:
    return {"txn_id": name, **more}


def reasons(out: Outputs) -> Counter[str]:
    return Counter(placed.value.reason.value for placed in out.failures)


@pytest.mark.usefixtures("replay_mode")
@pytest.mark.parametrize("driver", DRIVERS)
def test_nothing_is_lost(driver: str, tmp_path: Path) -> None:
    elements = [
        At(1, ("k", Txn(txn_id="model"))),
        At(2, ("k", fine("dict"))),
        At(3, ("k", '{"txn_id": "text"}')),
        At(4, ("k", b'{"txn_id": "bytes"}')),
        At(5, ("k", fine("dict"))),
        At(6, ("k", fine("dict", amount=7))),
        At(7, ("other", fine("dict", amount=7))),
        At(8, ("k", {"amount": 1})),
        At(9, ("k", fine("x", amount="much"))),
        At(10, ("k", '{"txn_id": ')),
        At(11, ("k", b"\xff\xfe")),
        At(12, ("k", None)),
        At(13, ("k", 5)),
        At(14, ("k", [fine("list")])),
        At(15, ("k", fine(""))),
        At(16, (None, fine("no key"))),
        At(17, (object(), fine("odd key"))),
        At(18, "not a pair"),
        At(19, ("one", "two", "three")),
        At(20, ["k", fine("a list, not a pair")]),
        At(21, None),
        At(22, ("k", fine("last"))),
    ]

    out = run(JUDGING, elements, driver, ledger=f"sqlite:///{tmp_path}/runs.db")

    assert out.ends == len(elements)
    assert sorted((placed.key, placed.value.run_id) for placed in out.results) == [
        ("k", "bytes"),
        ("k", "dict"),
        ("k", "last"),
        ("k", "model"),
        ("k", "text"),
        ("other", "dict"),
    ]
    assert [(placed.key, placed.value.run_id, placed.seconds) for placed in out.duplicates] == [("k", "dict", 5)]
    assert reasons(out) == {"invalid_event": 12, "missing_key": 1, "missing_id": 1, "id_conflict": 1}
    assert [placed.seconds for placed in out.failures] == [6, *range(8, 22)]
    for placed in out.failures:
        assert placed.value.message
        assert (placed.value.event is None) != (placed.value.raw is None)
    by_time = {placed.seconds: placed.value for placed in out.failures}
    assert by_time[10].raw == '{"txn_id": '
    assert by_time[16].event is None or by_time[16].event == Txn(txn_id="no key")
    assert "put beam.WithKeys(...) before RunAgent" in by_time[18].message


@pytest.mark.usefixtures("replay_mode")
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("with_ledger", [False, True])
def test_a_changed_event_under_the_same_id_is_a_conflict(driver: str, with_ledger: bool, tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path}/runs.db" if with_ledger else None
    elements = [
        At(1, ("k", fine("a"))),
        At(2, ("k", fine("a"))),
        At(3, ("k", fine("a", amount=5))),
        At(4, ("k", fine("a"))),
        At(5, ("k", fine("b"))),
    ]

    out = run(COUNTING, elements, driver, ledger=ledger)

    assert out.outputs == {"a": "a is number 1", "b": "b is number 2"}
    assert [placed.seconds for placed in out.duplicates] == [2, 4]
    assert [(placed.seconds, placed.value.reason.value) for placed in out.failures] == [(3, "id_conflict")]
    assert out.failures[0].value.event == Txn(txn_id="a", amount=5)


def raising(event: Any) -> str:
    raise KeyError("no such field")


@pytest.mark.parametrize(
    ("event_id", "reason"),
    [
        (lambda event: event.txn_id, None),
        (lambda event: 7, None),
        (lambda event: None, "missing_id"),
        (lambda event: "", "missing_id"),
        (lambda event: 1.5, "missing_id"),
        (lambda event: b"a", "missing_id"),
        (lambda event: ("a", 1), "missing_id"),
        (raising, "missing_id"),
    ],
    ids=["text", "number", "none", "empty", "float", "bytes", "tuple", "raises"],
)
def test_an_id_is_a_text_or_a_number(event_id: Any, reason: str | None) -> None:
    out = run(JUDGING, [("k", fine("a"))], event_id=event_id)

    assert out.ends == 1
    assert [placed.value.reason.value for placed in out.failures] == ([reason] if reason else [])
    for placed in out.failures:
        assert placed.value.event == Txn(txn_id="a")
        assert "event_id=" in placed.value.message


def test_events_of_any_type_may_be_dicts_and_have_their_id_in_a_field() -> None:
    agent = Agent("any", model=ECHO)

    out = run(agent, [("k", {"id": "a"}), ("k", {"name": "b"}), ("k", '{"id": "c"}')], event_id="id")

    assert sorted(out.outputs) == ["a", "c"]
    assert reasons(out) == {"missing_id": 1}


def test_events_of_any_type_may_be_plain_text() -> None:
    agent = Agent("any", model=ECHO, prompt=lambda state, event: str(event))

    assert agent.run_sync("What is that?").output == "What is that?"
    out = run(agent, [("k", "What is that?")], event_id=lambda event: event)
    assert out.outputs == {"What is that?": "What is that?"}


# ---- types that are not as simple ----


class Camel(BaseModel):
    txn_id: str = Field(alias="txnId")


class Populated(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    txn_id: str = Field(alias="txnId")


class TwoNames(BaseModel):
    txn_id: str = Field(validation_alias="id_in", serialization_alias="id_out")


class Raw(BaseModel):
    txn_id: str
    data: bytes


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    txn_id: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shout(self) -> str:
        return self.txn_id.upper()


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    txn_id: str
    at: datetime.datetime
    pair: tuple[int, int]


@dataclasses.dataclass
class Data:
    txn_id: str
    amount: float = 1.0


EVENTS = [
    Camel(txnId="a"),
    Populated(txn_id="a"),
    TwoNames(id_in="a"),
    Raw(txn_id="a", data=b"hello"),
    Computed(txn_id="a"),
    Strict(txn_id="a", at=datetime.datetime(2024, 1, 1), pair=(1, 2)),  # noqa: DTZ001
    Data(txn_id="a"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_out_as_it_went_in(event: Any) -> None:
    agent = Agent("a", model=ECHO, prompt=lambda state, event: repr(event), event_type=type(event))

    result = agent.run_sync(event)

    assert (result.event, result.output) == (event, repr(event))


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_an_event_with_other_names_goes_through_a_pipeline(driver: str) -> None:
    agent = Agent("a", model=ECHO, prompt=lambda state, event: repr(event), event_type=Camel)

    out = run(agent, [("k", Camel(txnId="a")), ("k", {"txnId": "a"}), ("k", '{"txnId": "b"}')], driver)

    assert out.outputs == {"a": repr(Camel(txnId="a")), "b": repr(Camel(txnId="b"))}
    assert [placed.value.event for placed in out.duplicates] == [Camel(txnId="a")]


class Picky(BaseModel):
    txn_id: str
    note: str = ""

    @field_validator("note", mode="before")
    @classmethod
    def strip(cls, note: Any) -> str:
        return note.strip()  # not a text: AttributeError, which pydantic lets through


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_a_validator_that_breaks_makes_its_event_invalid_only(driver: str) -> None:
    agent = Agent("a", model=ECHO, event_type=Picky)

    out = run(agent, [("k", fine("a", note=5)), ("k", fine("b"))], driver)

    assert list(out.outputs) == ["b"]
    assert reasons(out) == {"invalid_event": 1}
    assert "AttributeError" in out.failures[0].value.message


def spoilt() -> Txn:
    event = Txn(txn_id="spoilt")
    event.amount = "much"  # type: ignore[assignment]
    return event


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_an_instance_that_does_not_keep_its_type_is_invalid(driver: str) -> None:
    out = run(JUDGING, [("k", spoilt()), ("k", fine("b"))], driver)

    assert list(out.outputs) == ["b"]
    assert reasons(out) == {"invalid_event": 1}


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_an_event_that_json_cannot_hold_is_invalid(driver: str) -> None:
    bad = [{"id": "a", "value": float("nan")}, {"id": "a", "value": {1, object()}}, b'{"id": "a", "value": "\\ud83d"}']

    out = run(Agent("any", model=ECHO), [("k", event) for event in [*bad, {"id": "b"}]], driver, event_id="id")

    assert list(out.outputs) == ["b"]
    assert reasons(out) == {"invalid_event": 3}


# ---- keys ----


@dataclasses.dataclass(frozen=True)
class Key:
    card: str


class Colour(enum.Enum):
    RED = "red"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    card: str


PLAIN_KEYS = ["k", "", "größe", 1, True, 1.5, b"\xff", ("a", 1, None), ("a", ("b", 2)), "a\u2028b"]

OTHER_KEYS = [Key("a"), Colour.RED, Frozen(card="a"), datetime.date(2024, 1, 1), {"a": 1}, float("nan"), ["a"], {"a"}]


def typed(value: Any) -> tuple[Any, ...]:
    """A value that is not equal to one of another type, as 1 is to True."""
    return (type(value), *map(typed, value)) if isinstance(value, tuple) else (type(value), value)


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_keys_come_out_as_they_went_in(driver: str) -> None:
    out = run(JUDGING, [(key, fine("a")) for key in PLAIN_KEYS], driver)

    assert sorted(repr(typed(placed.key)) for placed in out.results) == sorted(repr(typed(key)) for key in PLAIN_KEYS)


@pytest.mark.parametrize("key", OTHER_KEYS, ids=repr)
def test_a_key_of_another_kind_comes_out_as_it_went_in_or_fails(key: Any) -> None:
    """It may not come out as another key, nor stop the pipeline."""
    out = run(JUDGING, [(key, fine("a")), ("k", fine("b"))], STREAM)

    assert out.ends == 2
    for placed in out.results:
        if placed.value.run_id == "a":
            assert typed(placed.key) == typed(key)
    assert set(reasons(out)) <= {"invalid_event"}


def test_other_keys_in_a_batch_come_out_as_they_went_in_or_fail() -> None:
    hashable = [key for key in OTHER_KEYS if key.__hash__ is not None]

    out = run(JUDGING, [(key, fine("a")) for key in hashable])

    assert out.ends == len(hashable)
    wanted = [repr(typed(key)) for key in hashable]
    assert all(repr(typed(placed.key)) in wanted for placed in out.results)
    assert set(reasons(out)) <= {"invalid_event"}


def card_of(event: Any) -> str | None:
    return event.get("card")


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_keys_that_are_declared_as_optional_may_be_missing(driver: str) -> None:
    token = "optional keys " + driver
    key_them = beam.WithKeys(card_of).with_output_types(tuple[str | None, Any])
    with beam.Pipeline(options=options_of(driver)) as pipeline:
        events = pairs(pipeline, driver, [(fine("a"), 1.0), (fine("b", card="c"), 2.0)]) | "Key" >> key_them
        out = events | RunAgent(JUDGING, event_id="txn_id")
        collect(out.results, token)
        collect(out.failures, token + "failures")

    assert [(placed.key, placed.value.run_id) for placed in collected(token)] == [("c", "b")]
    (failed,) = collected(token + "failures")
    assert (failed.key, failed.value.reason.value) == (None, "missing_key")
