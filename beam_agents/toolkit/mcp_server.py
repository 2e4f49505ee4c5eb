"""An MCP server as a worker uses it: one session on the worker's loop, opened again when it is lost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beam_agents.codec import canonical_json, digest, named
from beam_agents.engine.threads import in_thread
from beam_agents.errors import BeamAgentsError, ConfigurationError, ModelRetry, NotCalled, ToolFailed
from beam_agents.secrets import Secret, conceal, conceal_in, reveal
from beam_agents.toolkit.declared import Context, Lost
from beam_agents.toolkit.http_request import check_headers
from beam_agents.toolkit.kept import Kept
from beam_agents.tools import Effect

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult

META_KEY = "beam-agents/idempotency-key"
"""Under this name in `_meta` the server gets the call's key."""

_INVALID_PARAMS = -32602
_METHOD_NOT_FOUND = -32601
_INTERNAL = -32603
_SESSION_LOST = (-32000, -32600)  # the connection was closed; an HTTP server does not know the session any more
_PAGES = 100


class McpError(BeamAgentsError):
    """A call failed, or nobody knows what became of it."""


@dataclass(frozen=True)
class Session:
    """A session with a server."""

    client: Client
    hidden: tuple[str, ...]
    """The values of the secrets that it was given."""


@dataclass(frozen=True)
class Listed:
    """A tool as its server describes it."""

    name: str
    description: str
    schema: dict[str, Any]


class McpServer:
    """A server that is a command or a URL. It is pickled as that, with the tools that were pinned.

    Raises:
        ConfigurationError: It is neither, or the mcp package is not installed.
    """

    def __init__(
        self,
        kind: str,
        server: str | Sequence[str],
        *,
        env: Mapping[str, str | Secret],
        headers: Mapping[str, str | Secret],
        seconds: float,
    ) -> None:
        try:
            import mcp  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                f"mcp_tools needs the mcp package, which cannot be imported ({error}): pip install 'beam-agents[mcp]'"
            ) from error
        self._url, self._command = "", []
        if isinstance(server, str):
            if not re.match(r"https?://[^/?#@\s]+", server) or re.match(r"https?://[^/]*@", server):
                raise ConfigurationError(
                    f"{kind}: give the URL of an HTTP server without a user, or a command as a list of words"
                )
            self._url = server
        else:
            self._command = [str(word) for word in server]
        if not self._url and not self._command:
            raise ConfigurationError(f"{kind}: the command is empty")
        if env and self._url:
            raise ConfigurationError(f"{kind}: env is for servers that are commands; drop it")
        if headers and self._command:
            raise ConfigurationError(f"{kind}: headers are for servers that are URLs; drop them")
        if self._url.startswith("http:") and any(isinstance(value, Secret) for value in headers.values()):
            host = re.sub(r":\d+$", "", self._url[7:].split("/")[0])
            if host not in ("localhost", "127.0.0.1", "[::1]"):
                raise ConfigurationError(f"{kind}: a secret header would be sent in clear; use https")
        self._kind = kind
        self._env, self._headers = dict(env), check_headers(kind, headers)
        self._seconds = seconds
        self._pinned: dict[str, str] = {}
        self.remote = bool(self._url)
        self.kept: Kept[Session] = Kept(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return _server, (
            self._kind,
            self._url or self._command,
            self._env,
            self._headers,
            self._seconds,
            self._pinned,
        )

    def pin(self, tools: Iterable[Listed]) -> None:
        """Notes what the tools are like, for workers to compare."""
        self._pinned = {one.name: _form(one.schema) for one in tools}

    async def listed(self) -> dict[str, Listed]:
        """The server's tools by name, from a session for this alone."""
        async with asyncio.timeout(self._seconds), self._session() as session:
            return await _tools(session.client)

    async def revive(self) -> None:
        """Drops the session if its server has died meanwhile: to find that out by a call would leave it in doubt."""
        async with self.kept.use() as session:
            try:
                await session.client.list_tools()
            except Exception:
                self.kept.drop(session)

    def clean(self, error: BaseException) -> str:
        """What an error says, without the values of secrets."""
        while isinstance(error, BaseExceptionGroup):  # anyio's task groups wrap what happened
            error = error.exceptions[0]
        if isinstance(error, TimeoutError):
            return f"it did not answer in {self._seconds:g} s"
        try:
            hidden = [reveal(value) for value in (self._env | self._headers).values() if isinstance(value, Secret)]
        except ConfigurationError as missing:
            return str(missing)
        return conceal(named(error), hidden)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Session]:
        """A session whose tools are those that were pinned."""
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._seconds):
                session = await stack.enter_async_context(self._session())
                listed = await _tools(session.client)
            for name, form in self._pinned.items():
                if name not in listed:
                    raise NotCalled(f"the server has no tool {name!r} any more; build the pipeline anew")
                if _form(listed[name].schema) != form:
                    raise NotCalled(
                        f"the schema of tool {name!r} has changed since the pipeline was built; build it anew, and "
                        "raise the agent's revision if runs are open"
                    )
            yield session

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        from mcp import Client, StdioServerParameters

        env = await in_thread(_revealed, self._env)
        headers = await in_thread(_revealed, self._headers)
        async with AsyncExitStack() as stack:
            server: Any
            if self._command:
                command, *words = self._command
                server = StdioServerParameters(command=command, args=words, env=env)
            else:
                import httpx2
                from mcp.client.streamable_http import streamable_http_client

                limit = httpx2.Timeout(self._seconds, read=None)
                http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=limit))
                server = streamable_http_client(self._url, http_client=http)
            given = self._env | self._headers
            hidden = [(env | headers)[name] for name, value in given.items() if isinstance(value, Secret)]
            yield Session(await stack.enter_async_context(Client(server, cache=None)), tuple(hidden))


