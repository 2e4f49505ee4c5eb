"""What a workflow can do with its context."""

from __future__ import annotations

from datetime import date, timedelta
from enum import Enum
from typing import Any, Literal

import pytest
from agent_kit import Txn, Verdict, failure_of

from beam_agents import (
    ConfigurationError,
    FailRun,
    InvalidOutput,
    ModelError,
    ModelRetry,
    RunContext,
    ToolError,
    ToolFailed,
    tool,
    workflow,
)
from beam_agents.models import FunctionModel, say
from beam_agents.testing import ScriptedModel

pytestmark = pytest.mark.usefixtures("replay_mode")

Ctx = RunContext[Any, Any, Any]


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


class Single(Enum):
    ONLY = "only"


@tool(effect="pure")
def double(number: int) -> int:
    """Doubles."""
    return 2 * number


@tool(effect="pure")
def fail(how: str) -> str:
    """Fails as told."""
    raise {"retry": ModelRetry, "failed": ToolFailed, "raise": ValueError, "run": FailRun}[how](how)


# ---- the model ----


def test_model_gives_text() -> None:
    script = ScriptedModel(["Hello."])

    @workflow(model=script)
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        return await ctx.model("Greet.", instructions="Be short.")

    result = flow.run_sync({})

    assert (result.output, result.usage.steps) == ("Hello.", 1)
    assert [message.text for message in script.requests[0].messages] == ["Be short.", "Greet."]


def test_model_gives_a_type_and_corrects_what_does_not_fit() -> None:
    script = ScriptedModel(["Yes!", '{"ok": true}'])

    @workflow(model=script)
    async def flow(ctx: Ctx, event: dict[str, Any]) -> Verdict:
        return await ctx.model("Is it?", output_type=Verdict)

    result = flow.run_sync({})

    assert (result.output, result.usage.steps) == (Verdict(ok=True), 2)


def test_an_answer_that_never_fits_can_be_caught() -> None:
    @workflow(model=ScriptedModel(["Yes!"] * 3))
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        try:
            await ctx.model("Is it?", output_type=Verdict, output_retries=1)
        except InvalidOutput as error:
            return str(error)
        return ""

    result = flow.run_sync({})

    assert "does not fit Verdict" in result.output
    assert result.usage.steps == 2


def test_an_answer_that_never_fits_ends_the_run_if_it_is_not_caught() -> None:
    @workflow(model=ScriptedModel(["Yes!"] * 3))
    async def flow(ctx: Ctx, event: dict[str, Any]) -> Verdict:
        return await ctx.model("Is it?", output_type=Verdict, output_retries=0)

    failure = failure_of(flow)

    assert failure.reason == "invalid_output"
    assert [message.role for message in failure.transcript] == ["user", "assistant"]


def test_a_model_error_can_be_caught() -> None:
    other = FunctionModel(lambda request: say("Here."), name="other")

    @workflow(model=ScriptedModel([ModelError("down")]))
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        try:
            return await ctx.model("Anybody?")
        except ModelError:
            return await ctx.model("Anybody?", model=other)

    assert flow.run_sync({}).output == "Here."


def test_a_workflow_without_a_model_says_so() -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        return await ctx.model("Hello?")

    failure = failure_of(flow)

    assert failure.reason == "code_error"
    assert "give @workflow(model=...)" in failure.message


def test_extract() -> None:
    script = ScriptedModel(['{"ok": false, "why": "late"}'])

    @workflow(model=script)
    async def flow(ctx: Ctx, event: dict[str, Any]) -> Verdict:
        return await ctx.extract("It came late.", Verdict)

    assert flow.run_sync({}).output == Verdict(ok=False, why="late")
    assert script.requests[0].messages[-1].text == "It came late."
    assert script.requests[0].output is not None


@pytest.mark.parametrize(
    ("labels", "label"),
    [
        (["good", "bad"], "bad"),
        (("good", "bad"), "bad"),
        (Literal["good", "bad"], "bad"),
        (Mood, Mood.BAD),
        (["bad"], "bad"),
    ],
    ids=["list", "tuple", "literal", "enum", "one"],
)
def test_classify(labels: Any, label: Any) -> None:
    script = ScriptedModel(['{"label": "ugly"}', '{"label": "bad"}'])
    found: list[Any] = []

    @workflow(model=script)
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        found.append(await ctx.classify("How bad!", labels))
        return ""

    flow.run_sync({})

    assert found[-1] == label
    assert type(found[-1]) is type(label)
    assert "bad" in (script.requests[0].messages[0].text or "")


def test_classify_with_an_enum_of_one_member() -> None:
    script = ScriptedModel(['{"label": "only"}'])

    @workflow(model=script)
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        return (await ctx.classify("Which?", Single)).name

    assert flow.run_sync({}).output == "ONLY"


