"""What all agents have: types, state, tools, dependencies, and how they are run."""

from __future__ import annotations

import asyncio
import copy
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from pydantic import JsonValue

from beam_agents.budget import Budget
from beam_agents.codec import adapter, canonical_json, digest, dump, key_text, load, recall, shown, to_json_value, told
from beam_agents.context import RunContext
from beam_agents.errors import ConfigurationError, RunFailed, StateMismatch
from beam_agents.events import RunResult
from beam_agents.history import History
from beam_agents.ledger.base import Ledger
from beam_agents.ledger.memory import EphemeralLedger
from beam_agents.ledger.records import RunKey
from beam_agents.ledger.urls import ledger_from
from beam_agents.messages import ModelSettings
from beam_agents.models.base import Model
from beam_agents.models.network import network_models_forbidden
from beam_agents.models.resolve import resolve_model
from beam_agents.output import Output
from beam_agents.tools import Tool

EventT = TypeVar("EventT")
OutputT = TypeVar("OutputT")
StateT = TypeVar("StateT")
DepsT = TypeVar("DepsT")


@dataclass(frozen=True)
class HeldDeps(Generic[DepsT]):
    """What an agent's `deps` made in a worker process."""

    value: DepsT
    """What tools get as `ctx.deps`."""
    close: Callable[[], Any]
    """Leaves the context manager, or else closes what has a `close`."""


def _nothing_to_close() -> None:
    """For dependencies without an end."""


def _object_or_text(text: str) -> Any:
    try:
        found = load(Any, text)
    except ValueError:
        return text
    return found if isinstance(found, (dict, list)) else text


