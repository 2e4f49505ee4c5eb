"""The back office as a process: it does what it is asked, and logs each call, on the disk before it answers.

    python -m benchmarks.comparison.office --log FILE --hold 40 120

prints its URL and serves until it is ended. The answer to an effect call whose number is in `--hold` is held back until
the client is gone: that is the moment at which the driver kills.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel

_HOLD_SECONDS = 20.0


class OfficeCall(BaseModel):
    """A line of the log: a call as it arrived."""

    tool: Literal["account", "refund", "route"]
    customer: str
    reference: str = ""
    """The message's; a look-up has none."""
    key: str = ""
    """The idempotency key, if there was one."""
    made: bool
    """Whether it had an effect: not so for a look-up, and for a key that is known."""
    at: float
    """Seconds since 1970."""


class BackOffice:
    """What the handlers know.

    Args:
        log: The file.
        hold: Numbers of effect calls, from 1, whose answers are held back.
    """

    def __init__(self, log: Path, hold: Sequence[int]) -> None:
        self._log = log.open("a")
        self._hold = frozenset(hold)
        self._calls = 0
        self._done: dict[str, str] = {}
        self._cancelled: set[tuple[str, int]] = set()

    async def account(self, request: web.Request) -> web.Response:
        """Looks an account up."""
        asked = await request.json()
        self._record(tool="account", customer=asked["customer"], made=False)
        return web.json_response({"customer": asked["customer"], "name": "Ada", "plan": "standard", "orders": 3})

    async def effect(self, request: web.Request) -> web.Response:
        """Refunds, or routes to a person."""
        asked = await request.json()
        key, tool = asked["key"], request.path.removeprefix("/")
        if (key, asked.get("attempt", 0)) in self._cancelled:
            raise web.HTTPGone(text="this attempt was cancelled")
        self._calls += 1
        number = self._calls
        receipt = self._done.get(key) if key else None
        self._record(tool=tool, customer=asked["customer"], reference=asked["reference"], key=key, made=receipt is None)
        if receipt is None:
            receipt = f"{'R' if tool == 'refund' else 'T'}-{number}"
            if key:
                self._done[key] = receipt
        if number in self._hold:
            await asyncio.sleep(_HOLD_SECONDS)
        return web.Response(text=receipt)

    async def find(self, request: web.Request) -> web.Response:
        """Says what was done under a key, or sees to it that the attempt does nothing any more."""
        asked = await request.json()
        if asked["key"] not in self._done:
            self._cancelled.add((asked["key"], asked["attempt"]))
        return web.Response(text=self._done.get(asked["key"], ""))

    def _record(self, **call: Any) -> None:
        self._log.write(OfficeCall(at=time.time(), **call).model_dump_json() + "\n")
        self._log.flush()
        os.fsync(self._log.fileno())


async def serve(log: Path, hold: Sequence[int]) -> None:
    """Serves for ever."""
    office = BackOffice(log, hold)
    app = web.Application()
    app.add_routes(
        [
            web.post("/account", office.account),
            web.post("/refund", office.effect),
            web.post("/route", office.effect),
            web.post("/find", office.find),
        ]
    )
    # A client that is gone ends the wait.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--log", type=Path, required=True)
    made.add_argument("--hold", type=int, nargs="*", default=())
    given = made.parse_args(argv)
    asyncio.run(serve(given.log, given.hold))


if __name__ == "__main__":
    main()
