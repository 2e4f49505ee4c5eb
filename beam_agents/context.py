"""What agent code is handed: the context of a run."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from datetime import timedelta
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, get_args, overload

from pydantic import BaseModel, ValidationError, create_model

from beam_agents.budget import Usage
from beam_agents.codec import adapter, to_json_value
from beam_agents.errors import ConfigurationError
from beam_agents.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    OutputSpec,
    SystemMessage,
    ToolSpec,
    UserMessage,
)

if TYPE_CHECKING:
    from beam_agents.models.base import Model
    from beam_agents.tools import Tool

EventT = TypeVar("EventT")
StateT = TypeVar("StateT")
DepsT = TypeVar("DepsT")
T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")


class RunPort(Protocol):
    """What the engine does for a context; user code never sees it."""

    transcript: list[Message]
    remembered: list[Message]
    emitted: list[Any]

    @property
    def usage(self) -> Usage: ...
    async def model(self, model: Model, request: ModelRequest) -> ModelResponse: ...
    async def call(self, tool: Tool[Any], arguments: dict[str, Any]) -> Any: ...
    async def gather(self, branches: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]: ...
    async def sleep(self, duration: timedelta) -> None: ...


class RunContext(Generic[EventT, StateT, DepsT]):
    """A run, as its tools and its workflow see it.

    The methods are for workflow code, which runs again from the top after a crash and gets the recorded
    outcomes: between two `await`s it must do nothing that is random, asks a clock or leaves the process. In a
    tool only the attributes are of use.
    """

    key: Any
    """The Beam key."""
    event: EventT
    state: StateT
    """The key's domain state, this event included. A workflow may assign a new value; it is kept when the run ends."""
    deps: DepsT
    """What the agent's `deps` made in this worker process."""
    run_id: str
    history: tuple[Message, ...]
    """The key's conversation before this run."""
    idempotency_key: str
    """In a tool: names this call, the same in every attempt of it. Hand it to the other side."""
    attempt: int
    """In a tool: 1 for the first attempt."""

    def __init__(
        self,
        *,
        key: Any,
        event: EventT,
        state: StateT,
        deps: DepsT,
        run_id: str,
        history: tuple[Message, ...] = (),
        model: Model | None = None,
        settings: ModelSettings | None = None,
        idempotency_key: str = "",
        attempt: int = 0,
        port: RunPort | None = None,
    ) -> None:
        self.key = key
        self.event = event
        self.state = state
        self.deps = deps
        self.run_id = run_id
        self.history = history
        self.idempotency_key = idempotency_key
        self.attempt = attempt
        self._model = model
        self._settings = settings or ModelSettings()
        self._port = port

    def for_call(self, idempotency_key: str, attempt: int) -> RunContext[EventT, StateT, DepsT]:
        """The context that one attempt of a tool call gets."""
        return RunContext(
            key=self.key,
            event=self.event,
            state=self.state,
            deps=self.deps,
            run_id=self.run_id,
            history=self.history,
            idempotency_key=idempotency_key,
            attempt=attempt,
        )

    @property
    def usage(self) -> Usage:
        """What the run has used so far."""
        return self._engine.usage

    @property
    def transcript(self) -> tuple[Message, ...]:
        """What was said in this run so far."""
        return tuple(self._engine.transcript)

    @property
    def _engine(self) -> RunPort:
        if self._port is None:
            raise RuntimeError("only a workflow can do this; a tool gets its context for the attributes alone")
        return self._port

    def say(self, *messages: Message, remember: bool = True) -> None:
        """Adds messages to the transcript and, with `remember`, to the key's history."""
        self._engine.transcript.extend(messages)
        if remember:
            self._engine.remembered.extend(messages)

    async def request(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        output: OutputSpec | None = None,
        model: Model | None = None,
        settings: ModelSettings | None = None,
    ) -> ModelResponse:
        """One model request, as it is: one step of the budget.

        Raises:
            ModelError: The model could not be asked, also after the settings' retries.
        """
        chosen = model or self._model
        if chosen is None:
            raise ConfigurationError("this workflow has no model: give @workflow(model=...) or request(model=...)")
        asked = ModelRequest(
            messages=tuple(messages), tools=tuple(tools), output=output, settings=settings or self._settings
        )
        return await self._engine.model(chosen, asked)

    @overload
    async def model(
        self,
        prompt: str,
        *,
        instructions: str | None = None,
        remember: bool = False,
        output_retries: int = 2,
        model: Model | None = None,
        settings: ModelSettings | None = None,
    ) -> str: ...
    @overload
    async def model(
        self,
        prompt: str,
        *,
        output_type: type[T],
        instructions: str | None = None,
        remember: bool = False,
        output_retries: int = 2,
        model: Model | None = None,
        settings: ModelSettings | None = None,
    ) -> T: ...
    async def model(
        self,
        prompt: str,
        *,
        output_type: Any = str,
        instructions: str | None = None,
        remember: bool = False,
        output_retries: int = 2,
        model: Model | None = None,
        settings: ModelSettings | None = None,
    ) -> Any:
        """Asks the model and returns its answer as `output_type`.

        Args:
            prompt: What to ask.
            output_type: Any type pydantic can validate; `str` for plain text.
            instructions: Standing instructions for this question.
            remember: Whether the model sees the key's history and the exchange becomes part of it.
            output_retries: How often a model whose answer does not fit is told what was wrong.
            model: Another model than the agent's.
            settings: Other settings than the agent's.

        Raises:
            InvalidOutput: The answer did not fit, also after the retries; ends the run unless caught.
            ModelError: The model could not be asked.
        """
        from beam_agents.output import Output  # output needs the context's siblings

        output = Output.of(output_type)
        head: list[Message] = [SystemMessage(text=instructions)] if instructions else []
        if remember:
            head.extend(self.history)
            head.extend(self._engine.remembered)
        exchange: list[Message] = [UserMessage(text=prompt)]
        self.say(exchange[0], remember=remember)
        for attempt in range(output_retries + 1):
            response = await self.request([*head, *exchange], output=output.spec, model=model, settings=settings)
            exchange.append(response.message)
            self.say(response.message, remember=remember)
            try:
                return output.read(response.message.text)
            except ValueError as error:
                if attempt == output_retries:
                    raise output.invalid(error) from error
                exchange.append(output.correction(error))
                self.say(exchange[-1], remember=remember)
        raise AssertionError("unreachable")

    async def extract(self, text: str, output_type: type[T], *, instructions: str | None = None) -> T:
        """What `text` says, as `output_type`."""
        return await self.model(
            text,
            output_type=output_type,
            instructions=instructions or "Extract the requested fields from the user's text. Do not invent values.",
        )

    async def classify(self, text: str, labels: Any, *, instructions: str | None = None) -> Any:
        """Which of the labels fits `text`.

        Args:
            text: What to classify.
            labels: A list of strings, a `Literal`, or an `Enum` class.
            instructions: What the labels mean, if the names do not say it.

        Returns:
            One of the labels: a string, or the member of the `Enum`.
        """
        label_type = _label_type(labels)
        form = _label_form(label_type)
        names = ", ".join(map(str, _label_values(label_type)))
        answer = await self.model(
            text,
            output_type=form,
            instructions=f"{instructions or 'Classify the text of the user.'}\nAnswer with one of: {names}.",
        )
        return getattr(answer, "label")  # noqa: B009 - the model is made above, its fields are unknown to types

    async def call(self, tool: Tool[T], /, **arguments: Any) -> T:
        """Calls a tool: an effect, journaled, made once as the tool's declaration says.

        Raises:
            ToolFailed, ModelRetry: As the tool raised them.
        """
        from beam_agents.tools import Tool as ToolType

        if not isinstance(tool, ToolType):
            raise ConfigurationError(
                f"ctx.call takes a tool, not {tool!r}: decorate the function with @tool(effect=...)"
            )
        try:
            checked = tool.arguments_from(arguments)
        except ValidationError as error:
            raise TypeError(f"ctx.call({tool.name}): {error}") from error
        return tool.result_from(await self._engine.call(tool, checked))

    @overload
    async def gather(self, one: Coroutine[Any, Any, T1], /) -> tuple[T1]: ...
    @overload
    async def gather(self, one: Coroutine[Any, Any, T1], two: Coroutine[Any, Any, T2], /) -> tuple[T1, T2]: ...
    @overload
    async def gather(
        self, one: Coroutine[Any, Any, T1], two: Coroutine[Any, Any, T2], three: Coroutine[Any, Any, T3], /
    ) -> tuple[T1, T2, T3]: ...
    @overload
    async def gather(
        self,
        one: Coroutine[Any, Any, T1],
        two: Coroutine[Any, Any, T2],
        three: Coroutine[Any, Any, T3],
        four: Coroutine[Any, Any, T4],
        /,
    ) -> tuple[T1, T2, T3, T4]: ...
    @overload
    async def gather(self, *branches: Coroutine[Any, Any, T]) -> tuple[T, ...]: ...
    async def gather(self, *branches: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
        """Runs the branches side by side and returns their results in order.

        All branches end before this returns; if some raised, the first of them in order is raised then.
        """
        return tuple(await self._engine.gather(branches))

    async def sleep(self, duration: timedelta) -> None:
        """Waits; a crash does not start the wait anew."""
        await self._engine.sleep(duration)

    async def emit(self, value: Any) -> None:
        """Puts a value on the `emitted` output, once, together with the run's end.

        Raises:
            ValueError: JSON cannot hold the value.
        """
        self._engine.emitted.append(to_json_value(value))


def _label_type(labels: Any) -> Any:
    if isinstance(labels, type) and issubclass(labels, Enum):
        return labels
    if get_args(labels):
        return labels
    if isinstance(labels, Iterable) and not isinstance(labels, str):
        names = tuple(labels)
        if names and all(isinstance(name, str) for name in names):
            from typing import Literal

            return Literal[names]
    raise ConfigurationError(f"classify: labels must be strings, a Literal or an Enum class, not {labels!r}")


@lru_cache(maxsize=256)
def _label_form(label_type: Any) -> type[BaseModel]:
    return create_model("Classification", label=(label_type, ...))


def _label_values(label_type: Any) -> list[Any]:
    return adapter(label_type).json_schema().get("enum", []) or [adapter(label_type).json_schema().get("const")]


__all__ = ["AssistantMessage", "RunContext", "RunPort"]
