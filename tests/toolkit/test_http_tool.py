"""`http_tool` against a real server: what is sent, and what each answer means for each effect."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from pydantic import BaseModel
from toolkit_kit import Web, call, failure, serving

from beam_agents import ConfigurationError, Tool
from beam_agents.secrets import EnvSecret
from beam_agents.toolkit import Reconcile, http_tool

TOKEN = "s3cr3t-Value"


class Account(BaseModel):
    id: str
    owner: str


@pytest.fixture
def served() -> Iterator[Web]:
    with serving() as web_server:
        yield web_server


def getter(served: Web, url: str = "/accounts/{account}", **more: Any) -> Tool[Any]:
    @http_tool("GET", served.url + url, effect="pure", **more)
    def account(account: str) -> Account:
        """The account of a customer."""

    return account


def poster(served: Web, effect: Any, **more: Any) -> Tool[Any]:
    @http_tool("POST", served.url + "/holds/{card}", effect=effect, **more)
    def hold(card: str, reason: str, amount: float = 1.5) -> dict[str, str]:
        """Holds a card."""

    return hold


def test_a_get_gives_the_typed_answer(served: Web) -> None:
    tool = getter(served)

    assert tool.description == "The account of a customer."
    assert list(tool.spec.parameters["properties"]) == ["account"]
    assert call(tool, account="a1") == {"id": "a1", "owner": "Ann"}  # what the type leaves out is not kept
    assert served.asked == ["GET /accounts/a1"]
    assert "idempotency-key" not in served.headers[0]


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        ("a/b", "a%2Fb"),
        ("%2f..%2f", "%252f..%252f"),
        ("x@evil.example", "x%40evil.example"),
        ("a\nHost: evil", "a%0AHost%3A%20evil"),
        ("a?b=c#d;e", "a%3Fb%3Dc%23d%3Be"),
        ("é\0", "%C3%A9%00"),
        ("...", "..."),
    ],
)
def test_an_argument_stays_in_its_place_of_the_path(served: Web, argument: str, path: str) -> None:
    call(getter(served), account=argument)

    assert served.asked == [f"GET /accounts/{path}"]
    assert served.headers[0]["host"] == served.url.removeprefix("http://")


@pytest.mark.parametrize("argument", ["", ".", "..", "../admin", "a/../../b", "..\\admin", "a/."])
def test_an_argument_that_leads_elsewhere_is_refused(served: Web, argument: str) -> None:
    assert "cannot stand in a path" in call(getter(served), account=argument)
    assert served.asked == []


def test_the_query_is_encoded_drops_none_and_repeats_lists(served: Web) -> None:
    @http_tool("GET", served.url + "/find?q={q}&tag={tags}&since={since}&exact={exact}&v=a%20b", effect="pure")
    def find(q: str, tags: list[str], since: int | None = None, exact: bool = True) -> Any: ...

    call(find, q="a&b=c d#+", tags=["x", "y&z"])
    assert served.asked == ["GET /find?q=a%26b%3Dc%20d%23%2B&tag=x&tag=y%26z&exact=true&v=a%20b"]


def test_a_post_sends_json_and_the_calls_key(served: Web) -> None:
    call(poster(served, "idempotent"), card="c1", reason="theft")

    assert served.asked == ["POST /holds/c1"]
    assert json.loads(served.bodies[0]) == {"amount": 1.5, "reason": "theft"}
    assert len(served.headers[0]["idempotency-key"]) == 32


def test_one_parameter_may_be_the_whole_body(served: Web) -> None:
    @http_tool("PUT", served.url + "/notes/{idempotency_key}", effect="idempotent", body="note")
    def put(note: Account) -> None: ...

    assert call(put, note={"id": "n", "owner": "o"}) is None
    assert json.loads(served.bodies[0]) == {"id": "n", "owner": "o"}
    assert served.asked == [f"PUT /notes/{served.headers[0]['idempotency-key']}"]


@pytest.mark.parametrize("effect", ["pure", "idempotent"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_server_is_asked_again_with_the_same_key(served: Web, effect: str, status: int) -> None:
    served.answers(status, status, 200)

    assert call(poster(served, effect), card="c", reason="r") == {"said": "no"}
    assert len(served.asked) == 3
    assert len({headers.get("idempotency-key") for headers in served.headers}) == 1


def test_a_server_that_stays_down_ends_the_run(served: Web) -> None:
    served.answers(503)

    ended = failure(poster(served, "idempotent", retries=1), card="c", reason="r")
    assert ended.reason == "tool_error"
    assert "status 503 (Service Unavailable)" in ended.message
    assert len(served.asked) == 2


def test_retry_after_is_kept(served: Web) -> None:
    served.answers(429, 200, headers={"Retry-After": "1"})
    began = time.monotonic()

    call(poster(served, "pure", retries=1), card="c", reason="r")
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(("status", "told"), [(400, "ModelRetry"), (422, "ModelRetry"), (404, "ToolFailed")])
@pytest.mark.parametrize("effect", ["pure", "idempotent", "once"])
def test_the_model_is_told_of_what_it_may_help(served: Web, status: int, told: str, effect: str) -> None:
    served.answers(status)

    assert call(poster(served, effect), card="c", reason="r").startswith(f"{told}: status {status}")
    assert len(served.asked) == 1


@pytest.mark.parametrize("status", [404, 409, 422, 400])
def test_a_refusal_after_an_attempt_that_nobody_knows_about_is_no_failure_without_effect(
    served: Web, status: int
) -> None:
    served.answers(500, status)

    ended = failure(poster(served, "idempotent", retries=1), card="c", reason="r")
    assert "earlier attempt may have had its effect" in ended.message


@pytest.mark.parametrize("effect", ["pure", "once"])
def test_a_refused_secret_is_named_and_not_shown(served: Web, effect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_TOKEN", TOKEN)

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"bad": request.headers["Authorization"]}, status=401)

    served.answer = answer
    tool = poster(served, effect, headers={"Authorization": EnvSecret("CRM_TOKEN").prefixed("Bearer ")})
    ended = failure(tool, card="c", reason="r")

    assert served.headers[0]["authorization"] == f"Bearer {TOKEN}"
    assert ended.reason == "tool_error"
    assert "'CRM_TOKEN'" in ended.message
    assert TOKEN not in ended.model_dump_json()


def test_a_missing_secret_is_named_and_nothing_is_sent(served: Web) -> None:
    ended = failure(poster(served, "once", headers={"X-Key": EnvSecret("NOT_THERE")}), card="c", reason="r")

    assert ended.reason == "tool_error"
    assert "environment variable 'NOT_THERE'" in ended.message
    assert served.asked == []


def test_a_secret_that_a_server_repeats_is_concealed(served: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_TOKEN", TOKEN + '"')

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"got": request.headers["X-Key"]}, status=statuses.pop(0))

    statuses = [200, 400]
    served.answer = answer
    tool = poster(served, "pure", headers={"X-Key": EnvSecret("CRM_TOKEN")})

    assert call(tool, card="c", reason="r") == {"got": "***"}
    assert "***" in call(tool, card="c", reason="r")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_once_without_a_connection_is_told_to_the_model_and_in_no_doubt() -> None:
    nowhere = Web()
    nowhere.url = f"http://127.0.0.1:{free_port()}"

    assert "nothing was sent" in call(poster(nowhere, "once"), card="c", reason="r")
    assert failure(poster(nowhere, "pure", retries=1), card="c", reason="r").reason == "tool_error"


async def hang_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.close()
    await asyncio.sleep(0)
    return web.Response()


@pytest.mark.parametrize("status", [500, 503, 302, None])
def test_once_with_an_unclear_answer_is_sent_once_and_in_doubt(served: Web, status: int | None) -> None:
    if status is None:
        served.answer = hang_up
    else:
        served.answers(status)

    assert failure(poster(served, "once"), card="c", reason="r").reason == "in_doubt"
    assert len([asked for asked in served.asked if asked.startswith("POST")]) == 1


def test_a_lost_connection_is_asked_again_where_that_is_safe(served: Web) -> None:
    served.answer = hang_up
    failure(poster(served, "idempotent", retries=1), card="c", reason="r")

    assert len(served.asked) == 2
    assert len({headers["idempotency-key"] for headers in served.headers}) == 1


@pytest.mark.parametrize(
    ("found", "absent", "outcome"),
    [
        (200, "unknown", "known"),
        (404, "unknown", "in_doubt"),
        (404, "cannot_happen", "tool_error"),
        (500, "unknown", "in_doubt"),
    ],
)
def test_reconcile_asks_the_server_by_key(served: Web, found: int, absent: Any, outcome: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.method == "POST":
            return web.Response(status=500)
        return web.json_response({"id": "known"}, status=found)

    served.answer = answer
    ask = served.url + "/holds/by-key/{idempotency_key}?card={card}"
    tool = poster(served, "once", reconcile=Reconcile(ask, absent=absent))

    if outcome == "known":
        assert call(tool, card="c", reason="r") == {"id": "known"}
    else:
        assert failure(tool, card="c", reason="r").reason == outcome
    assert served.asked[1] == f"GET /holds/by-key/{served.headers[0]['idempotency-key']}?card=c"


def redirects(served: Web, target: str, status: int = 302) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/accounts"):
            return web.Response(status=status, headers={"Location": target})
        return web.json_response({"id": "moved", "owner": "o"})

    served.answer = answer


def test_redirects_stay_on_the_host(served: Web) -> None:
    redirects(served, "/other/place?x=1")

    assert call(getter(served), account="a")["id"] == "moved"


def test_redirects_to_other_hosts_are_refused_unless_allowed(served: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_TOKEN", TOKEN)
    with serving() as other:
        redirects(served, f"{other.url}/stolen")
        secret = {"Authorization": EnvSecret("CRM_TOKEN"), "X-Plain": "p"}
        ended = failure(getter(served, headers=secret, retries=0), account="a")

        assert "not in allow_hosts" in ended.message
        assert other.asked == []

        call(getter(served, headers=secret, allow_hosts=[other.url.removeprefix("http://")]), account="a")
        assert other.asked == ["GET /stolen"]
        assert "authorization" not in other.headers[0]
        assert other.headers[0]["x-plain"] == "p"


def test_redirects_without_end_and_to_nowhere_are_refused(served: Web) -> None:
    redirects(served, "/accounts/again")
    assert "more than 3 times" in failure(getter(served, retries=0), account="a").message

    redirects(served, "file:///etc/passwd")
    assert "no URL of HTTP" in failure(getter(served, retries=0), account="a").message


def test_a_post_is_not_redirected(served: Web) -> None:
    served.answers(307, headers={"Location": "/elsewhere"})

    ended = failure(poster(served, "once"), card="c", reason="r")
    assert ended.reason == "tool_error"
    assert "is not redirected" in ended.message


def test_an_answer_that_is_too_long_is_cut_off(served: Web) -> None:
    async def answer(request: web.Request) -> web.Response:
        response = web.json_response({"x": "y" * 10_000})
        response.enable_compression()
        return response

    served.answer = answer

    assert "more than 100 bytes" in failure(getter(served, max_bytes=100, retries=0), account="a").message
    assert failure(poster(served, "once", max_bytes=100), card="c", reason="r").reason == "result_lost"


@pytest.mark.parametrize(("effect", "reason"), [("pure", "tool_error"), ("idempotent", "result_lost")])
def test_an_answer_that_does_not_fit_is_judged_by_the_effect(served: Web, effect: str, reason: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    served.answer = answer
    ended = failure(poster(served, effect, retries=0), card="c", reason="r")

    assert ended.reason == reason
    assert "something else than its return type" in ended.message


def test_a_slow_server_is_given_up(served: Web) -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    served.answer = answer
    ended = failure(getter(served, timeout=timedelta(milliseconds=100), retries=0), account="a")
    assert "did not answer in 0.1 s" in ended.message


def test_a_text_is_returned_as_it_is(served: Web) -> None:
    @http_tool("GET", served.url + "/page", effect="pure")
    def page() -> str: ...

    assert json.loads(call(page))["id"] == "a1"


def nothing() -> None: ...


def a(a: str) -> Any: ...


def with_body(a: str) -> Any:
    return a + "!"


def untyped(a: str):  # type: ignore[no-untyped-def]
    ...


@pytest.mark.parametrize(
    ("method", "url", "function", "more", "says"),
    [
        ("GET", "https://{a}/x", a, {}, "no URL template"),
        ("GET", "https://user:pw@host/x", nothing, {}, "no URL template"),
        ("GET", "ftp://host/x", nothing, {}, "no URL template"),
        ("GET", "https://host/x#{a}", a, {}, "no URL template"),
        ("GET", "https://host/x?{a}=1", a, {}, "only values of the query"),
        ("GET", "https://host/{a!r}", a, {}, "name of a parameter"),
        ("GET", "https://host/{b}", a, {}, "'b' in the URL"),
        ("GET", "https://host/x", a, {}, "put 'a' in the URL"),
        ("get", "https://host/x", nothing, {}, "must be one of"),
        ("GET", "https://host/x", nothing, {"effect": "safe"}, "effect='safe'"),
        ("GET", "https://host/{a}", with_body, {}, "its body would never run"),
        ("GET", "https://host/{a}", untyped, {}, "declare what it returns"),
        ("GET", "https://host/x", nothing, {"headers": {"Authorization": "Bearer x"}}, "EnvSecret"),
        ("GET", "https://host/x", nothing, {"headers": {"X": "a\nb"}}, "text of one line"),
        ("GET", "https://host/x", nothing, {"headers": {"Host": "b"}}, "set by the tool itself"),
        ("GET", "http://host/x", nothing, {"headers": {"X": EnvSecret("E")}}, "use https"),
        ("GET", "https://host/x", nothing, {"reconcile": "https://host/y"}, "'once' calls only"),
        ("POST", "https://host/x", nothing, {"effect": "once", "retries": 2}, "retries=2"),
        ("POST", "https://host/x", a, {"body": "b"}, "body='b'"),
        ("GET", "https://host/x", nothing, {"max_bytes": 0}, "max_bytes=0"),
        ("GET", "https://host/x", nothing, {"timeout": timedelta(0)}, "timeout"),
        (
            "POST",
            "https://host/x",
            nothing,
            {"effect": "once", "headers": {"X": EnvSecret("E")}, "reconcile": "https://other/y"},
            "another host",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    method: str, url: str, function: Any, more: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)) as caught:
        http_tool(method, url, **{"effect": "pure", **more})(function)
    assert ":pw" not in str(caught.value)
