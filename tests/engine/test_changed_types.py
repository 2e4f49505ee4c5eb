"""An agent's `event_type` or `output_type` changes while events wait, runs are open and answers are recorded."""

from __future__ import annotations

from typing import Any

import pytest
from agents_under_test import Gates
from apache_beam.utils.timestamp import Timestamp
from cluster import Cluster
from pydantic import BaseModel
from test_changed_code import Order, OtherEvent, both, made, pure_tools, run, state_of, text_of

from beam_agents import Duplicate, FailureReason, RunFailure, RunResult
from beam_agents.codec import digest
from beam_agents.engine.emit import failure_of, outcome_of
from beam_agents.engine.end import conflict
from beam_agents.transforms.emission import DUPLICATES, Emitter
from beam_agents.transforms.envelope import Envelope

pytestmark = pytest.mark.usefixtures("replay_mode")


class RenamedEvent(BaseModel):
    id: str
    euros: int = 0


class LongerEvent(BaseModel):
    id: str
    amount: int = 0
    currency: str = "EUR"


UNREADABLE = [
    (OtherEvent, "OtherEvent: amount: Input should be a valid array"),
    (RenamedEvent, "RenamedEvent: it has 'amount', which would be lost"),
]


@pytest.mark.parametrize(("event_type", "says"), UNREADABLE)
def test_an_open_event_that_cannot_be_read_any_more(cluster: Cluster, event_type: Any, says: str) -> None:
    gates = Gates()
    first, _ = pure_tools(gates)
    agent = made(calls=[first], event_type=event_type)
    ended = both(cluster, made(calls=[first]), agent, gates=gates, gate="first")
    failure = outcome_of(agent, ended)
    assert isinstance(failure, RunFailure)
    assert (failure.reason, failure.event, failure.raw) == (
        FailureReason.INVALID_EVENT,
        None,
        text_of(Order(id="1", amount=5)),
    )
    assert says in failure.message
    assert failure.message.count(says) == 1
    assert gates.calls == {"first": 1}
    assert state_of(ended) is None
    assert run(cluster.worker(agent), text_of(Order(id="1", amount=5)), "1").end == ended.end


def test_an_open_event_with_a_new_field_goes_on(cluster: Cluster) -> None:
    gates = Gates()
    first, _ = pure_tools(gates)
    agent = made(calls=[first], event_type=LongerEvent)
    result = outcome_of(agent, both(cluster, made(calls=[first]), agent, gates=gates, gate="first"))
    assert isinstance(result, RunResult)
    assert result.event == LongerEvent(id="1", amount=5)


@pytest.mark.parametrize(("event_type", "says"), UNREADABLE)
def test_what_is_emitted_for_a_recorded_event_that_cannot_be_read(cluster: Cluster, event_type: Any, says: str) -> None:
    ended = cluster.worker(made()).run(Order(id="1", amount=5))
    agent, text = made(event_type=event_type), text_of(Order(id="1", amount=5))
    failure = outcome_of(agent, ended)
    assert isinstance(failure, RunFailure)
    assert (failure.reason, failure.raw, failure.run_id) == (FailureReason.INVALID_EVENT, text, "1")
    assert says in failure.message
    refused = failure_of(agent, "1", text, conflict("1"))
    assert (refused.reason, refused.raw) == (FailureReason.ID_CONFLICT, text)


def test_an_unreadable_event_does_not_change_why_its_run_failed(cluster: Cluster) -> None:
    def refuse(state: Any, event: Any) -> Any:
        raise ValueError("never")

    ended = cluster.worker(made(on_event=refuse)).run(Order(id="1"))
    failure = outcome_of(made(event_type=OtherEvent), ended)
    assert isinstance(failure, RunFailure)
    assert failure.reason is FailureReason.CODE_ERROR
    assert failure.message.startswith("ValueError: never; the recorded event does not fit 'agent'")


def test_an_unreadable_duplicate_is_a_duplicate_all_the_same() -> None:
    text = text_of(Order(id="1", amount=5))
    envelope = Envelope(run_id="1", event=text, digest=digest(text), micros=Timestamp(1).micros)
    for agent, event, raw in (
        (made(), Order(id="1", amount=5), None),
        (made(event_type=OtherEvent), None, text),
    ):
        tag, (_, duplicate), _ = Emitter(agent, "scope").duplicate("k", envelope)
        assert (tag, duplicate) == (DUPLICATES, Duplicate(run_id="1", event=event, raw=raw))


class OtherVerdict(BaseModel):
    ok: bool
    score: str


class RenamedVerdict(BaseModel):
    ok: bool
    points: int = 0


class LongerVerdict(BaseModel):
    ok: bool
    score: int = 0
    why: str = ""


@pytest.mark.parametrize(
    ("output_type", "says"),
    [
        (OtherVerdict, "OtherVerdict: score: Input should be a valid string"),
        (RenamedVerdict, "RenamedVerdict: it has 'score', which would be lost"),
    ],
)
def test_a_recorded_answer_that_does_not_fit_is_a_failure_and_never_misread(
    cluster: Cluster, output_type: Any, says: str
) -> None:
    cluster.worker(made()).run(Order(id="1"))
    agent = made(output_type=output_type, output=output_type.model_construct())
    ended = cluster.worker(agent).run(Order(id="1"))
    assert ended.replayed
    failure = outcome_of(agent, ended)
    assert isinstance(failure, RunFailure)
    assert (failure.reason, failure.event) == (FailureReason.INVALID_OUTPUT, Order(id="1"))
    assert says in failure.message
    assert "decided by another release" in failure.message
    assert "raise `revision`" in failure.message


def test_a_recorded_answer_that_fits_is_emitted(cluster: Cluster) -> None:
    cluster.worker(made()).run(Order(id="1"))
    agent = made(output_type=LongerVerdict)
    result = outcome_of(agent, cluster.worker(agent).run(Order(id="1")))
    assert isinstance(result, RunResult)
    assert result.output == LongerVerdict(ok=True, score=7)
