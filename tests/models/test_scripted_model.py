from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from beam_agents.errors import ConfigurationError, ModelError
from beam_agents.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ModelResponse,
    OutputSpec,
    SystemMessage,
    ToolMessage,
    ToolSpec,
    UserMessage,
)
from beam_agents.models import Price, calls, say
from beam_agents.output import Output
from beam_agents.testing import ScriptedModel, UnexpectedModelCall


class Verdict(BaseModel):
    ok: bool


HISTORY: tuple[Message, ...] = (SystemMessage(text="Be brief."), UserMessage(text="Before"), say("An old answer"))


def ask(model: ScriptedModel, *messages: Message) -> ModelResponse:
    return asyncio.run(model.request(ModelRequest(messages=messages)))


def with_results(answer: AssistantMessage) -> tuple[Message, ...]:
    results = (ToolMessage(call_id=call.id, name=call.name, text="ok") for call in answer.tool_calls)
    return (answer, *results)


def test_the_steps_follow_the_turn_whatever_precedes_it() -> None:
    model = ScriptedModel([calls(("a", {}), ("b", {"x": 1})), calls(("a", {})), "Done"], price=Price(input=1, output=1))
    for before in ((), HISTORY, HISTORY[2:]):
        turn: tuple[Message, ...] = (*before, UserMessage(text="Go"))
        first = ask(model, *turn).message
        turn = (*turn, *with_results(first))
        second = ask(model, *turn).message
        turn = (*turn, *with_results(second))

        assert [call.name for call in first.tool_calls] == ["a", "b"]
        assert [call.name for call in second.tool_calls] == ["a"]
        assert second.tool_calls[0].id not in [call.id for call in first.tool_calls]
        assert ask(model, *turn).message == say("Done")
        assert ask(model, *turn) == ask(model, *turn)

    model.assert_complete()
    assert len(model.requests) == 15


def test_a_correction_goes_on_with_the_same_turn() -> None:
    output = Output.of(Verdict)
    model = ScriptedModel(["rubbish", Verdict(ok=True)])
    first = ask(model, UserMessage(text="Go")).message
    with pytest.raises(ValueError, match="Invalid JSON") as caught:
        output.read(first.text)

    second = ask(model, UserMessage(text="Go"), first, output.correction(caught.value)).message

    assert output.read(second.text) == Verdict(ok=True)
    model.assert_complete()


def test_a_correction_of_text_does_too() -> None:
    model = ScriptedModel([" ", "Done"])
    first = ask(model, UserMessage(text="Go")).message

    assert (
        ask(model, UserMessage(text="Go"), first, Output.of(str).correction(ValueError("empty"))).message.text == "Done"
    )


def test_scripts_are_chosen_by_the_text_of_the_turn() -> None:
    model = ScriptedModel({"card-1": ["one"], "card": ["other card"], "": ["anything"]})

    assert ask(model, *HISTORY, UserMessage(text="look at card-1")).message.text == "one"
    assert ask(model, UserMessage(text="card-1"), say("one"), UserMessage(text="card-2")).message.text == "other card"
    assert ask(model, SystemMessage(text="card-1")).message.text == "anything"
    model.assert_complete()


def test_a_turn_without_a_script_is_an_error_for_good() -> None:
    model = ScriptedModel({"card-1": ["one"]})

    with pytest.raises(UnexpectedModelCall, match=r"'card-1'.*'card-2'") as caught:
        ask(model, UserMessage(text="card-2"))

    assert not caught.value.retryable
    with pytest.raises(AssertionError, match=r"had no script.*'card-1' was never used"):
        model.assert_complete()


def test_one_call_too_many() -> None:
    model = ScriptedModel(["one"])
    ask(model, UserMessage(text="Go"))

    with pytest.raises(UnexpectedModelCall, match=r"answer 2 .* ends after 1"):
        ask(model, UserMessage(text="Go"), say("one"), UserMessage(text="Your answer cannot be used: no"))

    with pytest.raises(AssertionError, match="after the last"):
        model.assert_complete()


