"""The loop in which the model chooses tools until it answers."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
from agent_kit import Count, Verdict, add, asked, failure_of, scripted, told
from pydantic import BaseModel, Field

from beam_agents import Budget, RunContext, tool
from beam_agents.messages import AssistantMessage, ToolCall, ToolMessage, UserMessage
from beam_agents.testing import calls

pytestmark = pytest.mark.usefixtures("replay_mode")


def call(name: str, arguments: str = "{}", id: str = "c1") -> AssistantMessage:
    """A call with its arguments exactly as the model wrote them."""
    return AssistantMessage(tool_calls=(ToolCall(id=id, name=name, arguments=arguments),))


# ---- what goes well ----


def test_the_event_is_told_as_json_and_the_answer_is_the_output() -> None:
    one = scripted(script=["Hello."], instructions="Greet.")

    result = one.run_sync({"b": 1, "a": 2}, event_id="e1")

    assert (result.run_id, result.event, result.output) == ("e1", {"a": 2, "b": 1}, "Hello.")
    assert [message.text for message in asked(one).messages] == ["Greet.", '{"a":2,"b":1}']
    assert (result.usage.steps, result.usage.tool_calls) == (1, 0)


def test_a_tool_s_result_goes_back_to_the_model() -> None:
    one = scripted(add, script=[calls(("add", {"a": 1})), "2"])

    result = one.run_sync({})

    assert result.output == "2"
    assert (told(one).text, told(one).outcome, told(one).name) == ("2", "ok", "add")
    assert (result.usage.steps, result.usage.tool_calls) == (2, 1)
    assert [spec.name for spec in asked(one).tools] == ["add"]


def test_several_tools_run_side_by_side_and_answer_in_the_order_of_the_calls() -> None:
    together = threading.Barrier(3)

    @tool(effect="pure", timeout=timedelta(seconds=20))
    def meet(name: str) -> str:
        together.wait(15)
        return name

    one = scripted(meet, script=[calls(*(("meet", {"name": name}) for name in "abc")), "Done."])
    one.run_sync({})

    assert [message.text for message in asked(one).messages[-3:]] == ["a", "b", "c"]


def test_asynchronous_tools_run_side_by_side() -> None:
    together = asyncio.Barrier(3)

    @tool(effect="pure", timeout=timedelta(seconds=20))
    async def meet(name: str) -> str:
        await together.wait()
        return name

    one = scripted(meet, script=[calls(*(("meet", {"name": name}) for name in "abc")), "Done."])
    one.run_sync({})

    assert [message.text for message in asked(one).messages[-3:]] == ["a", "b", "c"]


def test_a_model_may_speak_and_call_at_once() -> None:
    one = scripted(add, script=[calls(("add", {"a": 1}), text="Let me see."), "2"])

    assert one.run_sync({}).output == "2"
    assert asked(one).messages[-2].text == "Let me see."


def test_a_tool_gets_its_context() -> None:
    seen: list[Any] = []

    @tool(effect="pure")
    def look(ctx: RunContext[Any, Count, str]) -> str:
        seen.append((ctx.key, ctx.event, ctx.state, ctx.deps, ctx.run_id, ctx.attempt, bool(ctx.idempotency_key)))
        with pytest.raises(RuntimeError, match="only a workflow"):
            _ = ctx.transcript
        return ""

    one = scripted(look, script=[calls(("look", {})), "Done."], state_type=Count, deps=lambda: "db")
    one.run_sync({"x": 1}, key="k", event_id="e1")

    assert seen == [("k", {"x": 1}, Count(), "db", "e1", 1, True)]


def test_a_pydantic_result_is_told_as_json() -> None:
    @tool(effect="pure")
    def look() -> Verdict:
        return Verdict(ok=True)

    one = scripted(look, script=[calls(("look", {})), "Done."])
    one.run_sync({})

    assert told(one).text == '{"ok":true,"why":""}'


# ---- calls that cannot be made ----


def test_an_unknown_tool_is_answered_with_what_there_is() -> None:
    one = scripted(add, script=[calls(("subtract", {"a": 1})), "Sorry."])

    assert one.run_sync({}).usage.tool_calls == 0
    assert (told(one).outcome, told(one).text) == ("retry", "There is no tool 'subtract'; there is: add.")


def test_a_model_that_only_calls_unknown_tools_runs_out_of_steps() -> None:
    failure = failure_of(scripted(add, script=[calls(("subtract", {}))] * 9, budget=Budget(steps=3)))

    assert failure.reason == "budget_steps"


@pytest.mark.parametrize(
    ("arguments", "told_of"),
    [
        ('{"a": "x"}', "a: Input should be a valid integer"),
        ('{"b": 1}', "a: Field required"),
        ('{"a": 1, "c": 1}', "c: Extra inputs are not permitted"),
        ('{"a": 1', "arguments: Invalid JSON"),
        ("[1]", "arguments: Input should be an object"),
        ("null", "arguments: Input should be an object"),
    ],
)
def test_wrong_arguments_are_told_and_corrected(arguments: str, told_of: str) -> None:
    one = scripted(add, script=[call("add", arguments), calls(("add", {"a": 1})), "2"])

    assert one.run_sync({}).output == "2"
    first = asked(one, 1).messages[-1]
    assert isinstance(first, ToolMessage)
    assert first.outcome == "retry"
    assert first.text.startswith(f"Wrong arguments: {told_of}")


def test_arguments_that_json_does_not_know_are_wrong_arguments() -> None:
    @tool(effect="pure")
    def half(number: float) -> float:
        return number / 2

    one = scripted(half, script=[call("half", '{"number": NaN}'), calls(("half", {"number": 4})), "2"])

    assert one.run_sync({}).output == "2"


def test_arguments_that_stay_wrong_end_the_run() -> None:
    script = [call("add", '{"a": "x"}', id=f"c{number}") for number in range(9)]
    failure = failure_of(scripted(add, script=script))

    assert failure.reason == "tool_error"
    assert "told 2 times what is wrong with its calls of 'add'" in failure.message
    assert failure.usage.steps == 3


# ---- answers ----


def test_an_answer_that_does_not_fit_is_corrected() -> None:
    one = scripted(script=["I think so.", '{"ok": "maybe"}', '{"ok": true}'], output_type=Verdict)

    result = one.run_sync({})

    assert result.output == Verdict(ok=True)
    assert result.usage.steps == 3
    correction = asked(one).messages[-1]
    assert isinstance(correction, UserMessage)
    assert "ok: Input should be a valid boolean" in correction.text


def test_an_answer_in_a_code_fence_is_read() -> None:
    one = scripted(script=['```json\n{"ok": true}\n```'], output_type=Verdict)

    assert one.run_sync({}).output == Verdict(ok=True)


@pytest.mark.parametrize("answer", ["", "   ", AssistantMessage()])
def test_an_empty_answer_is_corrected(answer: Any) -> None:
    one = scripted(script=[answer, "Hello."])

    assert one.run_sync({}).output == "Hello."
    assert "the answer is empty" in (asked(one).messages[-1].text or "")


@pytest.mark.parametrize(("answer", "output_type"), [("rubbish", Verdict), ("", str), ("NaN", float)])
def test_an_answer_that_never_fits_ends_the_run(answer: str, output_type: Any) -> None:
    failure = failure_of(scripted(script=[answer] * 5, output_type=output_type, output_retries=1))

    assert failure.reason == "invalid_output"
    assert failure.usage.steps == 2
    assert "the model's answer does not fit" in failure.message
    assert [message.role for message in failure.transcript] == ["user", "assistant", "user", "assistant"]


def test_corrections_do_not_start_anew_after_a_tool() -> None:
    script = ["rubbish", calls(("add", {"a": 1})), "rubbish", "rubbish", '{"ok": true}']

    assert failure_of(scripted(add, script=script, output_type=Verdict)).usage.steps == 4


class CamelVerdict(BaseModel):
    is_ok: bool = Field(alias="isOk")


@pytest.mark.parametrize(
    ("output_type", "answer", "output"),
    [
        (int, "3", 3),
        (list[Verdict], '[{"ok": true}]', [Verdict(ok=True)]),
        (Verdict | None, "null", None),
        (CamelVerdict, '{"isOk": true}', CamelVerdict(isOk=True)),
        (dict[str, int], '{"a": 1}', {"a": 1}),
    ],
)
def test_output_may_be_of_any_type(output_type: Any, answer: str, output: Any) -> None:
    assert scripted(script=[answer], output_type=output_type).run_sync({}).output == output
