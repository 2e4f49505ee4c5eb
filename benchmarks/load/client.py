"""What a model request costs in our client, over raw aiohttp.

    python -m benchmarks.load.client --client ours|raw --url URL --calls N --in-flight N

makes so many requests and prints as JSON the milliseconds of each: of wall clock and of processor time.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import aiohttp
from pydantic import BaseModel, ConfigDict

from beam_agents.messages import ModelRequest, OutputSpec, SystemMessage, ToolSpec, UserMessage
from beam_agents.models.openai_chat import OpenAIModel
from benchmarks.load.ideal import first_body

IN_FLIGHT = (50, 400)
_ROOT = Path(__file__).resolve().parents[2]
_CALLS = 2_000
_CLIENTS = ("ours", "raw")


class Cost(BaseModel):
    """Of one request, in milliseconds."""

    model_config = ConfigDict(frozen=True)

    wall_ms: float
    cpu_ms: float


def measure(url: str, repeats: int) -> dict[str, float]:
    """The client's cost over raw aiohttp, both in turn and in processes of their own.

    Args:
        url: Base URL of a chat server that answers at once.
        repeats: Of each.
    """
    figures: dict[str, float] = {}
    for in_flight in IN_FLIGHT:
        costs: dict[str, list[Cost]] = {client: [] for client in _CLIENTS}
        for _ in range(repeats):
            for client in _CLIENTS:
                costs[client].append(_in_process(client, url, in_flight))
        for unit in ("wall_ms", "cpu_ms"):
            ours, raw = ([getattr(cost, unit) for cost in costs[client]] for client in _CLIENTS)
            over = median(one - other for one, other in zip(ours, raw, strict=True))
            figures |= {
                f"client_{unit}_{in_flight}": median(ours),
                f"raw_aiohttp_{unit}_{in_flight}": median(raw),
                f"client_{unit}_over_raw_aiohttp_{in_flight}": over,
            }
    # Of processor time, which others on the machine change less; the worse of the two.
    worst = max(figures[f"client_cpu_ms_over_raw_aiohttp_{in_flight}"] for in_flight in IN_FLIGHT)
    return {"client_ms_over_raw_aiohttp": worst} | figures


async def cost(client: str, url: str, calls: int, in_flight: int) -> Cost:
    """What a request costs, of `calls`, with `in_flight` at one time."""
    async with AsyncExitStack() as stack:
        ask = await (_ours(url, stack) if client == "ours" else _raw(url, stack))

        async def some(count: int) -> None:
            for _ in range(count):
                await ask()

        await asyncio.gather(*(some(1) for _ in range(in_flight)))  # opens the connections
        started, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*(some(calls // in_flight) for _ in range(in_flight)))
        made = calls // in_flight * in_flight
        return Cost(
            wall_ms=1_000 * (time.perf_counter() - started) / made,
            cpu_ms=1_000 * (time.process_time() - used) / made,
        )


async def _ours(url: str, stack: AsyncExitStack) -> Callable[[], Awaitable[object]]:
    model = OpenAIModel("mock", base_url=url)
    await model.connect()
    stack.push_async_callback(model.close)
    body = first_body("client")
    system, user = (message["content"] for message in body["messages"])
    tool, form = body["tools"][0]["function"], body["response_format"]["json_schema"]
    request = ModelRequest(
        messages=(SystemMessage(text=system), UserMessage(text=user)),
        tools=(ToolSpec(name=tool["name"], description=tool["description"], parameters=tool["parameters"]),),
        output=OutputSpec(name=form["name"], json_schema=form["schema"]),
    )
    return lambda: model.request(request)


async def _raw(url: str, stack: AsyncExitStack) -> Callable[[], Awaitable[object]]:
    session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
    body = first_body("client")

    async def ask() -> object:
        async with session.post(f"{url}/chat/completions", json=body) as answer:
            answer.raise_for_status()
            return await answer.json()

    return ask


def _in_process(client: str, url: str, in_flight: int) -> Cost:
    command = [sys.executable, "-m", "benchmarks.load.client", f"--client={client}", f"--url={url}"]
    command += [f"--calls={_CALLS}", f"--in-flight={in_flight}"]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, check=True, timeout=300)
    return Cost.model_validate_json(done.stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", choices=_CLIENTS, required=True)
    parser.add_argument("--url", required=True, help="base URL of the chat server")
    parser.add_argument("--calls", type=int, default=_CALLS)
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT[0])
    given = parser.parse_args(arguments)
    print(asyncio.run(cost(given.client, given.url, given.calls, given.in_flight)).model_dump_json())


if __name__ == "__main__":
    main()
