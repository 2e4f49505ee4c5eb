"""Whatever is sent to the HTTP door: it answers with a status that it documents, and keeps what it said it would."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from beam_agents.io.ingress.admission import Admission
from beam_agents.io.ingress.app import Door, Limits
from beam_agents.io.ingress.body import Accepted, Events
from tests.io.ingress_kit import MemoryStore, Order

DOCUMENTED = {200, 202, 400, 404, 405, 413, 415, 422}
ORDER = {"customer": "ada", "amount": 5.5}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A valid body in which some bytes were replaced, left out or put in."""
    event = json.dumps(ORDER)
    body = bytearray(draw(st.sampled_from([event, f"[{event}, {event}]", f"{event}\n{event}\n"])).encode())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(body)


events = st.fixed_dictionaries(
    {}, optional={"customer": st.text(max_size=5) | anything, "amount": st.floats() | anything, "x": anything}
)
bodies = (
    st.binary(max_size=300)
    | spoiled()
    | anything.map(lambda value: json.dumps(value).encode())
    | events.map(lambda event: json.dumps(event).encode())
    | st.lists(events, max_size=7).map(lambda batch: json.dumps(batch).encode())
    | st.lists(events, max_size=7).map(lambda batch: "\n".join(map(json.dumps, batch)).encode())
)
values = st.binary(max_size=30) | st.sampled_from([b"1", b"wait=1", b"\xb2", b"[", b"identity", b"Bearer x", b"gzip"])
kinds = st.sampled_from(
    [b"application/json"] * 4 + [b"application/x-ndjson"] * 3 + [b"application/json; charset=utf-8", b"text/html", b""]
)
headers = st.lists(
    st.tuples(
        st.sampled_from([b"host", b"content-length", b"content-encoding", b"authorization", b"prefer", b"accept"]),
        values,
    ),
    max_size=3,
)
ids = st.lists(st.sampled_from([b"o-1", b"o-2"]) | values, min_size=0, max_size=2) | st.just([b"o-3"])
requests = st.tuples(
    st.sampled_from(["POST"] * 6 + ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "ODD"]),
    st.sampled_from(["/events"] * 8 + ["/events/", "/events/o-1", "/", "//", "/metrics", "/healthz", "/readyz"])
    | st.text(max_size=10).map(lambda text: f"/{text}"),
    kinds,
    ids,
    headers,
    bodies,
)


async def send(door: Door, method: str, path: str, head: list[tuple[bytes, bytes]], body: bytes) -> httpx.Response:
    """Sends it as a server would that lets everything through."""
    sent: list[Any] = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": head,
        "client": ("127.0.0.1", 1),
        "server": ("door", 80),
    }
    parts = [
        {"type": "http.request", "body": body[:100], "more_body": True},
        {"type": "http.request", "body": body[100:], "more_body": False},
    ]

    async def receive() -> Any:
        return parts.pop(0)

    async def answer(message: Any) -> None:
        sent.append(message)

    await door.application()(scope, receive, answer)  # what is not caught there fails the test
    return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=b"".join(m["body"] for m in sent[1:]))


@settings(max_examples=200, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(requests, min_size=1, max_size=5))
@example([("POST", "/events", b"application/json", [b"o-1"], [(b"content-length", b"\xb2")], b'{"customer": "ada"}')])
@example([("GET", "/none", b"", [], [(b"host", b"[")], b"")])
@example([("POST", "/events", b"application/json", [b"o-1"], [], b'{"customer": "ada", "amount": 1e999}')])
@example([("POST", "/events", b"application/json", [b"o-1"], [], b'{"customer": "\\ud800"}')])
@example([("POST", "/events", b"application/json", [b"o-1"], [], b'{"x": ' + b"9" * 5000 + b', "customer": "ada"}')])
def test_any_request_has_a_documented_answer_and_what_is_accepted_is_stored(
    requests: list[tuple[str, str, bytes, list[bytes], list[tuple[bytes, bytes]], bytes]],
) -> None:
    store = MemoryStore()
    taken = Events(Order, key="customer", event_id=None, id_header="Idempotency-Key", max_batch=5)
    door = Door(taken, store, Admission([], None, open=True), None, Limits(max_bytes=10_000))
    accepted: list[tuple[str, str]] = []
    for method, path, kind, given_ids, others, body in requests:
        head = [(b"content-type", kind), *((b"idempotency-key", id) for id in given_ids), *others]
        answer = asyncio.run(send(door, method, path, head, body))
        assert answer.status_code in DOCUMENTED
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            assert problem["status"] == answer.status_code
            assert problem["detail"]
        if answer.status_code == 202:
            found = answer.json()
            accepted += [(one["id"], one["key"]) for one in found.get("accepted", [found])]
    assert [(event.id, event.key) for event in store.events] == accepted
    assert all(is_whole(event) for event in store.events)


def is_whole(event: Accepted) -> bool:
    """Whether a job can read what was stored."""
    return Order.model_validate_json(event.event).customer == event.key
