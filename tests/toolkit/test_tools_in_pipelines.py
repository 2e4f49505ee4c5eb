"""One tool of each kind in one agent, in a pipeline: each called once for an event, whatever the runner repeats."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from toolkit_kit import serving

from beam_agents import Agent, RunAgent
from beam_agents.messages import AssistantMessage, ModelRequest, ToolMessage
from beam_agents.models import FunctionModel, say
from beam_agents.testing import calls
from beam_agents.toolkit import http_tool, mcp_tools, sql_tool

SHOP = str(Path(__file__).with_name("mcp_shop.py"))


def plan(request: ModelRequest) -> AssistantMessage:
    """Calls all the tools, then says what they said."""
    told = [message.text for message in request.messages if isinstance(message, ToolMessage)]
    if not told:
        return calls(("hold", {"card": "c1"}), ("note", {"what": "held"}), ("order", {"item": "pen"}))
    return say(" ".join(told))


@pytest.mark.parametrize("repeat", [[], ["--direct_runner_bundle_repeat=1"]])
def test_each_kind_runs_in_a_pipeline(tmp_path: Path, repeat: list[str]) -> None:
    notes, database = tmp_path / "notes", tmp_path / "d.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("create table notes (key text, what text)")

    def answers(results: Any) -> None:
        said = '{"id":"a1","owner":"Ann","secret_note":"x"} 1 {"result":"ordered"}'
        assert_that(results, equal_to([("one", "e1", said), ("two", "e2", said)]))

    with serving() as served:

        @http_tool("POST", served.url + "/holds/{card}", effect="once")
        def hold(card: str) -> dict[str, str]:
            """Holds a card."""

        @sql_tool(f"sqlite:///{database}", "insert into notes values (:idempotency_key, :what)", effect="idempotent")
        def note(what: str) -> int: ...

        shop = mcp_tools(
            [sys.executable, SHOP], only=["order"], effects={"order": "once"}, env={"SHOP_NOTES": str(notes)}
        )
        agent = Agent("all", model=FunctionModel(plan, name="plan"), tools=[hold, note, *shop])
        run = RunAgent(agent, event_id="id", ledger=f"sqlite:///{tmp_path}/l.db")
        with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", *repeat])) as pipeline:
            out = pipeline | beam.Create([("one", {"id": "e1"}), ("two", {"id": "e2"})]) | run
            answers(out.results | beam.MapTuple(lambda key, result: (key, result.run_id, result.output)))

        keys = [headers["idempotency-key"] for headers in served.headers]
    with closing(sqlite3.connect(database)) as connection:
        noted = connection.execute("select key, what from notes").fetchall()
    assert len(set(keys)) == len(keys) == 2
    assert len({key for key, _ in noted}) == len(noted) == 2
    assert len(set(notes.read_text(encoding="utf-8").splitlines())) == 2
