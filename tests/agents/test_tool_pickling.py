"""Tools, workflows and agents travel to other processes: by name where they can be imported, by value otherwise."""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from apache_beam.internal import cloudpickle_pickler
from tool_shelf import SHELF_AGENT, Shelf, shelf_flow, shelf_lookup

from beam_agents import RunContext, tool

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def python(*arguments: str, path: tuple[Path, ...] = (ROOT,), stdin: str | None = None) -> str:
    """Runs a Python of its own and returns what it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, input=stdin, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def in_another_process(value: object, expression: str) -> str:
    """What `expression` gives in another process for the unpickled `value`."""
    pickled = cloudpickle_pickler.dumps(value)
    code = (
        "import sys, base64; from apache_beam.internal import cloudpickle_pickler;"
        "value = cloudpickle_pickler.loads(base64.b64decode(sys.stdin.read()));"
        f"print({expression})"
    )
    return python("-c", code, path=(ROOT, HERE), stdin=base64.b64encode(pickled).decode()).strip()


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle_pickler.dumps])
def test_an_importable_tool_is_pickled_by_name(dumps) -> None:  # type: ignore[no-untyped-def]
    loads = pickle.loads if dumps is pickle.dumps else cloudpickle_pickler.loads

    assert loads(dumps(shelf_lookup)) is shelf_lookup
    assert loads(dumps(Shelf.held)) is Shelf.held


def test_an_importable_tool_is_the_same_in_another_process() -> None:
    assert in_another_process(shelf_lookup, "value.name, sorted(value.spec.parameters['properties'])") == (
        "shelf_lookup ['kind']"
    )


def test_a_local_tool_is_pickled_by_value() -> None:
    factor = 3

    @tool(effect="pure", name="times", retries=2)
    def local(ctx: RunContext, number: int) -> int:
        """Multiplies."""
        return number * factor

    copied = cloudpickle_pickler.loads(cloudpickle_pickler.dumps(local))

    assert (copied.name, copied.retries, copied.spec) == ("times", 2, local.spec)
    assert copied.invoke(copied.function, None, {"number": 2}) == 6


def test_a_local_tool_works_in_another_process() -> None:
    factor = 3

    @tool(effect="pure")
    def local(ctx: RunContext, number: int) -> int:
        """Multiplies."""
        return number * factor

    assert in_another_process(local, "value.invoke(value.function, None, {'number': 2})") == "6"


def test_an_agent_and_a_workflow_work_in_another_process() -> None:
    assert "skipped=False" in in_another_process(SHELF_AGENT, "value.run_sync({'txn_id': '1'})")
    assert in_another_process(shelf_flow, "value.run_sync({'txn_id': '1'}).output") == "{'kind': 'a'}"


def test_an_overriding_model_travels_with_a_workflow() -> None:
    from beam_agents.testing import ScriptedModel

    with shelf_flow.override(model=ScriptedModel(["x"])):
        pickled = cloudpickle_pickler.dumps(shelf_flow)

    assert shelf_flow.model is not None
    assert shelf_flow.model.name == "schema"
    assert cloudpickle_pickler.loads(pickled).model.name == "scripted"


SCRIPT = """
    from typing import Literal

    import apache_beam as beam
    from pydantic import BaseModel

    from beam_agents import Agent, RunAgent, RunContext, tool, workflow
    from beam_agents.testing import SchemaModel


    class Payment(BaseModel):
        id: str
        card: str


    class Opinion(BaseModel):
        ok: bool


    @tool(effect="pure")
    def look_up(ctx: RunContext[Payment, None, None], kind: Literal["a", "b"]) -> dict[str, str]:
        return {"kind": kind, "card": ctx.event.card}


    @workflow(model=SchemaModel())
    async def flow(ctx: RunContext[Payment, None, None], event: Payment) -> Opinion:
        await ctx.call(look_up, kind="b")
        return await ctx.extract(event.card, Opinion)


    agent = Agent("agent", model=SchemaModel(), tools=[look_up], event_type=Payment, output_type=Opinion)

    if __name__ == "__main__":
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            events = pipeline | beam.Create([Payment(id="1", card="c")]) | beam.WithKeys(lambda e: e.card)
            for one in (agent, flow):
                out = events | one.name >> RunAgent(one, event_id="id")
                shuffled = out.results | f"Shuffle {one.name}" >> beam.Reshuffle()
                shuffled | f"Print {one.name}" >> beam.Map(lambda kv, name: print(name, kv[0], kv[1].output), one.name)
                out.failures | f"Failures {one.name}" >> beam.Map(print)
"""


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"], ids=["types", "postponed"])
def test_a_program_may_be_one_file(tmp_path: Path, future: str) -> None:
    """What most first programs look like: models, tools and pipeline in the script that is run."""
    script = tmp_path / "program.py"
    script.write_text(future + textwrap.dedent(SCRIPT))

    assert sorted(python(str(script)).splitlines()) == ["agent c ok=True", "flow c ok=True"]
