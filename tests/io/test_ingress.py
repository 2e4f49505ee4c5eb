"""The HTTP door: what it takes, what it refuses and how, and who may send."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, field_validator

from beam_agents.errors import ConfigurationError
from beam_agents.io.ingress.admission import Admission, Signature
from beam_agents.io.ingress.app import Door, Limits
from beam_agents.io.ingress.body import Accepted, Events
from beam_agents.io.ingress.folder_store import FolderStore
from beam_agents.io.ingress.problems import Problem
from beam_agents.io.ingress.rate import Rate
from beam_agents.io.ingress.store import Store, StoreDown
from beam_agents.secrets import EnvSecret
from tests.io.ingress_kit import MemoryStore, Order, stored

JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/x-ndjson"}
ORDER = '{"customer": "ada", "amount": 5}'


def events(type: Any = Order, *, key: str = "customer", event_id: str | None = None, max_batch: int = 10) -> Events:
    return Events(type, key=key, event_id=event_id, id_header="Idempotency-Key", max_batch=max_batch)


def door(store: Store, *, of: Events | None = None, who: Admission | None = None, **limits: Any) -> Door:
    return Door(of or events(), store, who or Admission([], None, open=True), None, Limits(**limits))


def post(content: Any, headers: dict[str, str] | None = None, id: str | None = "o-1") -> httpx.Request:
    given = {**JSON, **(headers or {}), **({} if id is None else {"idempotency-key": id})}
    return httpx.Request("POST", "http://door/events", content=content, headers=given)


def get(path: str, **headers: str) -> httpx.Request:
    return httpx.Request("GET", f"http://door{path}", headers=headers)


def answers(one: Door, *requests: httpx.Request) -> list[httpx.Response]:
    """What the door answers to one request after the other."""

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(one.application())
        async with one.opened(), httpx.AsyncClient(transport=transport) as client:
            return [await client.send(request) for request in requests]

    return asyncio.run(ask())


def refusal(one: Door, request: httpx.Request, status: int) -> dict[str, Any]:
    """The problem that a request is answered with."""
    (answer,) = answers(one, request)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["type"], body["status"]) == ("about:blank", status)
    assert body["title"]
    assert body["detail"]
    return {**body, "headers": answer.headers}


# ---- what is taken ----


def test_an_event_is_stored_as_it_came(tmp_path: Path) -> None:
    raw = '{"customer":"ada","amount":0.1000000000000000055511151231257827,"more":12345678901234567890123}'
    (answer,) = answers(door(FolderStore(tmp_path)), post(f" {raw}\n", id="o 1/2"))
    assert answer.status_code == 202
    assert answer.json() == {"id": "o 1/2", "key": "ada", "location": "/events/o%201%2F2"}
    assert answer.headers["location"] == "/events/o%201%2F2"
    assert stored(tmp_path) == [Accepted("o 1/2", "ada", raw)]


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (f" [{ORDER} ,\n{ORDER}]", JSON),
        (f"{ORDER}\r\n\n{ORDER}\n", LINES),
        (f"{ORDER}\n{ORDER}", {"content-type": "application/jsonl; charset=UTF-8"}),
    ],
)
def test_a_batch_is_numbered_behind_the_requests_id(content: str, headers: dict[str, str]) -> None:
    store = MemoryStore()
    (answer,) = answers(door(store), post(content, headers))
    assert answer.status_code == 202
    assert store.events == [Accepted("o-1-0", "ada", ORDER), Accepted("o-1-1", "ada", ORDER)]
    assert [place["location"] for place in answer.json()["accepted"]] == ["/events/o-1-0", "/events/o-1-1"]


def test_the_id_may_be_a_field_and_numbers_are_fine() -> None:
    class Reading(BaseModel):
        device: int
        number: int

    store = MemoryStore()
    of = events(Reading, key="device", event_id="number")
    raw = '{"device": 7, "number": 12}'
    assert answers(door(store, of=of), post(raw, id="ignored"))[0].json()["location"] == "/events/12"
    assert store.events == [Accepted("12", "7", raw)]


def test_a_field_that_the_event_does_not_have_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"key='client': Order has no such field, it has: customer, amount"):
        events(key="client")
    with pytest.raises(ConfigurationError, match=r"event_id='nr'"):
        events(event_id="nr")


def test_health_and_figures_are_told() -> None:
    store = MemoryStore()
    found = answers(door(store), post(ORDER), post("{"), get("/healthz"), get("/readyz"), get("/metrics"))
    assert [answer.status_code for answer in found] == [202, 400, 200, 200, 200]
    for line in (
        'beam_agents_ingress_requests_total{status="202"} 1.0',
        'beam_agents_ingress_requests_total{status="400"} 1.0',
        "beam_agents_ingress_events_total 1.0",
        "beam_agents_ingress_waiting 0.0",
    ):
        assert line in found[-1].text
    assert refusal(door(MemoryStore(StoreDown("away"))), get("/readyz"), 503)["detail"] == "memory takes no events now"


# ---- what is refused ----


@pytest.mark.parametrize(
    ("request_", "status", "told"),
    [
        (post(b"\xff"), 400, "not UTF-8"),
        (post("{"), 400, "not JSON"),
        (post(""), 400, "not JSON"),
        (post('{"customer": "ada", "amount": NaN}'), 400, "NaN is no JSON number"),
        (post("[" * 100_000), 400, "nested too deeply"),
        (post(f"{ORDER}\n\n{{", LINES), 400, "line 3: it is not JSON"),
        (post(ORDER, id=None), 400, "send Idempotency-Key"),
        (post(f"[{ORDER}]", id=None), 400, "send Idempotency-Key"),
        (post(ORDER, id="x" * 201), 400, "1 to 200 printable characters"),
        (post(ORDER, id="a\tb"), 400, "printable"),
        (get("/other"), 404, "GET /other"),
        (post(ORDER, {"prefer": "wait=5"}), 400, "send it without wait"),
        (get("/events/o-1"), 404, "not told what events come to"),
        (get("/events"), 405, "GET /events"),
        (post(ORDER, {"content-type": "text/plain"}), 415, "send application/json"),
        (post(ORDER, {"content-type": "application/json; charset=latin-1"}), 415, "UTF-8"),
        (post(ORDER, {"content-encoding": "gzip"}), 415, "Content-Encoding"),
        (post("[]"), 422, "the batch is empty"),
        (post("\n", LINES), 422, "the batch is empty"),
        (post(f"[{', '.join([ORDER] * 11)}]"), 413, "at most 10 events, not 11"),
        (post(f'{{"customer": "{"x" * 1000}"}}'), 413, "at most 1000 bytes"),
    ],
)
def test_what_cannot_be_taken_is_refused_and_nothing_is_stored(request_: httpx.Request, status: int, told: str) -> None:
    large = status == 413 and "bytes" in told
    store = MemoryStore()
    assert told in refusal(door(store, max_bytes=1000 if large else 1_000_000), request_, status)["detail"]
    assert store.events == []


def test_an_id_that_was_sent_twice_is_refused() -> None:
    request = httpx.Request("POST", "http://door/events", content=ORDER, headers=[
        ("content-type", "application/json"), ("idempotency-key", "a"), ("idempotency-key", "b"),
    ])  # fmt: skip
    assert "was sent 2 times" in refusal(door(MemoryStore()), request, 400)["detail"]


def test_a_body_without_a_length_is_cut_off_when_it_is_too_large() -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b" " * 100

    found = refusal(door(MemoryStore(), max_bytes=1000), post(chunks()), 413)
    assert found["headers"]["connection"] == "close"
    assert read <= 12


def test_an_event_that_does_not_fit_is_told_where() -> None:
    store = MemoryStore()
    body = refusal(door(store), post(f'[{ORDER}, {{"customer": 3, "amount": "x"}}, {{}}, {{"customer": ""}}]'), 422)
    assert [(error["loc"], error["type"]) for error in body["errors"]] == [
        ([1, "customer"], "string_type"),
        ([1, "amount"], "float_parsing"),
        ([2, "customer"], "missing"),
        ([3], "value_error"),
    ]
    assert "'customer' must have 1 to 200 printable characters" in body["errors"][3]["msg"]
    assert "input" not in body["errors"][0]
    assert store.events == []
    assert refusal(door(store), post("{}"), 422)["errors"][0]["loc"] == ["customer"]


def test_a_validator_that_raises_anything_is_a_refusal() -> None:
    class Strange(BaseModel):
        customer: str

        @field_validator("customer")
        @classmethod
        def fail(cls, value: str) -> str:
            raise KeyError(value)

    body = refusal(door(MemoryStore(), of=events(Strange)), post(ORDER), 422)
    assert "KeyError" in body["errors"][0]["msg"]


def test_a_host_header_that_is_no_host_is_no_failure_of_the_server() -> None:
    assert refusal(door(MemoryStore()), get("/other", host="["), 404)["detail"].startswith("GET /other")


def test_a_slash_too_many_leads_nowhere() -> None:
    request = httpx.Request("POST", "http://door/events/", content=ORDER, headers=JSON)
    refusal(door(MemoryStore()), request, 405)
    refusal(door(MemoryStore()), httpx.Request("GET", "http://door/events/"), 404)


# ---- who may send ----


def test_a_bearer_token_lets_in_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "first")
    monkeypatch.setenv("TWO", "second")
    who = Admission([EnvSecret("ONE"), EnvSecret("TWO")], None, open=False)
    store = MemoryStore()
    right = [post(ORDER, {"authorization": f"{scheme} {token}"}) for scheme, token in
             [("Bearer", "first"), ("bearer", "second")]]  # fmt: skip
    assert [answer.status_code for answer in answers(door(store, who=who), *right)] == [202, 202]
    for headers in ({}, {"authorization": "Bearer third"}, {"authorization": "Basic first"}, {"authorization": "x"}):
        found = refusal(door(store, who=who), post(ORDER, headers), 401)
        assert found["headers"]["www-authenticate"] == "Bearer"
        assert "first" not in str(found)
    refusal(door(store, who=who), get("/events/o-1"), 401)
    assert len(store.events) == 2


def test_somebody_has_to_be_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="nobody may send"):
        Admission([], None, open=False)
    monkeypatch.delenv("GONE", raising=False)
    with pytest.raises(ConfigurationError, match="GONE"):
        Admission([EnvSecret("GONE")], None, open=False)


def _hex(text: str, secret: str = "shared") -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> EnvSecret:
    monkeypatch.setenv("SHARED", "shared")
    return EnvSecret("SHARED")


def test_a_signature_over_the_body_lets_in(shared: EnvSecret) -> None:
    who = Admission([], Signature(shared), open=False)
    name = "X-Hub-Signature-256"
    assert answers(door(MemoryStore(), who=who), post(ORDER, {name: f"sha256={_hex(ORDER)}"}))[0].status_code == 202
    for wrong in (f"sha256={_hex(ORDER, 'other')}", f"sha256={_hex(ORDER + ' ')}", "sha256=", "ä"):
        headers = {"content-type": "application/json", name: wrong}
        request = httpx.Request(
            "POST",
            "http://door/events",
            content=ORDER,
            headers=[(k.encode(), v.encode("latin-1")) for k, v in headers.items()],
        )
        assert name in refusal(door(MemoryStore(), who=who), request, 401)["detail"]
    refusal(door(MemoryStore(), who=who), post(ORDER), 401)


def test_a_signature_with_a_time_is_good_for_five_minutes(shared: EnvSecret) -> None:
    who = Admission([], Signature(shared, "Stripe-Signature", "stripe"), open=False)
    now = int(time.time())

    def signed(at: int, text: str = ORDER) -> dict[str, str]:
        return {"stripe-signature": f"t={at},v0=00,v1={_hex('x')},v1={_hex(f'{at}.{text}')}"}

    assert answers(door(MemoryStore(), who=who), post(ORDER, signed(now - 200)))[0].status_code == 202
    bad = f"v1={_hex(f'{now}.{ORDER}')}"
    for wrong in (signed(now - 400), signed(now + 400), signed(now, "{}"), {"stripe-signature": bad},
                  {"stripe-signature": f"t=x,{bad}"}, {"stripe-signature": f"t={now},t={now},{bad}"}):  # fmt: skip
        refusal(door(MemoryStore(), who=who), post(ORDER, wrong), 401)


def test_a_form_of_signature_that_nobody_knows_is_refused(shared: EnvSecret) -> None:
    with pytest.raises(ConfigurationError, match="must be one of github, stripe"):
        Signature(shared, "X", "other")  # type: ignore[arg-type]


# ---- how much ----


def test_a_caller_has_events_for_a_burst_and_then_so_many_a_second() -> None:
    now = 0.0
    rate = Rate(2, 10, clock=lambda: now)
    rate.take("a", 10)
    with pytest.raises(Problem) as refused:
        rate.take("a", 5)
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "3"})
    rate.take("b", 10)
    now = 2.5
    rate.take("a", 5)
    now = 1000.0
    rate.take("a", 10)
    with pytest.raises(Problem):
        rate.take("a", 1)


def test_too_many_events_are_told_when_to_come_again() -> None:
    store = MemoryStore()
    limited = Door(
        events(max_batch=2), store, Admission([], None, open=True), None, Limits(per_second=0.001, max_batch=2)
    )
    both, more = answers(limited, post(f"[{ORDER}, {ORDER}]"), post(ORDER))
    assert (both.status_code, more.status_code) == (202, 429)
    assert int(more.headers["retry-after"]) > 900
    assert more.headers["content-type"] == "application/problem+json"
    assert len(store.events) == 2


def test_a_store_that_is_down_or_slow_is_a_503_with_a_time() -> None:
    down = refusal(door(MemoryStore(StoreDown("the disk is full"))), post(ORDER), 503)
    assert "the disk is full" in down["detail"]
    assert "send it again with the same id" in down["detail"]
    assert down["headers"]["retry-after"] == "1"

    class Slow(MemoryStore):
        async def append(self, events: Any) -> None:
            await asyncio.Event().wait()

    assert "takes too long" in refusal(door(Slow(), store_seconds=0.01), post(ORDER), 503)["detail"]


def test_when_too_many_requests_wait_the_next_is_refused_at_once() -> None:
    class Held(MemoryStore):
        async def append(self, events: Any) -> None:
            entered.set()
            await let.wait()
            await super().append(events)

    entered, let = asyncio.Event(), asyncio.Event()
    store = Held()
    one = door(store, max_waiting=1)

    async def ask() -> tuple[httpx.Response, httpx.Response, str]:
        async with one.opened(), httpx.AsyncClient(transport=httpx.ASGITransport(one.application())) as client:
            first = asyncio.create_task(client.send(post(ORDER)))
            await entered.wait()
            second = await client.send(post(ORDER, id="o-2"))
            waiting = (await client.send(get("/metrics"))).text
            let.set()
            return await first, second, waiting

    first, second, waiting = asyncio.run(ask())
    assert (first.status_code, second.status_code) == (202, 503)
    assert "too many requests wait" in second.json()["detail"]
    assert second.headers["retry-after"] == "1"
    assert "beam_agents_ingress_waiting 1.0" in waiting
    assert [event.id for event in store.events] == ["o-1"]


def test_the_mistake_of_a_store_is_a_500_and_told_as_a_problem() -> None:
    one = door(MemoryStore(ZeroDivisionError("a mistake")))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(one.application(), raise_app_exceptions=False)
        async with one.opened(), httpx.AsyncClient(transport=transport) as client:
            return await client.send(post(ORDER))

    answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "a mistake" not in json.dumps(answer.json())
