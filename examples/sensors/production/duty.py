"""Those who are on duty: a program that takes webhooks, and its table, where a request is known by its key.

python -m examples.sensors.production.duty --port=8090

It connects to the database in DUTY_URL. What is posted again finds its row: `times` counts it. A request is answered
when it is in the table; while the database is away the answer is 503, and the sender posts again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import psycopg
from psycopg.types.json import Jsonb

from beam_agents.secrets import EnvSecret

DUTY = EnvSecret("DUTY_URL")
"""The program's database."""
NAME = "On duty"
"""Of the program."""

_TABLE = """
CREATE TABLE received (
    key TEXT PRIMARY KEY, number BIGINT GENERATED ALWAYS AS IDENTITY, path TEXT NOT NULL, body JSONB NOT NULL,
    times INTEGER NOT NULL DEFAULT 1
)
"""
_TAKE = """
INSERT INTO received (key, path, body) VALUES (%s, %s, %s) ON CONFLICT (key) DO UPDATE SET times = received.times + 1
"""


class Received(NamedTuple):
    """A request that came."""

    number: int
    key: str
    """Its `Idempotency-Key`."""
    path: str
    body: dict[str, Any]
    times: int


def make_duty(url: str) -> None:
    """Makes the table.

    Args:
        url: Of an empty database.
    """
    with psycopg.connect(url) as database:
        database.execute(_TABLE)


def take(url: str, key: str, path: str, body: Any) -> None:
    """Enters a request, or counts it if it is there."""
    with psycopg.connect(url, connect_timeout=5) as database:
        database.execute(_TAKE, (key, path, Jsonb(body)))


def received(url: str, behind: int = 0) -> list[Received]:
    """What came, the oldest first.

    Args:
        url: The database.
        behind: Leaves out what has this number, or a smaller one.
    """
    query = "SELECT number, key, path, body, times FROM received WHERE number > %s ORDER BY number"
    with psycopg.connect(url, connect_timeout=5) as database:
        return [Received(*row) for row in database.execute(query, (behind,))]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = self.headers.get("Idempotency-Key")
        if not key:
            self._answer(400)
            return
        try:
            take(DUTY.reveal(), key, self.path, json.loads(text))
        except ValueError:
            self._answer(400)
        except psycopg.OperationalError:
            self._answer(503)
        else:
            self._answer(202)

    def log_message(self, format: str, *values: object) -> None:
        """Nothing: the table says it all."""

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; serves until it is ended."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--port", metavar="PORT", type=int, required=True, help="on loopback")
    ThreadingHTTPServer(("127.0.0.1", made.parse_args(argv).port), _Handler).serve_forever()


if __name__ == "__main__":
    main()
