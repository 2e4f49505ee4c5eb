from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import pytest
from pydantic import AnyUrl, BaseModel, Field, TypeAdapter

from beam_agents.errors import ConfigurationError
from beam_agents.messages import (
    Message,
    ModelRequest,
    ModelSettings,
    SystemMessage,
    ToolMessage,
    ToolSpec,
    UserMessage,
)
from beam_agents.models import calls, say
from beam_agents.output import Output
from beam_agents.testing import SchemaModel, example
from beam_agents.testing.patterns import text_for
from beam_agents.tools import tool


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Leaf(BaseModel):
    kind: Literal["leaf"]


class Tree(BaseModel):
    kind: Literal["tree"]
    left: Node
    children: list[Node]
    next: Optional[Tree]  # noqa: UP045 - both spellings of an optional field


class Node(BaseModel):
    value: Annotated[Tree | Leaf, Field(discriminator="kind")]


class Endless(BaseModel):
    again: Endless


TYPES = [
    *(str, int, float, bool, None, Any, bytes, Decimal, datetime, date, timedelta, UUID, IPv4Address, AnyUrl, Colour),
    *(list[int], set[Colour], tuple[int, str], dict[str, int], OrderedDict[str, bool], int | None, Literal[3], Node),
    Annotated[int, Field(ge=10)],
    Annotated[int, Field(gt=10, lt=12)],
    Annotated[int, Field(le=-5)],
    Annotated[int, Field(gt=7, multiple_of=5)],
    Annotated[int, Field(ge=-100, le=-90, multiple_of=7)],
    Annotated[float, Field(gt=0, lt=1)],
    Annotated[float, Field(gt=0.3, lt=0.31)],
    Annotated[float, Field(ge=2.5)],
    Annotated[float, Field(lt=-2.5)],
    Annotated[str, Field(min_length=20)],
    Annotated[str, Field(max_length=2)],
    Annotated[str, Field(pattern=r"^[A-Z]{3}-\d{4,6}$")],
    Annotated[list[int], Field(min_length=3)],
    Annotated[list[int], Field(max_length=0)],
    Annotated[set[int], Field(min_length=4)],
    Annotated[set[str], Field(min_length=3)],
    Annotated[set[Colour], Field(min_length=2)],
    Annotated[dict[str, int], Field(min_length=2)],
]


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_examples_fit_their_types(type_: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(type_)
    schema = adapter.json_schema()

    made = example(schema)

    adapter.validate_python(made)
    assert made == example(schema)


def test_parts_are_put_together() -> None:
    schema = {
        "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": {"enum": ["z"]}}, "required": ["y"]}],
        "$defs": {"a": {"type": "object", "properties": {"x": {"const": 4}}, "required": ["x"]}},
    }

    assert example(schema) == {"x": 4, "y": "z"}
    assert example({"type": ["integer", "null"]}) == 1


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Endless.model_json_schema(), "refers to itself"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no number"),
        ({"type": "colour"}, "'colour'"),
        ({"$ref": "#/$defs/missing"}, "leads nowhere"),
        ({"type": "string", "pattern": r"^(?=a)b$"}, "no example text"),
    ],
)
def test_what_has_no_example_is_told(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        example(schema)


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "",
            "abc",
            "^abc$",
            r"^\d{3}-\d{2}$",
            "^[a-z]+$",
            "^[^a-z]$",
            "(foo|bar)+x?",
            "^(?:ab){2,}$",
            r"^\w+@\w+\.com$",
        ),
        *(
            "^.{4}$",
            "^a*b$",
            r"^[\w.-]+$",
            "^card-[0-9]{1,3}$",
            r"^\+?[1-9]\d{1,14}$",
            "^[]a]$",
            r"^[\]x]{2}$",
            "a{2}|b",
        ),
    ],
)
@pytest.mark.parametrize("at_least", [0, 1])
def test_texts_fit_their_patterns(pattern: str, at_least: int) -> None:
    text = text_for(pattern, at_least=at_least if pattern else 0)

    assert re.search(pattern, text)


def test_texts_are_drawn_out() -> None:
    assert len(text_for("^[a-z]+$", at_least=9)) >= 9
    with pytest.raises(ConfigurationError, match="length of 4"):
        text_for("^[a-z]{1,3}$", at_least=4)


@tool(effect="pure")
def lookup(card: str, depth: Annotated[int, Field(ge=2)], since: date | None = None) -> str:
    """Looks up."""
    return f"{card} {depth} {since}"


@tool(effect="pure")
def paint(colours: list[Colour]) -> None:
    """Paints."""


def ask(*messages: Message, output: Any = str, **settings: Any) -> Any:
    request = ModelRequest(
        messages=messages,
        tools=(lookup.spec, paint.spec),
        output=Output.of(output).spec,
        settings=ModelSettings(**settings),
    )
    return asyncio.run(SchemaModel("Bye").request(request)).message


def result(call: Any, outcome: Any = "ok") -> ToolMessage:
    return ToolMessage(call_id=call.id, name=call.name, text="", outcome=outcome)


def test_every_tool_is_called_once_and_then_it_answers() -> None:
    turn: tuple[Message, ...] = (SystemMessage(text="s"), UserMessage(text="Go"))
    first = ask(*turn)

    assert [call.name for call in first.tool_calls] == ["lookup", "paint"]
    assert lookup.arguments_from(first.tool_calls[0].arguments)["depth"] == 2
    assert paint.arguments_from(first.tool_calls[1].arguments) == {"colours": ["red"]}
    assert first == ask(*turn)

    done = ask(*turn, first, *map(result, first.tool_calls), output=Node)

    assert not done.tool_calls
    assert Output.of(Node).read(done.text) == Node(value=Leaf(kind="leaf"))
    assert ask(*turn, first, *map(result, first.tool_calls)).text == "Bye"


def test_a_tool_that_comes_back_as_retry_is_called_again() -> None:
    turn: tuple[Message, ...] = (UserMessage(text="Go"),)
    first = ask(*turn)
    turn = (*turn, first, result(first.tool_calls[0], "retry"), result(first.tool_calls[1], "failed"))

    second = ask(*turn)

    assert [call.name for call in second.tool_calls] == ["lookup"]
    assert second.tool_calls[0].id != first.tool_calls[0].id
    assert ask(*turn, second, result(second.tool_calls[0])).text == "Bye"


def test_an_earlier_run_does_not_count() -> None:
    earlier = calls(("lookup", {}), ("paint", {}))
    history: tuple[Message, ...] = (UserMessage(text="Before"), earlier, *map(result, earlier.tool_calls), say("Done"))

    assert len(ask(*history, UserMessage(text="Go")).tool_calls) == 2


def test_one_by_one_where_the_settings_say_so() -> None:
    first = ask(UserMessage(text="Go"), parallel_tool_calls=False)
    second = ask(UserMessage(text="Go"), first, result(first.tool_calls[0]), parallel_tool_calls=False)

    assert [call.name for call in (*first.tool_calls, *second.tool_calls)] == ["lookup", "paint"]


def test_a_tool_without_arguments() -> None:
    spec = ToolSpec(name="now", description="", parameters={"type": "object", "properties": {}})
    request = ModelRequest(messages=(UserMessage(text="Go"),), tools=(spec,))

    assert asyncio.run(SchemaModel().request(request)).message.tool_calls[0].arguments == "{}"
