"""A chat server on loopback that speaks OpenAI's protocol and fails as real ones do."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

from aiohttp import web

from beam_agents.errors import ConfigurationError
from beam_agents.messages import AssistantMessage, ToolCall
from beam_agents.models.function import calls, say
from beam_agents.output import CORRECTION
from beam_agents.testing.examples import example

Reply: TypeAlias = str | AssistantMessage | dict[str, Any] | web.StreamResponse
"""A text, a turn, the whole body of an answer, or an HTTP response."""

_KEPT_REQUESTS = 1_000
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request."""

    kind: Literal["status", "cut", "rubbish", "empty"]
    """An error status, a connection cut within the body, a body that is no JSON, an answer without choices."""
    status: int = 500
    retry_after: float | None = None
    """Seconds in a `Retry-After` header."""

    @staticmethod
    def parse(text: str) -> Fault:
        """A fault as the command line has it: `500`, `429:2` (with `Retry-After: 2`), `cut`, `rubbish`, `empty`.

        Raises:
            ConfigurationError: It is none of these.
        """
        named = {fault.kind: fault for fault in (Fault("cut"), Fault("rubbish"), Fault("empty"))}
        if text in named:
            return named[text]
        status, _, retry_after = text.partition(":")
        try:
            return Fault("status", int(status), float(retry_after) if retry_after else None)
        except ValueError:
            raise ConfigurationError(
                f"fault {text!r}: give a status ('500'), one with Retry-After seconds ('429:2'), 'cut', 'rubbish' "
                "or 'empty'"
            ) from None


class MockChatServer:
    """A chat server in a thread of its own, on a free port of the loopback interface.

        with MockChatServer() as server:
            model = OpenAIModel("any", base_url=server.base_url)

    Args:
        answer: Makes the reply from the request's body; may be async. By default a request with tools and without a
            result after its last user message gets a call of the first tool, any other an answer, both made from
            the schemas.
        latency: Seconds before each reply.
        spread: How far the latency varies: 0.2 is 20 % up or down, evenly.
        seed: Of the latencies' random numbers.
        faults: What goes wrong first, one fault for each request; afterwards all is well.
        port: A free one by default.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], Reply | Awaitable[Reply]] | None = None,
        *,
        latency: float = 0.0,
        spread: float = 0.0,
        seed: int = 0,
        faults: Iterable[Fault] = (),
        port: int = 0,
    ) -> None:
        self._answer = answer or schema_reply
        self._latency = latency
        self._spread = spread
        self._random = random.Random(seed)
        self._faults = deque(faults)
        self._port = port
        self._calls = 0
        self._in_flight = 0
        self._most_in_flight = 0
        self.requests: deque[dict[str, Any]] = deque(maxlen=_KEPT_REQUESTS)
        """The bodies of the newest requests."""
        self.headers: deque[dict[str, str]] = deque(maxlen=_KEPT_REQUESTS)
        """Their headers, with names in lower case."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mock-chat-server", daemon=True)
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """Where it is, for `OpenAIModel(base_url=...)`."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def stats(self) -> dict[str, int]:
        """Requests so far, those in flight, and the most that were at one time. Also at `/stats`."""
        return {"calls": self._calls, "in_flight": self._in_flight, "most_in_flight": self._most_in_flight}

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._completions)
        app.router.add_get("/stats", self._show_stats)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _show_stats(self, _: web.Request) -> web.Response:
        return web.json_response(self.stats)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        self._calls += 1
        self._in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self._in_flight)
        try:
            body = await request.json()
            self.requests.append(body)
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            fault = self._faults.popleft() if self._faults else None
            if self._latency:
                await asyncio.sleep(self._latency * (1 + self._random.uniform(-self._spread, self._spread)))
            if fault is not None:
                return await _fail(fault, request)
            made = self._answer(body)
            reply = await made if isinstance(made, Awaitable) and not isinstance(made, web.StreamResponse) else made
            if isinstance(reply, web.StreamResponse):
                return reply
            return web.json_response(reply if isinstance(reply, dict) else completion(reply, body, self._calls))
        finally:
            self._in_flight -= 1


async def _fail(fault: Fault, request: web.Request) -> web.StreamResponse:
    if fault.kind == "empty":
        return web.json_response({"object": "chat.completion", "choices": []})
    if fault.kind == "rubbish":
        return web.Response(text='{"choices": [', content_type="application/json")
    if fault.kind == "cut":
        cut = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await cut.prepare(request)
        await cut.write(b'{"choices": [')
        if request.transport is not None:
            request.transport.close()
        return cut
    headers = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
    error = {"error": {"message": f"mock fault with status {fault.status}", "type": "mock", "code": None}}
    return web.json_response(error, status=fault.status, headers=headers)


def completion(answer: str | AssistantMessage, body: dict[str, Any], number: int = 1) -> dict[str, Any]:
    """The body of a good answer; its tokens are estimated at four characters each."""
    turn = say(answer) if isinstance(answer, str) else answer
    message: dict[str, Any] = {"role": "assistant", "content": turn.text}
    if turn.tool_calls:
        message["tool_calls"] = [_call(call) for call in turn.tool_calls]
    asked = len(json.dumps(body.get("messages"))) // _CHARACTERS_PER_TOKEN
    told = len(json.dumps(message)) // _CHARACTERS_PER_TOKEN
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", "mock"),
        "choices": [
            {"index": 0, "finish_reason": "tool_calls" if turn.tool_calls else "stop", "message": message},
        ],
        "usage": {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told},
    }


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def schema_reply(body: dict[str, Any]) -> AssistantMessage:
    """One call of the first tool, then an answer; both as the body's schemas have them."""
    messages, tools = body.get("messages", []), body.get("tools")
    answered = False
    for message in reversed(messages):
        answered = answered or message["role"] == "tool"
        if message["role"] == "user" and not str(message["content"]).startswith(CORRECTION):
            break
    if tools and not answered:
        function = tools[0]["function"]
        return calls((function["name"], example(function["parameters"])))
    form = body.get("response_format", {}).get("json_schema")
    return say("This is an example of an answer." if form is None else example(form["schema"]))
