"""`mcp_tools`: the tools of an MCP server."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ValidationError, create_model
from pydantic_core import InitErrorDetails, PydanticCustomError, from_json

from beam_agents.codec import canonical_json, to_json_value
from beam_agents.context import RunContext
from beam_agents.errors import ConfigurationError
from beam_agents.messages import ToolSpec
from beam_agents.secrets import Secret
from beam_agents.toolkit.declared import Context, check_effect, check_limits, without_user
from beam_agents.toolkit.mcp_server import Listed, McpCall, McpServer
from beam_agents.tools import Effect, Tool


def mcp_tools(
    server: str | Sequence[str],
    *,
    effects: Mapping[str, Effect] | None = None,
    default_effect: Effect | None = None,
    only: Collection[str] | None = None,
    env: Mapping[str, str | Secret] | None = None,
    headers: Mapping[str, str | Secret] | None = None,
    errors_without_effect: bool = False,
    prefix: str = "",
    timeout: timedelta = timedelta(seconds=30),
    retries: int = 1,
    max_bytes: int = 1_000_000,
    model_retries: int = 2,
    in_flight: int | None = None,
    redact: Callable[[str], str] | None = None,
) -> list[Tool[Any]]:
    """The tools of an MCP server, for an agent.

    The server is asked for its tools here, where the pipeline is built; their schemas are part of the tools from then
    on, so that they are the same as long as a run lives. A worker compares them when it connects.

    Args:
        server: A command (`["python", "server.py"]`), which each worker starts, or the URL of an HTTP server.
        effects: What each tool's call means, by the tool's name: `pure`, `idempotent` or `once`.
        default_effect: For the tools that `effects` leaves out. Without it they are refused.
        only: The tools that are wanted; all by default.
        env: Environment variables for a command, besides the few that it always gets.
        headers: For a URL. A `Secret` is looked up in the worker.
        errors_without_effect: Whether an error that a tool of this server reports means that nothing was done. The
            model is then told of it and goes on, as it is of the errors of `pure` tools. Otherwise such a call fails:
            an `idempotent` one is made again, a `once` one is in doubt.
        prefix: Goes before the names that the model sees, where tools of several servers share one.
        timeout: For one call, and for a server to start and list its tools.
        retries: Further calls of `pure` and `idempotent` tools when the server died; it is started again.
        max_bytes: The longest result.
        model_retries, in_flight, redact: As in `@tool`, for each tool.

    Raises:
        ConfigurationError: The server cannot be asked, or a tool has no effect declared.
    """
    kind = f"mcp_tools {without_user(server)}"
    effects = effects or {}
    for name, effect in effects.items():
        check_effect(f"{kind}: {name!r}", effect)
    if default_effect is not None:
        check_effect(kind, default_effect)
    check_limits(kind, timeout=timeout, max_bytes=max_bytes)
    if isinstance(only, str):
        raise ConfigurationError(f"{kind}: only={only!r} must be a list of names")
    connected = McpServer(kind, server, env=env or {}, headers=headers or {}, seconds=timeout.total_seconds())
    listed = _ask(kind, connected)
    unknown = sorted((set(effects) | set(only or ())) - listed.keys())
    if unknown:
        raise ConfigurationError(
            f"{kind} has no tool {', '.join(map(repr, unknown))}; there is: {', '.join(sorted(listed)) or 'none'}"
        )
    wanted = {name: one for name, one in listed.items() if only is None or name in only}
    undeclared = sorted(name for name in wanted if name not in effects)
    if undeclared and default_effect is None:
        raise ConfigurationError(
            f"{kind}: declare what calling these again means, in effects={{name: 'pure', 'idempotent' or 'once'}}: "
            f"{', '.join(map(repr, undeclared))}; or leave them out with only=[...]"
        )
    connected.pin(wanted.values())
    declared: dict[str, Effect | None] = {**dict.fromkeys(wanted, default_effect), **effects}
    tools: list[Tool[Any]] = []
    for name, one in wanted.items():
        meaning = declared[name]
        assert meaning is not None
        call = McpCall(connected, one.name, meaning, max_bytes=max_bytes, told=errors_without_effect)
        tools.append(
            McpTool(
                call,
                one,
                effect=meaning,
                timeout=timeout,
                retries=0 if meaning == "once" else retries,
                model_retries=model_retries,
                in_flight=in_flight,
                name=prefix + name,
                redact=redact,
            )
        )
    return tools


class McpTool(Tool[Any]):
    """A tool whose schema is its server's."""

    def __init__(self, call: McpCall, listed: Listed, **declaration: Any) -> None:
        self._listed = listed
        self._call = call
        super().__init__(_by_its_server, description=listed.description, **declaration)

    @cached_property
    def spec(self) -> ToolSpec:
        """The tool as a model sees it."""
        return ToolSpec(name=self.name, description=self.description, parameters=self._listed.schema)

    @cached_property
    def _arguments(self) -> type[BaseModel]:
        return create_model(f"{self.name}_arguments")

    def arguments_from(self, arguments: str | dict[str, Any]) -> dict[str, Any]:
        """Arguments, checked against the server's schema, as plain JSON data.

        Raises:
            pydantic.ValidationError: They do not fit it, or are no JSON.
        """
        try:
            plain = from_json(arguments or "{}") if isinstance(arguments, str) else arguments
            plain = to_json_value(plain)
        except ValueError as error:
            raise self._wrong([((), str(error), arguments)]) from error
        import jsonschema  # type: ignore[import-untyped]  # the mcp package brings it

        checker = jsonschema.validators.validator_for(self._listed.schema, jsonschema.Draft202012Validator)
        try:
            errors = list(checker(self._listed.schema).iter_errors(plain))
        except re.error:  # a pattern of another language's, which the server checks itself
            errors = []
        found = sorted(errors, key=lambda error: list(map(str, error.path)))
        if found or not isinstance(plain, dict):
            wrong = [(tuple(error.absolute_path), error.message, error.instance) for error in found]
            raise self._wrong(wrong or [((), "must be a JSON object", plain)])
        return plain

    def invoke(self, function: Callable[..., Any], context: Context, arguments: dict[str, Any]) -> Any:
        """Calls the server's tool with journaled arguments."""
        return self._call(context, arguments)

    def _wrong(self, errors: list[tuple[tuple[Any, ...], str, Any]]) -> ValidationError:
        details = [
            InitErrorDetails(type=PydanticCustomError("schema", "{why}", {"why": why}), loc=loc, input=value)
            for loc, why, value in errors
        ]
        return ValidationError.from_exception_data(self.name, details)


async def _by_its_server(context: RunContext[Any, Any, Any]) -> Any:
    raise NotImplementedError("a tool of an MCP server is called by an agent or by ctx.call")


def _ask(kind: str, server: McpServer) -> dict[str, Listed]:
    """The server's tools. On a loop of its own, since the caller's may be running."""
    found: dict[str, Listed] = {}
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.update(asyncio.run(server.listed()))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="beam-agents-mcp", daemon=True)
    thread.start()
    thread.join()
    if failed:
        if isinstance(failed[0], ConfigurationError):
            raise failed[0]
        raise ConfigurationError(
            f"{kind}: the server cannot be asked for its tools: {server.clean(failed[0])}; "
            "it must run where the pipeline is built, too"
        )
    for name, one in found.items():
        canonical_json(one.schema)
        if not name:
            raise ConfigurationError(f"{kind}: a tool of the server has no name")
    return found
