"""The yardstick's server as a rival's process sees it: the scripted model, and the tools that log each call.

Only the standard library: this runs in the environments of the rivals.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote, urlsplit

SECONDS = 30.0
"""Until a request to the server counts as failed."""


class Server:
    """The server at an address like `http://127.0.0.1:8000/place`; may be used from several threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._local = threading.local()

    def get(self, path: str) -> Any:
        return self._request("GET", path, None)

    def post(self, path: str, **body: Any) -> Any:
        return self._request("POST", path, json.dumps(body))

    def _request(self, method: str, path: str, body: str | None) -> Any:
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            parts = urlsplit(self.url)
            connection = self._local.connection = HTTPConnection(parts.hostname or "", parts.port, timeout=SECONDS)
        connection.request(method, urlsplit(self.url).path + path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        if response.status != 200:
            raise RuntimeError(f"{method} {path} said {response.status}: {text[:500]}")
        return json.loads(text)


@dataclass(frozen=True)
class Call:
    """A tool call that the model asked for."""

    position: str
    """Where the ground truth has it: `turn.step.index`. It is the model's id of the call, too."""

    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An answer of the scripted model: calls, or a text that ends the turn."""

    calls: tuple[Call, ...]
    text: str


class Scenario:
    """One conversation: what the user says in each turn, the tools, and the scripted model.

    Args:
        server: Where the scenario was begun.
        name: Its id.
    """

    def __init__(self, server: Server, name: str) -> None:
        found = server.get(f"/scenario?id={quote(name)}")
        self.name = name
        self.users: list[str] = [turn["user"] for turn in found["turns"]]
        self.tools: list[dict[str, Any]] = found["tools"]
        self.server = server
        self._effects = {tool["name"]: tool["effect"] for tool in self.tools}

    def ask(self, position: int) -> Reply:
        """The model's answer to a conversation that has `position` answers of it already."""
        said = self.server.post("/model", scenario=self.name, position=position)
        calls = tuple(Call(call["id"], call["name"], call["arguments"]) for call in said.get("calls", []))
        return Reply(calls, said.get("answer", ""))

    def call(self, call: Call) -> str:
        """Makes a tool call as frameworks make them: without a key."""
        said = self.server.post(
            "/call",
            scenario=self.name,
            call=call.position,
            key="",
            tool=call.tool,
            arguments=call.arguments,
            effect=self._effects[call.tool],
        )
        return str(said["result"])
