"""The other side: a process that survives every crash. It has the simulators of the scenarios, and the scripted model.

    python -m benchmarks.crash.server          # prints its address as the first line, serves until it is ended

It applies each call every time it is asked, and logs it. Only calls that are declared `idempotent` and come with a key
are made once for that key, for every system alike. Before each path a place may stand, such as in `/ours/none/call`: it
has conversations of its own. All bodies are JSON:

- `POST /begin` `{"scenario", "apart"}`: fresh simulators, an empty log; the answers to calls that the model wants side
  by side are given `apart` seconds one after the other, 0 if it is left out;
- `POST /call` `{"scenario", "call", "key", "tool", "arguments", "effect"}` -> `{"result"}`;
- `POST /asked` `{"scenario", "key"}` -> `{"happened", "result"}`: whether a call with that key was made;
- `POST /model` `{"scenario", "position"}` -> `{"calls": [{"id", "name", "arguments"}]}` or `{"answer"}`: what the model
  says to the request of that number, counted from 0 over the whole conversation;
- `GET /verdict?scenario=` -> `{"state", "expected", "right", "log", "duplicates", "paid_twice"}`;
- `GET /scenarios` -> names; `GET /scenario?id=` -> `{"turns": [{"user", "steps"}], "tools"}`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from benchmarks.crash.effects import CHANGING
from benchmarks.crash.scenarios import Scenario, Simulators, entries, scenario


@dataclass
class Conversation:
    """One scenario under way."""

    scenario: Scenario
    simulators: Simulators
    log: list[dict[str, Any]] = field(default_factory=list)
    """Calls that were applied, in order."""
    results: dict[str, str] = field(default_factory=dict)
    """By key."""
    asked: Counter[int] = field(default_factory=Counter)
    """Model requests by position."""
    apart: float = 0.0
    """Seconds between the answers to calls of one step."""

    @classmethod
    def begin(cls, name: str, apart: float = 0.0) -> Conversation:
        """A conversation in which nothing was said.

        Raises:
            KeyError: There is no scenario of that name.
        """
        return cls(scenario(name), Simulators(entries()[name]), apart=apart)

    def call(self, call: str, key: str, tool: str, arguments: dict[str, Any], effect: str) -> str:
        """Applies a call."""
        if effect == "idempotent" and key in self.results:
            return self.results[key]
        result = self.simulators.call(tool, arguments)
        self.log.append({"call": call, "key": key, "tool": tool, "arguments": arguments, "effect": effect})
        if key:
            self.results[key] = result
        return result

    def pause(self, tool: str, arguments: dict[str, Any]) -> float:
        """Seconds for which the answer to a call that was applied is held back."""
        return self.apart * next((call.index for call in self.scenario.calls if call.same(tool, arguments)), 0)

    def answer(self, position: int) -> dict[str, Any]:
        """What the model says to a request.

        Raises:
            IndexError: The conversation is over before it.
        """
        said = list(_said(self.scenario))[position]
        self.asked[position] += 1
        return said

    def duplicates(self) -> int:
        """Changing calls beyond those of the ground truth."""
        left = list(self.scenario.calls)
        beyond = 0
        for made in self.log:
            found = next((call for call in left if call.same(made["tool"], made["arguments"])), None)
            if found is not None:
                left.remove(found)
            elif made["tool"] in CHANGING:
                beyond += 1
        return beyond

    def verdict(self) -> dict[str, Any]:
        """What has become of it."""
        state = self.simulators.digest()
        return {
            "state": state,
            "expected": self.scenario.final_state,
            "right": state == self.scenario.final_state,
            "log": self.log,
            "duplicates": self.duplicates(),
            "paid_twice": sum(count - 1 for count in self.asked.values()),
        }


def _said(told: Scenario) -> list[dict[str, Any]]:
    """What the model says, request by request: a turn's steps, then its answer."""
    said: list[dict[str, Any]] = []
    for number, turn in enumerate(told.turns):
        for step in turn.steps:
            said.append(
                {"calls": [{"id": call.position, "name": call.tool, "arguments": call.arguments} for call in step]}
            )
        said.append({"answer": f"Request {number + 1} is done."})
    return said


