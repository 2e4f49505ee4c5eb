"""A chat server that costs little: a process of its own, with a latency that can be changed, which counts.

    python -m benchmarks.load.server [--port N]

prints its base URL and serves until it is ended. A request with tools that has no tool result yet gets a call of the
first tool, any other an answer. `GET /stats` has the counts; `POST /reset?latency=2&spread=0.5` begins to count anew
and sets how long answers take: 2 seconds, evenly 50 % up or down.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from beam_agents.testing.chat_server import completion, schema_reply

ROOT = Path(__file__).resolve().parents[2]
_RESULT = b'"role":"tool"', b'"role": "tool"'
_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"


class Counter:
    """Answers and counts.

    Answers are made once for each set of tools and form of answer, and then are the same bytes.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[Any, ...], bytes] = {}
        self._random = random.Random(0)
        self.reset(0.0, 0.0)

    def reset(self, latency: float, spread: float) -> None:
        """Begins to count anew; answers take `latency` seconds, 1 - `spread` to 1 + `spread` times."""
        self._latency, self._spread = latency, spread
        self.calls = self.in_flight = self.most_in_flight = 0

    def begin(self) -> float:
        """Counts a call; the seconds that its answer takes."""
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return self._latency * (1 + self._random.uniform(-self._spread, self._spread))

    def end(self) -> None:
        """Counts that a call is over."""
        self.in_flight -= 1

    def stats(self) -> bytes:
        """The counts as JSON."""
        return json.dumps(
            {"calls": self.calls, "in_flight": self.in_flight, "most_in_flight": self.most_in_flight}
        ).encode()

    def answer(self, raw: bytes) -> bytes:
        """The body of the answer to a request's body."""
        body: dict[str, Any] = json.loads(raw)
        tools = tuple(tool["function"]["name"] for tool in body.get("tools") or ())
        form = body.get("response_format", {}).get("json_schema", {}).get("name")
        kind = tools, form, any(mark in raw for mark in _RESULT)
        if kind not in self._answers:
            self._answers[kind] = json.dumps(completion(schema_reply(body), body)).encode()
        return self._answers[kind]


class Exchange(asyncio.Protocol):
    """A connection: HTTP/1.1 as far as chat clients speak it. A web framework would cost more than the clients."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._buffer = b""
        self._number = 0
        self._waiting: dict[int, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        """Drops the answers that nobody waits for any more."""
        for handle in self._waiting.values():
            handle.cancel()
            self._counter.end()
        self._waiting = {}

    def data_received(self, data: bytes) -> None:
        """Takes the requests that are complete."""
        self._buffer += data
        while (end := self._buffer.find(_HEAD)) >= 0:
            head = self._buffer[:end]
            body_from = end + len(_HEAD)
            lower = head.lower()
            at = lower.find(_LENGTH)
            if at < 0 and b"transfer-encoding:" in lower:
                self._write(b"a Content-Length is needed", b"411 Length Required")
                self._transport.close()
                return
            length = int(lower[at + len(_LENGTH) :].partition(b"\r\n")[0]) if at >= 0 else 0
            if len(self._buffer) < body_from + length:
                return
            body = self._buffer[body_from : body_from + length]
            self._buffer = self._buffer[body_from + length :]
            self._take(head.split(b" ", 2)[1].decode(), body)

    def _take(self, target: str, body: bytes) -> None:
        url = urlsplit(target)
        if url.path.endswith("/chat/completions"):
            seconds = self._counter.begin()
            answer = self._counter.answer(body)
            if not seconds:
                self._counter.end()
                self._write(answer)
                return
            self._number += 1
            loop = asyncio.get_running_loop()
            self._waiting[self._number] = loop.call_later(seconds, self._complete, self._number, answer)
            return
        if url.path == "/reset":
            asked = dict(parse_qsl(url.query))
            self._counter.reset(float(asked.get("latency", 0)), float(asked.get("spread", 0)))
        self._write(self._counter.stats())

    def _complete(self, number: int, answer: bytes) -> None:
        del self._waiting[number]
        self._counter.end()
        self._write(answer)

    def _write(self, body: bytes, status: bytes = b"200 OK") -> None:
        self._transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
        )


@dataclass(frozen=True)
class Stats:
    """What a server has counted since its last reset."""

    calls: int
    in_flight: int
    most_in_flight: int


@dataclass(frozen=True)
class ChatServer:
    """A server that runs."""

    base_url: str
    """For clients: `http://127.0.0.1:PORT/v1`."""

    def stats(self) -> Stats:
        """What it has counted since the last reset."""
        return self._ask("/stats")

    def reset(self, latency: float = 0.0, spread: float = 0.0) -> None:
        """Begins to count anew.

        Args:
            latency: Seconds that each answer takes.
            spread: How far that varies: 0.5 is 50 % up or down, evenly.
        """
        self._ask(f"/reset?latency={latency}&spread={spread}", "POST")

    def _ask(self, path: str, method: str = "GET") -> Stats:
        request = urllib.request.Request(self.base_url.removesuffix("/v1") + path, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return Stats(**json.load(answer))


@contextmanager
def running_server() -> Iterator[ChatServer]:
    """A server in a process of its own, on a free port."""
    command = [sys.executable, "-m", "benchmarks.load.server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError("the chat server did not start")
            yield ChatServer(url)
        finally:
            process.terminate()


async def serve(port: int) -> None:
    """Serves for ever."""
    counter = Counter()
    server = await asyncio.get_running_loop().create_server(
        lambda: Exchange(counter), "127.0.0.1", port, backlog=16_384
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; a free one by default")
    asyncio.run(serve(parser.parse_args(arguments).port))


if __name__ == "__main__":
    main()
