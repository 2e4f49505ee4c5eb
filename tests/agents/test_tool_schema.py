"""What a model is told of a tool comes from the function's type hints and docstring."""

from __future__ import annotations

import functools
import warnings
from datetime import date, timedelta
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from beam_agents import Agent, ConfigurationError, RunContext, Tool, tool
from beam_agents.testing import ScriptedModel


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Place(BaseModel):
    city: str
    zip_code: str | None = None


class Order(BaseModel):
    """An order."""

    items: list[str]
    place: Place


class Callable_:
    """Adds."""

    def __call__(self, number: int) -> int:
        return number


def properties(made: Tool[Any]) -> dict[str, Any]:
    return made.spec.parameters["properties"]


def test_types_become_a_json_schema() -> None:
    @tool(effect="pure")
    def search(
        text: str, number: int, share: float, exact: bool, tags: list[str], kind: Literal["a", "b"], colour: Colour
    ) -> str:
        return text

    found = properties(search)
    assert {name: schema.get("type") for name, schema in found.items() if name != "colour"} == {
        "text": "string",
        "number": "integer",
        "share": "number",
        "exact": "boolean",
        "tags": "array",
        "kind": "string",
    }
    assert found["kind"]["enum"] == ["a", "b"]
    assert search.spec.parameters["$defs"]["Colour"]["enum"] == ["red", "blue"]
    assert search.spec.parameters["required"] == ["text", "number", "share", "exact", "tags", "kind", "colour"]
    assert search.spec.parameters["type"] == "object"


def test_defaults_and_optional_parameters_are_not_required() -> None:
    @tool(effect="pure")
    def search(text: str, limit: int = 10, since: date | None = None) -> str:
        return text

    assert search.spec.parameters["required"] == ["text"]
    assert properties(search)["limit"]["default"] == 10
    assert {schema.get("type") for schema in properties(search)["since"]["anyOf"]} == {"string", "null"}
    assert search.arguments_from('{"text": "x"}') == {"text": "x", "limit": 10, "since": None}


def test_nested_models_are_described_and_reach_the_function_as_models() -> None:
    @tool(effect="pure")
    def place_order(order: Order) -> str:
        return f"{type(order.place).__name__} {order.place.city}"

    assert set(place_order.spec.parameters["$defs"]) == {"Order", "Place"}
    arguments = place_order.arguments_from('{"order": {"items": [], "place": {"city": "Rome"}}}')
    assert arguments == {"order": {"items": [], "place": {"city": "Rome", "zip_code": None}}}
    agent = Agent(
        "shop",
        model=ScriptedModel([_call("place_order", '{"order": {"items": [], "place": {"city": "Rome"}}}'), "Done."]),
        tools=[place_order],
    )
    agent.run_sync({})
    assert agent.model.requests[1].messages[-1].text == "Place Rome"


def _call(name: str, arguments: str) -> Any:
    from beam_agents.messages import AssistantMessage, ToolCall

    return AssistantMessage(tool_calls=(ToolCall(id="c1", name=name, arguments=arguments),))


def test_annotated_fields_bound_and_describe() -> None:
    @tool(effect="pure")
    def search(limit: Annotated[int, Field(ge=1, le=5, description="How many.")] = 3) -> int:
        return limit

    schema = properties(search)["limit"]
    assert (schema["minimum"], schema["maximum"], schema["default"]) == (1, 5, 3)
    assert schema["description"] == "How many."
    with pytest.raises(ValueError, match="less than or equal to 5"):
        search.arguments_from('{"limit": 6}')


def google(city: str, days: int = 1) -> str:
    """Tells the weather.

    It may be wrong.

    Args:
        city: The name of the city.
        days: How many days ahead.

    Returns:
        A sentence.
    """
    return city


def numpy_style(city: str, days: int = 1) -> str:
    """Tells the weather.

    It may be wrong.

    Parameters
    ----------
    city : str
        The name of the city.
    days : int
        How many days ahead.
    """
    return city


def rest(city: str, days: int = 1) -> str:
    """Tells the weather.

    It may be wrong.

    :param city: The name of the city.
    :param days: How many days ahead.
    :returns: A sentence.
    """
    return city


@pytest.mark.parametrize("function", [google, numpy_style, rest])
def test_docstrings_of_each_style_describe_tool_and_parameters(function: Any) -> None:
    made = tool(effect="pure")(function)

    assert made.spec.description == "Tells the weather.\n\nIt may be wrong."
    assert {name: schema["description"] for name, schema in properties(made).items()} == {
        "city": "The name of the city.",
        "days": "How many days ahead.",
    }


def test_name_and_description_may_be_given() -> None:
    made = tool(effect="pure", name="weather", description="Weather.")(google)

    assert (made.spec.name, made.spec.description) == ("weather", "Weather.")


