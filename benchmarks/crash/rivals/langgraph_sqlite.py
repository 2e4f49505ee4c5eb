"""LangGraph: `create_agent` with its SQLite checkpointer, in both durabilities that write while a run goes on.

Resumed as documented: the same thread id, and no input while the newest checkpoint has tasks that are not over.
Favourably, this is asked of the state's `tasks`: its `next`, which examples look at, is empty already when the last
task's result is saved and the checkpoint after it is not, and a program that trusts it starts the next turn in the
middle of one. `create_agent` runs each call of an answer as a task of its own, so the result of each is saved when it
has come back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.tools import ToolRuntime
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.sqlite import SqliteSaver

from benchmarks.crash.rivals.crashing import Calls, Faults
from benchmarks.crash.rivals.yardstick import Call, Scenario

MOST_STEPS = 1_000
"""The default of 25 would end long turns."""


class ScriptedChat(BaseChatModel):
    """The scripted model; the conversation says which answer is next."""

    calls: Any

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> ScriptedChat:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        position = sum(isinstance(message, AIMessage) for message in messages)
        reply = self.calls.ask(position)
        calls = [{"id": call.position, "name": call.tool, "args": call.arguments} for call in reply.calls]
        answer = AIMessage(reply.text, tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=answer)])


class WatchedSaver(SqliteSaver):
    """The checkpointer, with the fault point after it has committed a result."""

    calls: Calls

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        super().put_writes(config, writes, task_id, task_path)
        for _, value in writes:
            for message in value if isinstance(value, list) else [value]:
                if isinstance(message, ToolMessage):
                    self.calls.recorded(message.tool_call_id)


def tool_of(calls: Calls, described: dict[str, Any]) -> StructuredTool:
    """A tool of the scenario as LangChain's documentation writes one with a schema."""

    def run(runtime: ToolRuntime, **arguments: Any) -> str:
        return calls.make(Call(runtime.tool_call_id or "", described["name"], arguments))

    properties = {name: {"title": name} for name in described["parameters"]["properties"]}
    return StructuredTool.from_function(
        run,
        name=described["name"],
        description=described["description"],
        args_schema={"title": described["name"], "type": "object", "properties": properties},
    )


def run_sync(scenario: Scenario, faults: Faults, folder: Path) -> None:
    run(scenario, faults, folder, "sync")


def run_async(scenario: Scenario, faults: Faults, folder: Path) -> None:
    run(scenario, faults, folder, "async")


def run(scenario: Scenario, faults: Faults, folder: Path, durability: Literal["sync", "async"]) -> None:
    calls = Calls(scenario, faults, records_each=True)
    saver = WatchedSaver(sqlite3.connect(folder / "checkpoints.db", check_same_thread=False))
    saver.calls = calls
    tools = [tool_of(calls, described) for described in scenario.tools]
    agent = create_agent(ScriptedChat(calls=calls), tools, checkpointer=saver)
    config: RunnableConfig = {"configurable": {"thread_id": scenario.name}, "recursion_limit": MOST_STEPS}
    state = agent.get_state(config)
    heard = sum(isinstance(message, HumanMessage) for message in state.values.get("messages", []))
    if state.tasks:
        agent.invoke(None, config, durability=durability)
        heard = sum(isinstance(m, HumanMessage) for m in agent.get_state(config).values["messages"])
        faults.reach("after_close", str(heard))
    for turn, user in enumerate(scenario.users[heard:], heard + 1):
        agent.invoke({"messages": [HumanMessage(user)]}, config, durability=durability)
        faults.reach("after_close", str(turn))