def test_one_call_too_few() -> None:
    model = ScriptedModel([calls(("a", {})), "Done"])
    with pytest.raises(AssertionError, match="never used"):
        model.assert_complete()
    for text in ("first", "second"):
        answer = ask(model, UserMessage(text=text)).message
    ask(model, UserMessage(text="second"), *with_results(answer))

    with pytest.raises(AssertionError, match="has 2 answers, but a turn ended after 1"):
        model.assert_complete()


def test_passing_errors_pass_and_others_stay() -> None:
    busy = ModelError("busy", retryable=True, retry_after=1)
    model = ScriptedModel([busy, busy, calls(("a", {})), ModelError("broken")])
    for _ in range(2):
        with pytest.raises(ModelError, match="busy"):
            ask(model, UserMessage(text="Go"))
    answer = ask(model, UserMessage(text="Go")).message
    for _ in range(2):
        with pytest.raises(ModelError, match="broken"):
            ask(model, UserMessage(text="Go"), *with_results(answer))

    model.assert_complete()


def test_errors_that_pass_at_the_end_do_not() -> None:
    model = ScriptedModel([ModelError("busy", retryable=True)])
    for _ in range(3):
        with pytest.raises(ModelError, match="busy"):
            ask(model, UserMessage(text="Go"))


def test_functions_and_whole_responses_are_steps() -> None:
    async def echo(request: ModelRequest) -> AssistantMessage:
        return say(f"{len(request.messages)} messages")

    whole = ModelResponse(message=say("Done"), model="someone", cost_usd=2)
    model = ScriptedModel([echo, whole])
    first = ask(model, UserMessage(text="Go")).message

    assert first.text == "1 messages"
    assert ask(model, UserMessage(text="Go"), first, UserMessage(text="Your answer cannot be used: no")) == whole


def test_copies_in_other_processes_are_counted(tmp_path: Path) -> None:
    from apache_beam.internal import cloudpickle_pickler

    model = ScriptedModel(
        [ModelError("busy", retryable=True), lambda request: calls(("a", {})), "Done"], record=tmp_path / "calls.jsonl"
    )
    code = (
        "import asyncio, sys\n"
        "from apache_beam.internal import cloudpickle_pickler\n"
        "from beam_agents.messages import ModelRequest, UserMessage\n"
        "model = cloudpickle_pickler.loads(sys.stdin.buffer.read())\n"
        "print(asyncio.run(model.request(ModelRequest(messages=(UserMessage(text='Go'),)))).message.model_dump_json())\n"
    )
    with pytest.raises(ModelError, match="busy"):
        ask(model, UserMessage(text="Go"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=cloudpickle_pickler.dumps(model),
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr.decode()
    answer = AssistantMessage.model_validate(json.loads(done.stdout))
    assert answer.tool_calls[0].name == "a"
    with pytest.raises(AssertionError, match="ended after 1"):
        model.assert_complete()

    ask(model, UserMessage(text="Go"), *with_results(answer))

    model.assert_complete()
    assert [len(request.messages) for request in model.requests] == [1, 1, 3]


def test_requests_are_noted_whole() -> None:
    request = ModelRequest(
        messages=(*HISTORY, UserMessage(text="Gö\nno\u2028w")),
        tools=(ToolSpec(name="a", description="A.", parameters={"type": "object", "properties": {}}),),
        output=OutputSpec(name="Verdict", json_schema=Verdict.model_json_schema()),
    )
    model = ScriptedModel(["Done"])

    asyncio.run(model.request(request))

    assert model.requests == [request]
    assert model.requests[0].digest() == request.digest()


def test_the_record_goes_with_the_model() -> None:
    model = ScriptedModel(["Done"])
    record = model.record
    assert record.exists()

    del model

    assert not record.exists()


@pytest.mark.parametrize("script", [[], "Done", {"a": []}, [3], {"a": "Done"}])
def test_a_wrong_script_is_refused(script: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="ScriptedModel: "):
        ScriptedModel(script)