class CrashServer:
    """Answers requests. All of it runs on one event loop, so calls are applied one at a time."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Conversation] = {}
        """By place and scenario."""

    def application(self) -> web.Application:
        """The paths."""
        made = web.Application()
        made.add_routes(
            [
                web.post("/{place:(.*/)?}begin", self._begin),
                web.post("/{place:(.*/)?}call", self._call),
                web.post("/{place:(.*/)?}asked", self._asked),
                web.post("/{place:(.*/)?}model", self._model),
                web.get("/{place:(.*/)?}verdict", self._verdict),
                web.get("/{place:(.*/)?}scenarios", self._scenarios),
                web.get("/{place:(.*/)?}scenario", self._scenario),
            ]
        )
        return made

    def _find(self, request: web.Request, name: str) -> Conversation:
        found = self._open.get((request.match_info["place"], name))
        if found is None:
            raise web.HTTPNotFound(text=f"scenario {name!r} was not begun: POST /begin first")
        return found

    async def _begin(self, request: web.Request) -> web.Response:
        given = await _body(request)
        name = given["scenario"]
        try:
            self._open[request.match_info["place"], name] = Conversation.begin(name, given.get("apart", 0.0))
        except KeyError as error:
            raise web.HTTPNotFound(text=f"there is no scenario {name!r}") from error
        return web.json_response({})

    async def _call(self, request: web.Request) -> web.Response:
        given = await _body(request)
        effect = given["effect"]
        if effect not in ("once", "idempotent", "pure"):
            raise web.HTTPBadRequest(text=f"effect={effect!r} must be 'once', 'idempotent' or 'pure'")
        conversation = self._find(request, given["scenario"])
        result = conversation.call(given["call"], given["key"], given["tool"], given["arguments"], effect)
        await asyncio.sleep(conversation.pause(given["tool"], given["arguments"]))
        return web.json_response({"result": result})

    async def _asked(self, request: web.Request) -> web.Response:
        given = await _body(request)
        results = self._find(request, given["scenario"]).results
        return web.json_response({"happened": given["key"] in results, "result": results.get(given["key"])})

    async def _model(self, request: web.Request) -> web.Response:
        given = await _body(request)
        try:
            return web.json_response(self._find(request, given["scenario"]).answer(given["position"]))
        except IndexError as error:
            raise web.HTTPBadRequest(text=f"position={given['position']!r} is after the conversation's end") from error

    async def _verdict(self, request: web.Request) -> web.Response:
        return web.json_response(self._find(request, request.query["scenario"]).verdict())

    async def _scenarios(self, _: web.Request) -> web.Response:
        return web.json_response(list(entries()))

    async def _scenario(self, request: web.Request) -> web.Response:
        try:
            told = scenario(request.query["id"])
        except KeyError as error:
            raise web.HTTPNotFound(text=f"there is no scenario {request.query['id']!r}") from error
        turns = [
            {
                "user": turn.user,
                "steps": [
                    [{"call": call.position, "name": call.tool, "arguments": call.arguments} for call in step]
                    for step in turn.steps
                ],
            }
            for turn in told.turns
        ]
        return web.json_response({"id": told.id, "turns": turns, "tools": list(told.tools)})


async def _body(request: web.Request) -> Any:
    try:
        return await request.json()
    except ConnectionResetError as error:  # its sender died before all of it was sent
        raise web.HTTPBadRequest(text="the request was cut off") from error


async def _serve(port: int, *, until_input_ends: bool) -> None:
    runner = web.AppRunner(CrashServer().application(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        host, bound = runner.addresses[0][:2]
        print(f"http://{host}:{bound}", flush=True)
        if until_input_ends:
            await asyncio.to_thread(sys.stdin.read)
        else:
            await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until the process is ended.

    Args:
        arguments: The command line; that of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crash.server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; a free one by default")
    parser.add_argument(
        "--until-input-ends",
        action="store_true",
        help="end with the standard input: with the process that has started it",
    )
    given = parser.parse_args(arguments)
    try:
        asyncio.run(_serve(given.port, until_input_ends=given.until_input_ends))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
