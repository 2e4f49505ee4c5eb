"""The limits of a worker process, shared by all that its agents call."""

from __future__ import annotations

import inspect
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from beam_agents.engine.gate import Gate
from beam_agents.engine.limiter import Limiter
from beam_agents.errors import ConfigurationError, ModelError
from beam_agents.limits import ModelLimits
from beam_agents.models.base import Model
from beam_agents.models.fallback import FallbackModel
from beam_agents.tools import Tool

MODEL_CALLS = "BEAM_AGENTS_MODEL_CALLS"
"""Environment variable: how many model requests a worker process has under way at most, all models together."""

TOOL_CALLS = "BEAM_AGENTS_TOOL_CALLS"
"""The same for calls of tools that are async functions."""

TOOL_THREADS = "BEAM_AGENTS_TOOL_THREADS"
"""The same for calls of all other tools; each has a thread."""

_DEFAULTS = {MODEL_CALLS: 20_000, TOOL_CALLS: 20_000, TOOL_THREADS: 256}

_KEPT = 256
"""Limiters that a host remembers; code may make a model in each run."""


def _from_environment(variable: str) -> int:
    written = os.environ.get(variable)
    if written is None:
        return _DEFAULTS[variable]
    if not written.isdecimal() or int(written) < 1:
        raise ConfigurationError(f"environment variable {variable}={written!r}: set it to a number above zero")
    return int(written)


class _Itself:
    """Names an instance that shares limits with no other one, and holds it, so that its id is nothing else's."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other._model is self._model

    def __hash__(self) -> int:
        return id(self._model)


@dataclass(frozen=True, slots=True)
class _Known:
    """A model or tool with what bounds its calls, the narrowest first."""

    called: Any
    """Held, so that its id is nothing else's."""
    limiters: tuple[Limiter, ...]


class WorkerLimits:
    """What bounds all calls of a process.

    Args:
        model_calls: Model requests under way at one time; by default what the environment says.
        tool_calls: Calls of async tools.
        tool_threads: Calls of tools that have a thread.

    Raises:
        ConfigurationError: The environment has a value that is no number above zero.
    """

    def __init__(
        self, *, model_calls: int | None = None, tool_calls: int | None = None, tool_threads: int | None = None
    ) -> None:
        def all_of(name: str, most: int | None, variable: str) -> Limiter:
            return Limiter(name, ModelLimits(in_flight=_from_environment(variable) if most is None else most))

        self.models = all_of("all models", model_calls, MODEL_CALLS)
        self.async_tools = all_of("all async tools", tool_calls, TOOL_CALLS)
        self.thread_tools = all_of("all tools in threads", tool_threads, TOOL_THREADS)
        self._lock = threading.Lock()
        self._shared: WeakValueDictionary[Hashable, Limiter] = WeakValueDictionary()
        self._hosts: WeakSet[HostLimits] = WeakSet()

    def of_host(self, in_use: Callable[[], bool]) -> HostLimits:
        """The limits as one use of an agent sees them.

        Args:
            in_use: Whether the use goes on; one that has ended does not hold others to its limits.
        """
        host = HostLimits(self, in_use)
        with self._lock:
            self._hosts.add(host)
        return host

    def limiter(self, name: str, shared_as: Hashable, limits: ModelLimits, gate: Gate | None) -> Limiter:
        """The limiter of a model or a tool.

        Args:
            name: What it is, for log and errors.
            shared_as: Those with the same share a limiter.
            limits: How much.
            gate: Of a new limiter.

        Raises:
            ConfigurationError: Another agent of this process gives it other limits.
        """
        with self._lock:
            known = self._shared.get(shared_as)
            if known is not None and known.limits.agrees_with(limits):
                return known
            if known is not None and any(host.holds(known) for host in self._hosts):
                raise ConfigurationError(
                    f"{name} has {known.limits!r} in another agent of this worker process, and {limits!r} here: its "
                    "limits are shared by all agents of a process, so give the same everywhere"
                )
            made = self._shared[shared_as] = Limiter(name, limits, gate)
            return made


class HostLimits:
    """The limits of one use of an agent. Looking one up costs next to nothing.

    Args:
        worker: Those of the process.
        in_use: Whether the use goes on.
    """

    def __init__(self, worker: WorkerLimits, in_use: Callable[[], bool]) -> None:
        self._worker = worker
        self._in_use = in_use
        self._known: OrderedDict[int, _Known] = OrderedDict()

    def holds(self, limiter: Limiter) -> bool:
        """Whether this use goes on and has used that limiter."""
        return self._in_use() and any(limiter in known.limiters for known in list(self._known.values()))

    def check(self, model: Model | None, tools: Iterable[Tool[Any]]) -> None:
        """Looks up the limits of an agent's model and tools.

        Raises:
            ConfigurationError: Another agent of this process gives one of them other limits.
        """
        if model is not None:
            for member in model.models if isinstance(model, FallbackModel) else (model,):
                self.of_model(member)
        for tool in tools:
            self.of_tool(tool)

    def of_model(self, model: Model) -> tuple[Limiter, ...]:
        """What bounds the requests to a model.

        Raises:
            ConfigurationError: Another agent of this process gives it other limits.
        """
        known = self._known.get(id(model))
        if known is not None:
            self._known.move_to_end(id(model))
            return known.limiters
        shared_as = _Itself(model) if model.server is None else ("model", model.server)
        one = self._worker.limiter(f"model {model.name!r}", shared_as, model.limits, Gate())
        return self._keep(model, one, self._worker.models)

    def trouble(self, model: Model) -> ModelError | None:
        """Why a model is asked less at present."""
        gates = (limiter.gate for limiter in self.of_model(model))
        return next((gate.error for gate in gates if gate is not None and gate.error is not None), None)

    def of_tool(self, tool: Tool[Any]) -> tuple[Limiter, ...]:
        """What bounds the calls of a tool.

        Raises:
            ConfigurationError: Another agent of this process gives it another limit.
        """
        known = self._known.get(id(tool))
        if known is not None:
            self._known.move_to_end(id(tool))
            return known.limiters
        in_thread = not inspect.iscoroutinefunction(tool.function)
        everything = self._worker.thread_tools if in_thread else self._worker.async_tools
        if tool.in_flight is None:
            return self._keep(tool, everything)
        function = tool.function
        shared_as = ("tool", function.__module__, getattr(function, "__qualname__", ""), tool.name)
        one = self._worker.limiter(f"tool {tool.name!r}", shared_as, ModelLimits(in_flight=tool.in_flight), None)
        return self._keep(tool, one, everything)

    def _keep(self, called: Any, *limiters: Limiter) -> tuple[Limiter, ...]:
        self._known[id(called)] = _Known(called, limiters)
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return limiters