@pytest.mark.parametrize("hint", [RunContext, RunContext[Any, Any, Any]])
def test_the_context_is_hidden_from_the_model(hint: Any) -> None:
    def look(ctx: Any, text: str) -> str:
        return f"{ctx} {text}"

    look.__annotations__["ctx"] = hint
    made = tool(effect="pure")(look)

    assert list(properties(made)) == ["text"]
    with pytest.raises(ValueError, match="ctx"):
        made.arguments_from('{"ctx": 1, "text": "x"}')
    context: Any = RunContext(key="k", event=None, state=None, deps=None, run_id="r")
    assert made.invoke(made.function, context, {"text": "x"}) == f"{context} x"


def test_a_tool_without_parameters_takes_an_empty_object() -> None:
    @tool(effect="pure")
    def now() -> str:
        return "now"

    assert now.spec.parameters["properties"] == {}
    assert now.arguments_from("{}") == now.arguments_from("") == {}


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="country"):
        tool(effect="pure")(google).arguments_from('{"city": "Rome", "country": "Italy"}')


def test_calling_a_tool_calls_the_function() -> None:
    assert tool(effect="pure")(google)("Rome") == "Rome"


@pytest.mark.parametrize("name", ["schema", "json", "copy"])
def test_a_parameter_may_have_any_name(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def look({name}: str) -> str: return {name}", scope)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = tool(effect="pure")(scope["look"])

    assert list(properties(made)) == [name]
    assert made.invoke(made.function, None, made.arguments_from({name: "x"})) == "x"  # type: ignore[arg-type]


# ---- refusals ----


def refused(function: Any = google, **declaration: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        tool(**declaration)(function)
    return str(caught.value)


def test_an_effect_has_to_be_declared() -> None:
    with pytest.raises(ConfigurationError, match=r"'google'.*effect='pure'"):
        tool(google)
    with pytest.raises(ConfigurationError, match="effect='pure'"):
        tool()  # type: ignore[call-overload]


def test_an_unknown_effect_is_refused() -> None:
    assert "'pure', 'idempotent' or 'once'" in refused(effect="none")


def test_retries_on_once_are_refused() -> None:
    assert "drop retries, or declare effect='idempotent'" in refused(effect="once", retries=1)


@pytest.mark.parametrize("effect", ["pure", "idempotent"])
def test_reconcile_is_for_once(effect: str) -> None:
    assert "declare effect='once'" in refused(effect=effect, reconcile=google)


@pytest.mark.parametrize("name", ["", "look up", "x" * 65, "größe", "a.b"])
def test_names_that_chat_servers_refuse_are_refused(name: str) -> None:
    if name:
        assert "give name=" in refused(effect="pure", name=name)
    else:
        assert tool(effect="pure", name=name)(google).name == "google"


@pytest.mark.parametrize("timeout", [timedelta(0), timedelta(seconds=-1)])
def test_a_timeout_of_zero_is_refused(timeout: timedelta) -> None:
    assert "timeout" in refused(effect="pure", timeout=timeout)


@pytest.mark.parametrize("option", ["retries", "model_retries"])
def test_negative_retries_are_refused(option: str) -> None:
    assert "below zero" in refused(effect="pure", **{option: -1})


def test_a_lambda_has_no_name_for_the_model() -> None:
    assert "give name=" in refused(lambda: 1, effect="pure")


def many(*texts: str) -> str:
    return ""


def named(**texts: str) -> str:
    return ""


def positional(text: str, /) -> str:
    return text


@pytest.mark.parametrize("function", [many, named, positional])
def test_parameters_that_have_no_name_are_refused(function: Any) -> None:
    assert "must be a plain named parameter" in refused(function, effect="pure")


def unhinted(text):  # type: ignore[no-untyped-def]
    return text


def test_a_parameter_without_a_hint_is_refused() -> None:
    assert "'text' needs a type hint" in refused(unhinted, effect="pure")


def unresolved(text: Missing) -> str:  # type: ignore[name-defined]  # noqa: F821
    return ""


def test_a_hint_that_cannot_be_found_is_refused() -> None:
    assert "'Missing' cannot be found; import it at the top" in refused(unresolved, effect="pure")


def underscored(_text: str) -> str:
    return _text


class NoSchema:
    pass


def takes_object(thing: NoSchema) -> str:
    return ""


def returns_object() -> NoSchema:
    return NoSchema()


@pytest.mark.parametrize("function", [underscored, takes_object, returns_object, functools.partial(google, days=2)])
def test_whatever_else_cannot_work_is_refused_by_its_name(function: Any) -> None:
    assert "tool " in refused(function, effect="pure", name="mine")


def test_an_object_that_can_be_called_is_a_tool() -> None:
    made = tool(effect="pure", name="adder")(Callable_())

    assert list(properties(made)) == ["number"]


def test_two_tools_of_one_name_are_refused() -> None:
    made = tool(effect="pure")(google)
    with pytest.raises(ConfigurationError, match=r"two tools are named 'google'; give one @tool\(name=...\)"):
        Agent("a", model="openai:m", tools=[made, made])


def test_a_function_that_is_no_tool_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"decorate the function with @tool\(effect=...\)"):
        Agent("a", model="openai:m", tools=[google])  # type: ignore[list-item]
