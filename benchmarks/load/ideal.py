"""The least that the calls of a burst take: raw aiohttp, two requests one after the other for each event.

    python -m benchmarks.load.ideal --url URL --events N

prints the seconds from the first request to the last answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

_ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT = aiohttp.ClientTimeout(total=300)


def first_body(name: str) -> dict[str, Any]:
    """The first request of an event, as the agent makes it."""
    parameters = {
        "type": "object",
        "properties": {"name": {"type": "string", "description": "Whom to look up."}},
        "required": ["name"],
        "additionalProperties": False,
    }
    function = {"name": "look_up", "description": "Looks a name up.", "parameters": parameters, "strict": True}
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    return {
        "model": "mock",
        "messages": [
            {"role": "system", "content": "Look the name of the event up, then say whether all is well."},
            {"role": "user", "content": json.dumps({"id": name, "burst": "ideal"})},
        ],
        "tools": [{"type": "function", "function": function}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "Verdict", "schema": schema, "strict": True},
        },
    }


def second_body(first: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The second request, with the call of the tool that the first was answered with, and its result."""
    message = answer["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "Smith is known"}
    return first | {"messages": [*first["messages"], message, result]}


async def burst(url: str, events: int) -> float:
    """Makes the calls of so many events at once; the seconds."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=_TIMEOUT) as session:

        async def ask(body: dict[str, Any]) -> dict[str, Any]:
            async with session.post(f"{url}/chat/completions", json=body) as answer:
                answer.raise_for_status()
                told: dict[str, Any] = await answer.json()
                return told

        async def event(number: int) -> None:
            first = first_body(f"ideal-{number:06}")
            await ask(second_body(first, await ask(first)))

        started = time.perf_counter()
        await asyncio.gather(*(event(number) for number in range(events)))
        return time.perf_counter() - started


def seconds(url: str, events: int) -> float:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load.ideal", f"--url={url}", f"--events={events}"]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    return float(done.stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="base URL of the chat server")
    parser.add_argument("--events", type=int, required=True)
    given = parser.parse_args(arguments)
    print(asyncio.run(burst(given.url, given.events)))


if __name__ == "__main__":
    main()
