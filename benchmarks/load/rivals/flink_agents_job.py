"""Apache Flink Agents on the same events: an agent with its loop of chat and tools, in one JVM, for ever.

    python -m benchmarks.load.rivals.flink_agents_job --out FOLDER --server URL --threads N

Follows the files in FOLDER/bursts, each with the burst's name and its number of events, and stamps what comes out.
Favourably: model and tool calls are asynchronous, its answer is not parsed, and nothing is durable: state is on the
heap, there is no checkpoint and no store of what its actions have done.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flink_agents.api.agents.agent import Agent
from flink_agents.api.chat_message import ChatMessage, MessageRole
from flink_agents.api.core_options import AgentConfigOptions, AgentExecutionOptions
from flink_agents.api.decorators import action
from flink_agents.api.events.chat_event import ChatRequestEvent, ChatResponseEvent
from flink_agents.api.events.event import InputEvent, OutputEvent
from flink_agents.api.execution_environment import AgentsExecutionEnvironment
from flink_agents.api.resource import ResourceDescriptor, ResourceName, ResourceType
from flink_agents.api.runner_context import RunnerContext
from flink_agents.api.tools.tool import Tool
from pyflink.common import Configuration, Duration, Types, WatermarkStrategy
from pyflink.datastream import FlatMapFunction, MapFunction, RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.connectors.file_system import FileSource, StreamFormat

from benchmarks.load.stamps import Stamp, begin

OUTPUTS = "out"
"""Outputs do not say what they belong to: they are stamped as `out-1`, `out-2` ..."""

_INSTRUCTIONS = "Look the name of the event up, then say whether all is well."
_MODEL = "mock"
_TIMEOUT = 300.0
_POLL = Duration.of_millis(100)


def look_up(name: str) -> str:
    """Looks a name up.

    Args:
        name: Whom to look up.
    """
    return f"{name} is known"


class Asking(Agent):  # type: ignore[misc]
    """What its `ReActAgent` is, which in this release cannot be made without a schema that the answer has to fit."""

    @action(InputEvent)
    @staticmethod
    def ask(event: InputEvent, ctx: RunnerContext) -> None:
        """Begins the loop."""
        messages = [
            ChatMessage(role=MessageRole.SYSTEM, content=_INSTRUCTIONS),
            ChatMessage(role=MessageRole.USER, content=event.input),
        ]
        ctx.send_event(ChatRequestEvent(model=_MODEL, messages=messages))

    @action(ChatResponseEvent)
    @staticmethod
    def answer(event: ChatResponseEvent, ctx: RunnerContext) -> None:
        """Emits the answer."""
        ctx.send_event(OutputEvent(output=event.response.content))


class Spread(FlatMapFunction):  # type: ignore[misc]
    """The events of a burst, and a stamp of the first."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def flat_map(self, value: str) -> Iterator[str]:
        """Gives them as JSON."""
        burst, events = value.split()
        begin(self._out, burst)
        for number in range(int(events)):
            yield json.dumps({"id": f"{burst}-{number:06}", "burst": burst})


class Count(MapFunction):  # type: ignore[misc]
    """Stamps what comes out."""

    def __init__(self, out: Path) -> None:
        self._stamp = Stamp(out)
        self._seen = 0

    def open(self, runtime_context: RuntimeContext) -> None:
        """Opens the file."""
        self._stamp.setup()

    def map(self, value: Any) -> str:
        """Notes it."""
        self._seen += 1
        self._stamp.note(f"{OUTPUTS}-{self._seen}")
        return str(value)


def build(env: StreamExecutionEnvironment, out: Path, server: str, threads: int) -> AgentsExecutionEnvironment:
    """Declares the job.

    Args:
        env: Of Flink.
        out: An existing folder for stamps.
        server: Base URL of the chat server.
        threads: For calls.
    """
    agents = AgentsExecutionEnvironment.get_execution_environment(env)
    options = agents.get_config()
    options.set(AgentExecutionOptions.NUM_ASYNC_THREADS, threads)
    options.set(AgentExecutionOptions.CHAT_ASYNC, True)
    options.set(AgentExecutionOptions.TOOL_CALL_ASYNC, True)
    options.set(AgentConfigOptions.BASE_LOG_DIR, str(out / "events"))
    connection = ResourceDescriptor(
        clazz=ResourceName.ChatModel.OPENAI_CONNECTION, api_base_url=server, api_key="none", timeout=_TIMEOUT
    )
    agents.add_resource("server", ResourceType.CHAT_MODEL_CONNECTION, connection)
    agents.add_resource("look_up", ResourceType.TOOL, Tool.from_callable(look_up))
    model = ResourceDescriptor(
        clazz=ResourceName.ChatModel.OPENAI_SETUP, connection="server", model=_MODEL, tools=["look_up"]
    )
    agents.add_resource(_MODEL, ResourceType.CHAT_MODEL, model)
    files = FileSource.for_record_stream_format(StreamFormat.text_line_format(), f"file://{out / 'bursts'}")
    lines = env.from_source(
        files.monitor_continuously(_POLL).build(), WatermarkStrategy.no_watermarks(), source_name="bursts"
    )
    events = lines.flat_map(Spread(out))
    done = agents.from_datastream(events, key_selector=str).apply(Asking())
    done.to_datastream().map(Count(out), output_type=Types.STRING()).print()
    return agents


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--server", metavar="URL", required=True, help="base URL of the chat server")
    parser.add_argument("--threads", type=int, required=True, help="for calls")
    given = parser.parse_args()
    configuration = Configuration()
    configuration.set_string("python.fn-execution.bundle.time", "50")
    configuration.set_string("python.executable", sys.executable)
    configuration.set_string("python.client.executable", sys.executable)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(1)
    build(env, given.out.absolute(), given.server, given.threads).execute()


if __name__ == "__main__":
    from benchmarks.load.rivals import flink_agents_job  # what is pickled must not be of '__main__'

    flink_agents_job.main()
