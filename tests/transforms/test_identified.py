"""`Identified`: events whose source gave them ids."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from pydantic import BaseModel

from beam_agents import Agent, FailureReason, RunAgent
from beam_agents.errors import ConfigurationError
from beam_agents.io import Identified
from beam_agents.models import FunctionModel, say


class Reading(BaseModel):
    id: str = "own"
    value: int


def agent() -> Agent[Reading, str, Any, Any]:
    return Agent("watch", model=FunctionModel(lambda request: say("ok")), event_type=Reading, output_type=str)


def identified(id: str, value: int) -> tuple[str, Identified[Reading]]:
    return "pump", Identified[Reading](id=id, event=Reading(value=value))


def test_the_id_of_the_source_is_the_runs(tmp_path: Path) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        events = pipeline | beam.Create([identified("t-0-1", 1), identified("t-0-2", 2), identified("t-0-1", 1)])
        outputs = events | RunAgent(agent(), ledger=f"sqlite:///{tmp_path}/runs.db")
        results = outputs.results | "R" >> beam.Map(lambda pair: (pair[1].run_id, pair[1].event))
        assert_that(results, equal_to([("t-0-1", Reading(value=1)), ("t-0-2", Reading(value=2))]))
        duplicates = outputs.duplicates | "D" >> beam.Map(lambda pair: pair[1].run_id)
        assert_that(duplicates, equal_to(["t-0-1"]), label="duplicates")


def test_an_id_that_the_user_names_goes_before(tmp_path: Path) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        events = pipeline | beam.Create([identified("t-0-1", 1)])
        outputs = events | RunAgent(agent(), event_id="id", ledger=f"sqlite:///{tmp_path}/runs.db")
        assert_that(outputs.results | beam.Map(lambda pair: pair[1].run_id), equal_to(["own"]))


def test_events_without_an_id_are_refused_at_construction_where_the_pipeline_says_what_they_are() -> None:
    pipeline = beam.Pipeline("FnApiRunner")
    events = pipeline | beam.Create([("pump", Reading(value=1))]).with_output_types(tuple[str, Reading])
    with pytest.raises(ConfigurationError, match=r"'watch'.*give event_id=\.\.\."):
        _ = events | RunAgent(agent(), ledger="memory:x")


def test_and_where_it_does_not_say_they_are_dead_letters(tmp_path: Path) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        events = pipeline | beam.Create([("pump", {"value": 1})]) | beam.Map(lambda pair: pair).with_output_types(Any)
        outputs = events | RunAgent(agent(), ledger=f"sqlite:///{tmp_path}/runs.db")
        assert_that(outputs.failures | beam.Map(lambda pair: pair[1].reason), equal_to([FailureReason.MISSING_ID]))


def test_it_is_pickled_with_its_type() -> None:
    value = identified("t-0-1", 1)[1]
    again = pickle.loads(pickle.dumps(value))
    assert again == value
    assert type(again) is type(value)