class McpCall:
    """Calls one tool of a server; it can be pickled."""

    def __init__(self, server: McpServer, name: str, effect: Effect, *, max_bytes: int, told: bool) -> None:
        self._server = server
        self._name = name
        self._max_bytes = max_bytes
        self._told = told or effect == "pure"
        self._once = effect == "once"

    async def __call__(self, ctx: Context, arguments: dict[str, Any]) -> Any:
        """Makes the call.

        Raises:
            ModelRetry: The server refuses the arguments.
            ToolFailed: The tool says that it failed, and nothing was done.
            NotCalled: The server cannot be reached, or its tools are other ones now.
            McpError: Anything else; the call may have had its effect.
        """
        connected = False
        try:
            if self._once:
                await self._server.revive()
            async with self._server.kept.use() as session:
                connected = True
                result = await self._asked(session, arguments, ctx.idempotency_key)
        except (ModelRetry, NotCalled, McpError):
            raise
        except Exception as error:
            why = await in_thread(self._server.clean, error)
            if not connected:
                raise NotCalled(f"the MCP server cannot be reached: {why}") from None
            raise McpError(f"the MCP server did not answer: {why}") from None
        value = conceal_in(_value(result), session.hidden)
        written = canonical_json(value)
        if result.is_error:
            text = (value if isinstance(value, str) else written)[: self._max_bytes]
            if self._told:
                raise ToolFailed(text)
            raise McpError(f"it says: {text}")
        if len(written.encode()) > self._max_bytes:
            return Lost(f"a result of more than {self._max_bytes} bytes, see max_bytes")
        return value

    async def _asked(self, session: Session, arguments: dict[str, Any], key: str) -> CallToolResult:
        from mcp import MCPError

        meta: Any = {META_KEY: key}
        try:
            return await session.client.call_tool(self._name, arguments, meta=meta)
        except MCPError as error:
            why = conceal(error.message, session.hidden)
            if error.code == _INVALID_PARAMS:
                raise ModelRetry(f"the server refuses the arguments: {why}") from None
            if error.code == _METHOD_NOT_FOUND:
                raise NotCalled(f"the server cannot be asked for this: {why}") from None
            # A server tells so of a token that was changed, which is looked up again for the next session.
            if error.code in _SESSION_LOST or (error.code == _INTERNAL and self._server.remote):
                self._server.kept.drop(session)
            raise McpError(f"the server answered with error {error.code}: {why}") from None
        except Exception:
            self._server.kept.drop(session)
            raise


async def _tools(client: Client) -> dict[str, Listed]:
    found: dict[str, Listed] = {}
    cursor: str | None = None
    for _ in range(_PAGES):
        page = await client.list_tools(cursor=cursor)
        for one in page.tools:
            found[one.name] = Listed(one.name, one.description or "", one.input_schema)
        cursor = page.next_cursor
        if not cursor:
            return found
    raise McpError(f"the server lists more than {_PAGES} pages of tools")


def _value(result: CallToolResult) -> Any:
    """A result as JSON data: what is structured, a single text as it is, or the list of all parts."""
    if result.structured_content is not None:
        return result.structured_content
    parts = [part.model_dump(mode="json", by_alias=True, exclude_none=True) for part in result.content]
    if len(parts) == 1 and parts[0].get("type") == "text":
        return parts[0]["text"]
    return parts


def _form(schema: dict[str, Any]) -> str:
    return digest(canonical_json(schema))


def _revealed(values: Mapping[str, str | Secret]) -> dict[str, str]:
    return {name: reveal(value) for name, value in values.items()}


def _server(
    kind: str,
    server: str | Sequence[str],
    env: Mapping[str, str | Secret],
    headers: Mapping[str, str | Secret],
    seconds: float,
    pinned: dict[str, str],
) -> McpServer:
    made = McpServer(kind, server, env=env, headers=headers, seconds=seconds)
    made._pinned = pinned
    return made
