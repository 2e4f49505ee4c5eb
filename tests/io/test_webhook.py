"""`Webhook`: what it posts, what it posts again, and what it gives up."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import apache_beam as beam
import pytest
from aiohttp import web
from apache_beam.testing.util import assert_that, equal_to

from beam_agents import RunResult
from beam_agents.engine.worker import this_worker
from beam_agents.errors import ConfigurationError
from beam_agents.io import Webhook
from beam_agents.io.sinks import webhook_client
from beam_agents.io.sinks.webhook_client import signature
from beam_agents.secrets import EnvSecret, Secret

Answer = Callable[["Server", web.Request, int], web.Response]


class Server:
    """Answers as a test says, and keeps what it was sent."""

    def __init__(self, answer: Answer) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.most_at_once = self.at_once = 0
        self._answer = answer
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> str:
        app = web.Application()
        app.router.add_post("/hook", self._post)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/hook"

    async def _post(self, request: web.Request) -> web.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        body = await request.read()
        self.seen.append((dict(request.headers), body))
        await asyncio.sleep(0.02)
        self.at_once -= 1
        attempt = sum(headers["Idempotency-Key"] == request.headers["Idempotency-Key"] for headers, _ in self.seen)
        return self._answer(self, request, attempt)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_client, "_FIRST_PAUSE", 0.01)


def result(run_id: str) -> RunResult[Any, Any]:
    return RunResult(run_id=run_id, event={"n": 1}, output="fine")


def post(elements: list[Any], webhook: Webhook, given_up: list[Any] | None = None) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        left = pipeline | beam.Create(elements) | webhook
        seen = left | beam.MapTuple(lambda key, one: (key, one.status, one.attempts, one.message))
        assert_that(seen, equal_to(given_up or []))
    client = webhook._held.enter()
    client.close()
    webhook._held.leave()


def test_each_value_is_posted_with_its_own_key_the_same_in_a_second_run(serve: Callable[[Answer], Server]):
    server = serve(lambda server, request, attempt: web.Response())
    elements = [(f"key{n}", result(f"run{n % 20}")) for n in range(40)]
    for _ in range(2):
        post(elements, Webhook(server.url, in_flight=4, headers={"X-Job": "fraud"}))
    keys = [headers["Idempotency-Key"] for headers, _ in server.seen]
    assert len(keys) == 80
    assert len(set(keys[:40])) == 40
    assert sorted(keys[:40]) == sorted(keys[40:])
    assert 1 < server.most_at_once <= 4
    headers, body = server.seen[0]
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Job"] == "fraud"
    posted = json.loads(body)
    assert (posted["id"], posted["kind"], posted["value"]["output"]) == (headers["Idempotency-Key"], "result", "fine")


def test_a_server_in_trouble_is_asked_again_and_a_refusal_is_given_up_at_once(serve: Callable[[Answer], Server]):
    server = serve(lambda server, request, attempt: web.Response(status=200 if attempt > 2 else 503))
    post([("a", {"id": 1})], Webhook(server.url, id="id"))
    assert len(server.seen) == 3

    refusing = serve(lambda server, request, attempt: web.Response(status=422, text="no such card"))
    post([("a", {"id": 1})], Webhook(refusing.url, id="id"), [("a", 422, 1, "status 422: no such card")])
    moved = serve(lambda server, request, attempt: web.Response(status=302, headers={"Location": server.url}))
    post([("a", {"id": 1})], Webhook(moved.url, id="id"), [("a", 302, 1, "status 302: ")])
    assert (len(refusing.seen), len(moved.seen)) == (1, 1)


def test_retry_after_is_kept_and_one_that_is_too_long_ends_it(serve: Callable[[Answer], Server]):
    waits = {1: "0.3", 2: "3600"}
    server = serve(lambda server, request, attempt: web.Response(status=429, headers={"Retry-After": waits[attempt]}))
    give_up = timedelta(seconds=30)
    post([("a", {"id": 1})], Webhook(server.url, id="id", give_up_after=give_up), [("a", 429, 2, "status 429: ")])


def test_a_server_that_is_not_there_or_silent_is_given_up_in_time(serve: Callable[[Answer], Server]):
    with beam.Pipeline("FnApiRunner") as pipeline:
        left = pipeline | beam.Create([("a", {"id": 1})])
        away = left | "Away" >> Webhook("http://127.0.0.1:1/", id="id", give_up_after=timedelta(milliseconds=200))
        assert_that(
            away
            | beam.MapTuple(lambda key, one: (one.status, one.attempts > 1, "ClientConnectorError" in one.message)),
            equal_to([(None, True, True)]),
        )

    server = serve(lambda server, request, attempt: web.Response())
    limits = {"timeout": timedelta(milliseconds=5), "give_up_after": timedelta(milliseconds=1)}
    message = "no answer within 0.005 s; it may have arrived"
    post([("a", {"id": 1})], Webhook(server.url, id="id", **limits), [("a", None, 1, message)])


def test_secrets_are_sent_and_signed_with_and_shown_nowhere(
    serve: Callable[[Answer], Server], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOOK_TOKEN", "Bearer 12345")
    monkeypatch.setenv("HOOK_KEY", "whsec_" + base64.b64encode(b"k" * 24).decode())
    server = serve(lambda server, request, attempt: web.Response(status=400, text=request.headers["Authorization"]))
    monkeypatch.setenv("HOOK_URL", server.url)
    webhook = Webhook(
        EnvSecret("HOOK_URL"),
        id="id",
        headers={"Authorization": EnvSecret("HOOK_TOKEN")},
        sign=EnvSecret("HOOK_KEY"),
        body=lambda key, value: {"text": key},
    )
    post([("a", {"id": 1})], webhook, [("a", 400, 1, "status 400: ***")])
    ((headers, body),) = server.seen
    assert body == b'{"text":"a"}'
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.new(b"k" * 24, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{mac}"
    assert headers["webhook-id"] == headers["Idempotency-Key"]

    monkeypatch.delenv("HOOK_TOKEN")
    with beam.Pipeline("FnApiRunner") as pipeline:
        left = pipeline | beam.Create([("a", {"id": 1})]) | webhook
        assert_that(left | beam.MapTuple(lambda key, one: "HOOK_TOKEN" in one.message), equal_to([True]))
    with pytest.raises(ConfigurationError, match="no base64"):
        signature("whsec_!", "id", 1, b"")


def test_what_a_server_repeats_of_secrets_is_not_shown(
    serve: Callable[[Answer], Server], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOOK_TOKEN", "tok_LIVE_abcdef")
    said = {
        "a": "invalid token tok_LIVE_abcdef",
        "b": "x" * 288 + " tok_LIVE_abcdef",
        "c": "Cannot POST /hook?t=S3cretQ",
    }
    server = serve(lambda server, request, attempt: web.Response(status=400, text=said[request.headers["X-Key"]]))
    monkeypatch.setenv("HOOK_URL", f"{server.url}?t=S3cretQ")
    messages = []
    for key in said:
        headers = {"Authorization": EnvSecret("HOOK_TOKEN").prefixed("Bearer "), "X-Key": key}
        client = webhook_client.Client(webhook_client.Target(EnvSecret("HOOK_URL"), headers))
        refusal = client.deliver(b"{}", key).result(20)
        assert refusal is not None
        messages.append(refusal.message)
        client.close()
    assert not [message for message in messages if "tok_" in message or "S3cret" in message]
    assert messages[0] == "status 400: invalid token ***"


class Vault(Secret):
    """A secret of a service: what it answers is the test's."""

    name = "the vault"

    def __init__(self, answer: Callable[[], str]) -> None:
        self.answer = answer

    def reveal(self) -> str:
        return self.answer()


