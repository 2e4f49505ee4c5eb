"""What the mishaps of a model come to in a run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from agent_kit import ECHO, Verdict, failure_of
from driving import run

from beam_agents import (
    Agent,
    Budget,
    ConfigurationError,
    Model,
    ModelError,
    ModelSettings,
    RunAgent,
    RunContext,
    workflow,
)
from beam_agents.messages import ModelRequest, ModelResponse
from beam_agents.models import FallbackModel, FunctionModel, OpenAIModel, say
from beam_agents.models.network import SWITCH
from beam_agents.testing import Fault, MockChatServer, ScriptedModel, calls, forbid_network_models

pytestmark = pytest.mark.usefixtures("replay_mode")

QUICK = ModelSettings(timeout=20, retries=1)


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)


def served(server: MockChatServer, **more: Any) -> Agent[Any, Any, Any, Any]:
    return Agent("a", model=OpenAIModel("m", base_url=server.base_url), settings=QUICK, **more)


def failing(error: BaseException, name: str = "broken") -> FunctionModel:
    def fail(request: ModelRequest) -> Any:
        raise error

    return FunctionModel(fail, name=name)


# ---- over the wire ----


@pytest.mark.parametrize("fault", [Fault("status", 429, 0.01), Fault("status", 500), Fault("cut")], ids=str)
def test_a_passing_fault_is_not_seen(fault: Fault) -> None:
    with MockChatServer(faults=[fault]) as server:
        result = served(server, output_type=Verdict).run_sync({})

        assert isinstance(result.output, Verdict)
        assert result.usage.steps == 1
        assert result.usage.tokens > 0
        assert server.stats["calls"] == 2


@pytest.mark.parametrize("fault", [Fault("status", 429), Fault("status", 500), Fault("cut")], ids=str)
def test_a_fault_that_stays_is_a_model_error(fault: Fault) -> None:
    with MockChatServer(faults=[fault] * 9) as server:
        failure = failure_of(served(server, prompt="Hello."))

        assert failure.reason == "model_error"
        assert "openai:m" in failure.message
        assert [message.text for message in failure.transcript] == ["Hello."]
        assert server.stats["calls"] == 2


def test_a_wrong_request_is_not_sent_again() -> None:
    with MockChatServer(faults=[Fault("status", 400)]) as server:
        assert failure_of(served(server)).reason == "model_error"
        assert server.stats["calls"] == 1


@pytest.mark.parametrize("fault", [Fault("rubbish"), Fault("empty")], ids=str)
def test_a_body_that_is_no_answer_is_a_model_error(fault: Fault) -> None:
    with MockChatServer(faults=[fault] * 9) as server:
        assert failure_of(served(server)).reason == "model_error"


def test_an_answer_that_does_not_fit_is_corrected_over_the_wire() -> None:
    def answer(body: dict[str, Any]) -> str:
        return '{"ok": true}' if len(body["messages"]) == 3 else "rubbish"

    with MockChatServer(answer) as server:
        assert served(server, output_type=Verdict).run_sync({}).output == Verdict(ok=True)
        assert [message["role"] for message in server.requests[-1]["messages"]] == ["user", "assistant", "user"]


def test_an_empty_answer_is_asked_for_again() -> None:
    answers = iter(["", "Hello."])
    with MockChatServer(lambda body: next(answers)) as server:
        assert served(server).run_sync({}).output == "Hello."


def test_a_server_that_only_gives_empty_answers_is_a_model_error() -> None:
    with MockChatServer(lambda body: "") as server:
        failure = failure_of(served(server))

        assert failure.reason == "model_error"
        assert "gave an empty answer" in failure.message


def test_a_server_that_is_not_there_is_a_model_error() -> None:
    with MockChatServer() as server:
        gone = server.base_url
    one = Agent("a", model=OpenAIModel("m", base_url=gone), settings=ModelSettings(retries=0))

    assert failure_of(one).reason == "model_error"


# ---- errors of a model itself ----


def test_an_error_is_told_in_the_dead_letter() -> None:
    failure = failure_of(Agent("a", model=failing(ModelError("the model is drunk"))))

    assert (failure.reason, failure.message) == ("model_error", "the model is drunk")


def test_an_error_after_a_tool_has_the_whole_transcript() -> None:
    from tool_shelf import Shelf

    one = Agent("a", model=ScriptedModel([calls(("held", {"number": 1})), ModelError("down")]), tools=[Shelf.held])
    failure = failure_of(one)

    assert failure.reason == "model_error"
    assert [message.role for message in failure.transcript] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("error", [ValueError("what?"), asyncio.CancelledError(), TimeoutError("slow")], ids=repr)
def test_an_unknown_error_is_a_model_error(error: BaseException) -> None:
    budget = Budget(wall_clock=timedelta(seconds=3))
    one = Agent("a", model=failing(error), settings=ModelSettings(retries=0), budget=budget)

    failure = failure_of(one)

    assert failure.reason == "model_error"
    assert "'broken'" in failure.message


def test_a_model_that_returns_something_else_is_a_model_error() -> None:
    failure = failure_of(Agent("a", model=FunctionModel(lambda request: "Hello.")))  # type: ignore[arg-type, return-value]

    assert failure.reason == "model_error"
    assert "return an AssistantMessage" in failure.message


class Unconnected(Model):
    """Cannot open its client."""

    network = False

    @property
    def name(self) -> str:
        return "unconnected"

    async def connect(self) -> None:
        raise ImportError("no driver")

    async def request(self, request: ModelRequest) -> ModelResponse:
        raise AssertionError("never asked")


def test_a_model_that_cannot_connect_is_a_model_error() -> None:
    failure = failure_of(Agent("a", model=Unconnected()))

    assert failure.reason == "model_error"
    assert "no driver" in failure.message


def test_a_fallback_takes_the_place_of_a_model_that_cannot_connect() -> None:
    assert Agent("a", model=FallbackModel(Unconnected(), ECHO), prompt="Hello.").run_sync({}).output == "Hello."


def test_a_fallback_answers_for_a_model_that_is_down() -> None:
    with MockChatServer(faults=[Fault("status", 500)] * 9) as server:
        model = FallbackModel(OpenAIModel("m", base_url=server.base_url), ECHO)

        assert Agent("a", model=model, prompt="Hello.").run_sync({}).output == "Hello."
        assert server.stats["calls"] == 1


SYSTEM_EXIT = """
    import sys
    from beam_agents import Agent, RunFailed, tool
    from beam_agents.models import FunctionModel
    from beam_agents.testing import ScriptedModel, calls, say

    @tool(effect="pure")
    def leave() -> str:
        sys.exit("bye")

    def leave_model(request):
        sys.exit("bye")

    tool_leaves = Agent("a", model=ScriptedModel([calls(("leave", {})), "Done."]), tools=[leave])
    model_leaves = Agent("b", model=FunctionModel(leave_model))
    state_leaves = Agent("c", model=FunctionModel(leave_model), state_type=dict, on_event=lambda s, e: sys.exit("bye"))
    for one in (tool_leaves, model_leaves, state_leaves):
        try:
            one.run_sync({})
        except RunFailed as error:
            print(error.failure.reason.value, flush=True)
    print(Agent("d", model=FunctionModel(lambda request: say("alive"))).run_sync({}).output, flush=True)