class AgentBase(ABC, Generic[EventT, OutputT, StateT, DepsT]):
    """What both kinds of agents share. See `Agent` for the arguments."""

    def __init__(
        self,
        name: str,
        *,
        model: str | Model | None = None,
        tools: Sequence[Tool[Any]] = (),
        event_type: Any = Any,
        output_type: Any = str,
        state_type: type[StateT] | None = None,
        on_event: Callable[[StateT, EventT], StateT] | None = None,
        skip: Callable[[StateT, EventT], OutputT | None] | None = None,
        deps: Callable[[], DepsT] | None = None,
        history: History | None = None,
        revision: int = 1,
        budget: Budget | None = None,
        settings: ModelSettings | None = None,
    ) -> None:
        self.name = name
        self.model = None if model is None else resolve_model(model)
        self.tools = tuple(tools)
        self.event_type = event_type
        self.output_type = output_type
        self.state_type = state_type
        self.on_event = on_event
        self.skip = skip
        self.deps = deps
        self.history = history or History()
        self.revision = revision
        self.budget = budget or Budget()
        self.settings = settings or ModelSettings()
        self._check()

    def _check(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise ConfigurationError(f"an agent's name must be a text that is not empty, not {self.name!r}")
        for tool in self.tools:
            if not isinstance(tool, Tool):
                raise ConfigurationError(
                    f"agent {self.name!r}: tools={tool!r} is not a tool: decorate the function with @tool(effect=...)"
                )
        names = [tool.name for tool in self.tools]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"agent {self.name!r}: two tools are named {name!r}; give one @tool(name=...)")
        if self.revision < 1:
            raise ConfigurationError(f"agent {self.name!r}: revision={self.revision!r} must be 1 or more")
        if self.on_event is not None and self.state_type is None:
            raise ConfigurationError(f"agent {self.name!r}: on_event needs state_type, the type of what it returns")
        try:
            adapter(self.event_type)
        except Exception as error:
            raise ConfigurationError(
                f"agent {self.name!r}: event_type={self.event_type!r}: pydantic cannot read events of it: {error}"
            ) from error
        Output.of(self.output_type)
        self.initial_state()
        if self.budget.cost_usd is not None and self.model is not None and self.model.price is None:
            warnings.warn(
                f"agent {self.name!r}: Budget(cost_usd={self.budget.cost_usd}) cannot be kept, since the price of "
                f"{self.model.name!r} is not known: give the model price=Price(input=..., output=...)",
                stacklevel=4,
            )

    @abstractmethod
    def body(self, context: RunContext[EventT, StateT, DepsT]) -> Coroutine[Any, Any, OutputT]:
        """The code of one run."""

    # ---- events, state, output: as types and as JSON ----

    def read_event(self, element: Any) -> EventT:
        """An element as an event: an instance of `event_type`, a dict, or JSON as text or bytes.

        Without an `event_type`, text that is no JSON object or array is an event as it is.

        Raises:
            ValueError: It is none of these.
        """
        if self.event_type is Any and isinstance(element, str):
            return cast(EventT, _object_or_text(element))
        if isinstance(element, (str, bytes)) and self.event_type is not str:
            return cast(EventT, load(self.event_type, element))
        return cast(EventT, adapter(self.event_type).validate_python(element, by_alias=True, by_name=True))

    def event_json(self, event: EventT) -> str:
        """An event as canonical JSON: the form that is digested and recorded.

        Raises:
            ValueError: JSON cannot hold it.
        """
        return canonical_json(dump(self.event_type, event))

    def read_event_json(self, text: str) -> EventT:
        """The event of a record, which an older release may have written.

        Raises:
            ValueError: It does not fit `event_type`; the message names the type and the field.
        """
        return cast(EventT, recall(self.event_type, text, "event"))

    def initial_state(self) -> StateT:
        """The state of a key before its first event."""
        if self.state_type is None:
            return cast(StateT, None)
        try:
            return self.state_type()
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"agent {self.name!r}: state_type={self.state_type.__name__} makes the first state of a key, so each "
                f"of its fields needs a default: {error}"
            ) from error

    def read_state(self, state: JsonValue) -> StateT:
        """A key's state from its JSON, which an older release may have written.

        Raises:
            StateMismatch: It does not fit `state_type`; the message names the type and the field.
        """
        if self.state_type is None:
            return cast(StateT, state)
        if state is None:
            return self.initial_state()
        try:
            return cast(StateT, recall(self.state_type, canonical_json(state), "state"))
        except ValueError as error:
            raise StateMismatch(
                f"the key's state does not fit {self.name!r}, state_type {error}. It is kept as it was: let "
                "state_type read what was written before (defaults for new fields, a validator with mode='before')"
            ) from error

    def dump_state(self, state: StateT) -> JsonValue:
        """A key's state as JSON.

        Raises:
            ValueError: It does not fit `state_type`, or JSON cannot hold it.
        """
        if self.state_type is None:
            return cast(JsonValue, to_json_value(state))
        checked = adapter(self.state_type).validate_python(state, by_alias=True, by_name=True)
        return dump(self.state_type, checked)

    def apply_event(self, state: JsonValue, event: EventT) -> JsonValue:
        """The state with the event taken in.

        Raises:
            StateMismatch: `state` does not fit `state_type`.
            ValueError: `on_event` returned what does not fit it.
            Exception: Whatever `on_event` raised.
        """
        if self.on_event is None:
            return state
        after = self.on_event(self.read_state(state), event)
        try:
            return self.dump_state(after)
        except ValueError as error:
            raise ValueError(
                f"on_event returned {shown(after)}, which cannot be the key's state: {told(error)}"
            ) from error

    def decide_without_model(self, state: JsonValue, event: EventT) -> OutputT | None:
        """What `skip` says."""
        return None if self.skip is None else self.skip(self.read_state(state), event)

    def dump_output(self, output: Any) -> JsonValue:
        """An output as JSON.

        Raises:
            ValueError: It does not fit `output_type`, or JSON cannot hold it.
        """
        checked = adapter(self.output_type).validate_python(output, by_alias=True, by_name=True)
        return dump(self.output_type, checked)

    def read_output(self, output: JsonValue) -> OutputT:
        """An output from its JSON, which an older release may have written.

        Raises:
            ValueError: It does not fit `output_type`; the message names the type and the field.
        """
        return cast(OutputT, recall(self.output_type, canonical_json(output), "output"))

    # ---- dependencies ----

    def hold_deps(self) -> HeldDeps[DepsT]:
        """Calls `deps`. What has a `close` is closed at the end (a connection's `with` is often a transaction, and
        leaves it open); another context manager is entered now and left at the end.
        """
        made: Any = None if self.deps is None else self.deps()
        close = getattr(made, "close", None)
        if callable(close):
            return HeldDeps(made, close)
        if hasattr(made, "__enter__") and hasattr(made, "__exit__"):
            stack = ExitStack()
            return HeldDeps(stack.enter_context(made), stack.close)
        return HeldDeps(made, _nothing_to_close)

    # ---- use without Beam ----

    @contextmanager
    def override(self, *, model: str | Model) -> Iterator[None]:
        """Uses another model while the block lasts: for tests. Pipelines built inside keep it."""
        before, self.model = self.model, resolve_model(model)
        try:
            yield
        finally:
            self.model = before

    async def run(
        self,
        event: EventT,
        *,
        key: Any = "key",
        event_id: str | None = None,
        model: str | Model | None = None,
        ledger: str | Ledger | None = None,
        scope: str | None = None,
    ) -> RunResult[EventT, OutputT]:
        """Handles one event without Beam.

        Args:
            event: The event, or what `event_type` can be read from.
            key: The key whose state and conversation it belongs to; kept between calls only by a ledger.
            event_id: Names the event; needed with a ledger, where the same id is not handled twice.
            model: Another model than the agent's.
            ledger: Where to record; in memory by default.
            scope: As for `RunAgent`.

        Raises:
            RunFailed: The run ended without an answer.
        """
        return await asyncio.to_thread(
            self.run_sync, event, key=key, event_id=event_id, model=model, ledger=ledger, scope=scope
        )

    def run_sync(
        self,
        event: EventT,
        *,
        key: Any = "key",
        event_id: str | None = None,
        model: str | Model | None = None,
        ledger: str | Ledger | None = None,
        scope: str | None = None,
    ) -> RunResult[EventT, OutputT]:
        """`run`, for code that is not asynchronous."""
        from beam_agents.engine.single import run_one

        agent = copy.copy(self)
        if model is not None:
            agent.model = resolve_model(model)
        if ledger is not None and not event_id:
            raise ConfigurationError("run with a ledger needs event_id=...: the ledger knows an event by its id")
        run_id = event_id or uuid.uuid4().hex
        text = agent.event_json(agent.read_event(event))
        opened = EphemeralLedger() if ledger is None else ledger_from(ledger)
        run = RunKey(scope or agent.name, agent.name, agent.revision, key_text(key), run_id)
        outcome = run_one(agent, opened, run, key, text, digest(text), network_forbidden=network_models_forbidden())
        if isinstance(outcome, RunResult):
            return outcome
        raise RunFailed(outcome)
