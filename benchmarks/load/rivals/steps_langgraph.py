"""LangGraph with its SQLite checkpointer: a graph whose node makes a step, until there were enough.

Each step is a superstep whose checkpoint is written before the next one begins (`durability="sync"`), and the results
are in the graph's state, as a workflow needs that works with them.
"""

from __future__ import annotations

import operator
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Annotated, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph

from benchmarks.load.rivals.step_run import RESULT, WARM_STEPS, StepRun, main, measured


class Steps(TypedDict):
    """The graph's state."""

    wanted: int
    results: Annotated[list[str], operator.add]


def step(state: Steps) -> dict[str, list[str]]:
    """The node; a plain function, since the checkpointer is for graphs without a loop."""
    return {"results": [RESULT]}


def after(state: Steps) -> str:
    """Where the graph goes on."""
    return "step" if len(state["results"]) < state["wanted"] else END


def run(file: Path, steps: int) -> StepRun:
    """One run."""
    with closing(sqlite3.connect(file, check_same_thread=False)) as connection:
        graph = StateGraph(Steps)
        graph.add_node("step", step)
        graph.add_edge(START, "step")
        graph.add_conditional_edges("step", after)
        compiled = graph.compile(checkpointer=SqliteSaver(connection))

        def invoke(thread: str, wanted: int) -> None:
            config: RunnableConfig = {"configurable": {"thread_id": thread}, "recursion_limit": wanted + 10}
            ended = compiled.invoke({"wanted": wanted, "results": []}, config, durability="sync")
            if len(ended["results"]) != wanted:
                raise RuntimeError(f"{len(ended['results'])} steps where {wanted} were wanted")

        invoke("warm", WARM_STEPS)
        return measured(file, lambda: invoke("measured", steps))


if __name__ == "__main__":
    main(run)
