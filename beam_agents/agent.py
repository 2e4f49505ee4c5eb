"""The agent that lets the model choose (ReAct)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

from beam_agents.agent_base import AgentBase, DepsT, EventT, OutputT, StateT
from beam_agents.budget import Budget
from beam_agents.context import RunContext
from beam_agents.errors import ConfigurationError
from beam_agents.history import History
from beam_agents.messages import ModelSettings
from beam_agents.models.base import Model
from beam_agents.output import Output
from beam_agents.react import react
from beam_agents.template import Template
from beam_agents.tools import Tool

Text: TypeAlias = str | Template | Callable[[StateT, EventT], str]
"""Plain text, a template over event, state and key, or a function of (state, event)."""


class Agent(AgentBase[EventT, OutputT, StateT, DepsT]):
    """An agent whose model chooses tools in a loop until it answers or a budget ends it.

    Args:
        name: Names the agent in ledgers and outputs; keep it.
        model: `"openai:NAME"` or a `Model`.
        instructions: What the model is told to be and do: text, a `Template`, or a function of (state, event).
        prompt: How the event is told to the model; the event as JSON by default.
        tools: What the model may call.
        event_type: The type of events; a union for several kinds in one conversation.
        output_type: The type of the answer; `str` for text.
        state_type: The type of a key's domain state; `state_type()` is the first.
        on_event: Pure function (state, event) -> state, for every event, before its run.
        skip: Pure function (state, event) -> output, or `None` to ask the model.
        deps: Makes what tools get as `ctx.deps`: called once in each worker process, closed at its end.
        history: How much of the key's conversation the model is told.
        revision: Raise it to decide past events anew.
        budget: The most that one run may use.
        output_retries: How often the model is told what is wrong with an answer that does not fit.
        settings: Settings of the model requests.

    Raises:
        ConfigurationError: Something cannot work; it says what to change.
    """

    def __init__(
        self,
        name: str,
        *,
        model: str | Model,
        instructions: Text[StateT, EventT] = "",
        prompt: Text[StateT, EventT] | None = None,
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
        output_retries: int = 2,
        settings: ModelSettings | None = None,
    ) -> None:
        if model is None:
            raise ConfigurationError(f"agent {name!r}: model=None cannot be asked: give 'openai:NAME' or a Model")
        if output_retries < 0:
            raise ConfigurationError(f"agent {name!r}: output_retries={output_retries!r} must be 0 or more")
        super().__init__(
            name,
            model=model,
            tools=tools,
            event_type=event_type,
            output_type=output_type,
            state_type=state_type,
            on_event=on_event,
            skip=skip,
            deps=deps,
            history=history,
            revision=revision,
            budget=budget,
            settings=settings,
        )
        self.instructions = instructions
        self.prompt = prompt
        self.output_retries = output_retries
        for text in (instructions, prompt):
            if isinstance(text, Template):
                text.check(event_type, state_type)

    async def body(self, context: RunContext[EventT, StateT, DepsT]) -> OutputT:
        """The loop of `react`."""
        answer = await react(
            context,
            instructions=self._text(self.instructions, context),
            prompt=self._text(self.prompt, context) if self.prompt is not None else self.event_json(context.event),
            tools=self.tools,
            output=Output.of(self.output_type),
            output_retries=self.output_retries,
        )
        return cast(OutputT, answer)

    @staticmethod
    def _text(text: Text[StateT, EventT], context: RunContext[EventT, StateT, DepsT]) -> str:
        if isinstance(text, str):
            return text
        if isinstance(text, Template):
            return text.render(event=context.event, state=context.state, key=context.key)
        return text(context.state, context.event)
