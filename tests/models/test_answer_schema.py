from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from beam_agents.models.answer_schema import AnswerSchema, strict_schema
from beam_agents.output import Output


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    """A part."""

    colour: Colour = Field(description="Its colour.")
    size: Annotated[float, Field(gt=0)] | None = None


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]
    parts: list[Part]


class Zoo(BaseModel):
    pet: Cat | Dog = Field(discriminator="kind")
    spare: Part | None = None


class Node(BaseModel):
    children: list[Node]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str


def of(type_: Any) -> AnswerSchema:
    spec = Output.of(type_).spec
    assert spec is not None
    return AnswerSchema.of(spec)


def test_a_model_becomes_strict_with_every_field_required() -> None:
    schema = of(Zoo)

    assert (schema.strict, schema.wrapped) == (True, False)
    assert schema.schema["required"] == ["pet", "spare"]
    assert schema.schema["additionalProperties"] is False
    assert schema.schema["properties"]["pet"] == {"anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}
    part = schema.schema["$defs"]["Part"]
    assert part["required"] == ["colour", "size"]
    assert part["properties"]["colour"] == {"$ref": "#/$defs/Colour"}
    assert "default" not in part["properties"]["size"]


@pytest.mark.parametrize("type_", [bool, list[Part], Cat | Dog, Literal["a", "b"], Colour, Node, int | None])
def test_other_types_are_wrapped_in_an_object(type_: Any) -> None:
    schema = of(type_)

    assert (schema.strict, schema.wrapped) == (True, True)
    assert schema.schema["type"] == "object"
    assert schema.schema["required"] == ["answer"]


def test_what_was_wrapped_is_unwrapped() -> None:
    schema = of(list[str])

    assert TypeAdapter(list[str]).validate_json(schema.read('{"answer": ["ä"]}')) == ["ä"]
    assert schema.read('["ä"]') == '["ä"]'
    assert schema.read("no json") == "no json"
    assert of(Part).read('{"answer": 1}') == '{"answer": 1}'


@pytest.mark.parametrize("type_", [dict[str, int], Open, dict[str, Any], tuple[int, str], Any])
def test_what_strict_cannot_say_goes_out_as_it_is(type_: Any) -> None:
    schema = of(type_)

    assert schema.strict is False
    original = TypeAdapter(type_).json_schema()
    assert schema.schema == original or schema.schema["properties"]["answer"] == original


@pytest.mark.parametrize(
    "field",
    [
        {"type": "string", "minLength": 1},
        {"type": "string", "pattern": "^(?!x)"},
        {"type": "string", "format": "uri"},
        {"type": "array"},
        {"type": "object"},
        {"$ref": "#/$defs/a", "minimum": 1},
        {},
        True,
    ],
)
def test_fields_that_strict_cannot_say(field: Any) -> None:
    schema = {"type": "object", "properties": {"a": field}, "required": ["a"]}

    assert strict_schema(schema, may_require=True) is None


def test_arguments_that_may_be_left_out_stay_so() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "default": "x"}}}

    assert strict_schema(schema, may_require=False) is None
    assert strict_schema(schema, may_require=True) == {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
