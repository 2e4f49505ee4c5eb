"""A model that needs no script: it works from the schemas in the request."""

from __future__ import annotations

from beam_agents.messages import AssistantMessage, ModelRequest, ModelResponse, ToolMessage
from beam_agents.models.base import Model
from beam_agents.models.function import calls, offline_response, say
from beam_agents.testing.examples import example
from beam_agents.testing.turn import split_turn


class SchemaModel(Model):
    """Calls every tool once with example arguments, then gives an example answer.

    It tries out an agent's wiring, in any program, without a network: every tool is called with valid arguments, and
    the answer fits the output type. A tool that comes back as `retry` is called again. The tools are called side by
    side, or one by one where the settings say `parallel_tool_calls=False`.

    Args:
        text: The answer where text is wanted.
    """

    network = False

    def __init__(self, text: str = "This is an example of an answer.") -> None:
        self._text = text

    @property
    def name(self) -> str:
        return "schema"

    async def request(self, request: ModelRequest) -> ModelResponse:
        """Answers from the request's schemas.

        Raises:
            ConfigurationError: No example is known for a schema; the message has the part.
        """
        return offline_response(schema_answer(request, self._text), request, self)

    def __repr__(self) -> str:
        return f"SchemaModel({self._text!r})"


def schema_answer(request: ModelRequest, text: str) -> AssistantMessage:
    """The next turn of a `SchemaModel`."""
    first, _ = split_turn(request.messages)
    outcomes = {said.name: said.outcome for said in request.messages[first:] if isinstance(said, ToolMessage)}
    due = [tool for tool in request.tools if outcomes.get(tool.name, "retry") == "retry"]
    if request.settings.parallel_tool_calls is False:
        due = due[:1]
    if due:
        return calls(*((tool.name, example(tool.parameters)) for tool in due))
    return say(text if request.output is None else example(request.output.json_schema))