def test_a_secret_that_no_header_can_have_is_told(serve: Callable[[Answer], Server]):
    server = serve(lambda server, request, attempt: web.Response())
    client = webhook_client.Client(webhook_client.Target(server.url, {"Authorization": Vault(lambda: "token\n")}))
    refusal = client.deliver(b"{}", "a").result(20)
    assert refusal is not None
    assert "Authorization has characters that a header cannot have" in refusal.message
    client.close()


def test_whoever_keeps_secrets_may_be_away_for_a_while_and_slow(serve: Callable[[Answer], Server]):
    server = serve(lambda server, request, attempt: web.Response())
    asked: list[int] = []
    others_go_on = threading.Event()

    def answer() -> str:
        asked.append(1)
        if len(asked) == 1:
            raise ConfigurationError("the vault raised ConnectionError instead of returning a secret")
        assert others_go_on.wait(20), "the loop waits for the vault"
        return "token"

    client = webhook_client.Client(webhook_client.Target(server.url, {"X-Token": Vault(answer)}))
    delivered = client.deliver(b"{}", "a")
    while len(asked) < 2:
        time.sleep(0.01)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), this_worker().loop).result(10)
    others_go_on.set()
    assert delivered.result(20) is None
    client.close()


def test_values_without_id_or_json_are_in_the_output():
    webhook = Webhook("http://127.0.0.1:1/", id="id")
    values = [("a", {"id": 1, "n": float("nan")}), ("b", {"n": 1})]
    with beam.Pipeline("FnApiRunner") as pipeline:
        left = pipeline | beam.Create(values) | webhook | beam.MapTuple(lambda key, one: (key, one.id, one.message[:5]))
        assert_that(left, equal_to([("a", None, "Value"), ("b", None, "KeyEr")]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "ftp://host"}, "url='ftp://host'"),
        ({"timeout": timedelta(0)}, "timeout="),
        ({"give_up_after": timedelta(0)}, "give_up_after="),
        ({"in_flight": 0}, "in_flight=0"),
        ({"sign": "secret"}, "must be a Secret"),
        ({"body": "value"}, "body='value'"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message) as raised:
        Webhook(**({"url": "https://host/"} | arguments))
    assert "'secret'" not in str(raised.value)