@pytest.mark.parametrize("labels", ["good", [], [1, 2], str, 5])
def test_classify_refuses_what_are_no_labels(labels: Any) -> None:
    @workflow(model=ScriptedModel(["x"]))
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        await ctx.classify("Which?", labels)
        return ""

    failure = failure_of(flow)

    assert failure.reason == "code_error"
    assert "labels must be strings, a Literal or an Enum class" in failure.message


# ---- tools ----


def test_call_gives_the_result_as_the_tool_s_return_type() -> None:
    @tool(effect="pure")
    def look(day: date) -> Verdict:
        return Verdict(ok=day.year == 2024, why=day.isoformat())

    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        verdict = await ctx.call(look, day=date(2024, 2, 29))
        assert isinstance(verdict, Verdict)
        return verdict.why

    result = flow.run_sync({})

    assert (result.output, result.usage.tool_calls) == ("2024-02-29", 1)


@tool(effect="pure")
def give_bytes() -> bytes:
    """Gives bytes."""
    return b"hello"


@tool(effect="pure")
def give_set() -> set[date]:
    """Gives a set."""
    return {date(2024, 1, 2), date(2024, 1, 1)}


@tool(effect="pure")
def give_by_number() -> dict[int, timedelta]:
    """Gives a dict."""
    return {1: timedelta(seconds=90)}


@tool(effect="pure")
def give_pair() -> tuple[Mood, bytes | None]:
    """Gives a tuple."""
    return Mood.GOOD, None


@tool(effect="pure")
def give_nothing() -> None:
    """Gives nothing."""


@pytest.mark.parametrize("look", [give_bytes, give_set, give_by_number, give_pair, give_nothing], ids=lambda t: t.name)
def test_results_come_back_from_the_journal_as_they_went_in(look: Any) -> None:
    seen: list[Any] = []

    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        seen.append(await ctx.call(look))
        return ""

    flow.run_sync({})

    assert seen[-1] == look()


@tool(effect="pure")
def measure(data: bytes) -> int:
    """Gives the length."""
    return len(data)


def test_arguments_come_back_from_the_journal_as_they_went_in() -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> int:
        return await ctx.call(measure, data=b"hello")

    assert flow.run_sync({}).output == 5


@pytest.mark.parametrize(
    ("how", "error", "reason"),
    [
        ("retry", ModelRetry, "tool_error"),
        ("failed", ToolFailed, "tool_error"),
        ("raise", ToolError, "tool_error"),
        ("run", FailRun, "rejected"),
    ],
)
def test_what_a_tool_raises_can_be_caught_and_ends_the_run_otherwise(how: str, error: Any, reason: str) -> None:
    @workflow()
    async def catching(ctx: Ctx, event: dict[str, Any]) -> str:
        try:
            return await ctx.call(fail, how=how)
        except error as caught:
            return f"{await ctx.call(double, number=1)} {caught}"

    @workflow()
    async def careless(ctx: Ctx, event: dict[str, Any]) -> str:
        return await ctx.call(fail, how=how)

    assert catching.run_sync({}).output.startswith("2 ")
    assert failure_of(careless).reason == reason


def test_call_takes_tools_only() -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        return await ctx.call(str, number=1)  # type: ignore[arg-type]

    assert "ctx.call takes a tool, not <class 'str'>" in failure_of(flow).message


def test_call_checks_the_arguments() -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> int:
        return await ctx.call(double, number="many")

    failure = failure_of(flow)

    assert failure.reason == "code_error"
    assert "ctx.call(double)" in failure.message


# ---- the declaration ----


def test_name_and_types_come_from_the_function() -> None:
    @workflow()
    async def triage(ctx: RunContext[Txn, None, None], event: Txn) -> Verdict:
        return Verdict(ok=True, why=event.txn_id)

    assert (triage.name, triage.event_type, triage.output_type) == ("triage", Txn, Verdict)
    assert triage.run_sync({"txn_id": "7"}).output.why == "7"  # type: ignore[arg-type]


def test_only_an_async_function_of_context_and_event_is_a_workflow() -> None:
    def plain(ctx: Ctx, event: Txn) -> str:
        return ""

    async def lonely(ctx: Ctx) -> str:
        return ""

    async def lost(ctx: Ctx, event: Missing) -> str:  # type: ignore[name-defined]  # noqa: F821
        return ""

    with pytest.raises(ConfigurationError, match="must be an async def"):
        workflow()(plain)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"'lonely': it takes \(ctx, event\), not \(ctx\)"):
        workflow()(lonely)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="'Missing' cannot be found; import it at the top"):
        workflow()(lost)
