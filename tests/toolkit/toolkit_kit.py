"""What the tests of declared tools share: one call of a tool in a run, and a web server on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web

from beam_agents import RunContext, RunFailed, RunFailure, Tool, workflow

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def call(tool: Tool[Any], /, **arguments: Any) -> Any:
    """What a tool returns, or what it tells the model, as `ToolFailed: text` or `ModelRetry: text`."""
    return _flow(tool).run_sync(arguments).output


def failure(tool: Tool[Any], /, **arguments: Any) -> RunFailure[Any]:
    """The failure in which a run ends that calls the tool."""
    with pytest.raises(RunFailed) as caught:
        _flow(tool).run_sync(arguments)
    return caught.value.failure


def _flow(tool: Tool[Any]) -> Any:
    from beam_agents import ModelRetry, ToolFailed

    @workflow(name="flow", tools=[tool])
    async def flow(ctx: RunContext[Any, Any, Any], event: dict[str, Any]) -> Any:
        try:
            return await ctx.call(tool, **event)
        except (ModelRetry, ToolFailed) as error:
            return f"{type(error).__name__}: {error}"

    return flow


class Web:
    """A server that answers as `answer` says, and notes what it was asked.

    Attributes:
        url: Where it is.
        asked: The requests, as method and raw path with query.
        headers: Their headers.
        bodies: Their bodies.
    """

    def __init__(self) -> None:
        self.answer: Handler = _ok
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[str] = []
        self.url = ""

    def answers(self, *statuses: int, **more: Any) -> None:
        """Answers with one status after the other, the last one again and again."""
        left = list(statuses)

        async def answer(request: web.Request) -> web.Response:
            return web.json_response({"said": "no"}, status=left.pop(0) if len(left) > 1 else left[0], **more)

        self.answer = answer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.raw_path}")
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.bodies.append(await request.text())
        return await self.answer(request)


async def _end(runner: web.AppRunner) -> None:
    await runner.cleanup()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _ok(request: web.Request) -> web.Response:
    return web.json_response({"id": "a1", "owner": "Ann", "secret_note": "x"})


@contextmanager
def serving() -> Iterator[Web]:
    """A server, in a thread of its own."""
    served, loop = Web(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", r"/{path:[\s\S]*}", served.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield served
    finally:
        asyncio.run_coroutine_threadsafe(_end(runner), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