"""


def test_code_that_wants_to_leave_the_process_only_ends_its_run() -> None:
    """`sys.exit` is what argument parsers do; the worker's loop must outlive it."""
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SYSTEM_EXIT)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    try:
        printed, _ = child.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        child.kill()
        printed, _ = child.communicate()

    assert printed.split() == ["tool_error", "model_error", "code_error", "alive"]


# ---- forbidden models ----


ONLINE = OpenAIModel("m", base_url="http://127.0.0.1:9/v1")


def test_run_agent_refuses_a_forbidden_model() -> None:
    with (
        forbid_network_models(),
        pytest.raises(ConfigurationError, match=r"'openai:m' uses the network.*FunctionModel"),
    ):
        RunAgent(Agent("a", model=ONLINE), event_id="id")


def test_run_agent_takes_a_fallback_with_a_member_that_works_offline() -> None:
    one = Agent("a", model=FallbackModel(ONLINE, ECHO), prompt="Hello.")
    with forbid_network_models():
        out = run(one, [("k", {"id": "1"})], event_id="id")

    assert out.outputs == {"1": "Hello."}


def test_a_forbidden_model_is_refused_in_the_worker() -> None:
    @workflow(model=ECHO)
    async def sneaky(ctx: RunContext[Any, Any, Any], event: dict[str, Any]) -> str:
        return await ctx.model("Hello.", model=ONLINE)

    with forbid_network_models():
        out = run(sneaky, [("k", {"id": "1"})], event_id="id")

    assert out.reasons == {"1": "model_error"}
    assert "uses the network" in out.failures[0].value.message


class Watched(Model):
    """Uses the network already when it connects."""

    def __init__(self) -> None:
        self.connected: list[str] = []

    @property
    def name(self) -> str:
        return "watched"

    async def connect(self) -> None:
        self.connected.append("yes")

    async def request(self, request: ModelRequest) -> ModelResponse:
        raise AssertionError("never asked")


def test_a_forbidden_model_is_not_even_connected() -> None:
    alone, member = Watched(), Watched()
    with forbid_network_models():
        failure = failure_of(Agent("a", model=alone))
        Agent("b", model=FallbackModel(member, ECHO)).run_sync({})

    assert failure.reason == "model_error"
    assert alone.connected == member.connected == []


def test_the_switch_reaches_run_sync() -> None:
    with forbid_network_models():
        assert failure_of(Agent("a", model=ONLINE)).reason == "model_error"


def test_override_is_for_the_block() -> None:
    one = Agent("a", model=ONLINE, prompt="Hello.")
    with one.override(model=FunctionModel(lambda request: say("Hi."))):
        assert one.run_sync({}).output == "Hi."
        inside = RunAgent(one, event_id="id")

    assert one.model is ONLINE
    assert inside._use.agent.model is not None
    assert inside._use.agent.model.name == "function"
