"""Changes as values that travel between transforms."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from pydantic import BaseModel

from beam_agents import RunFailure, RunResult
from beam_agents.events import FailureReason, Identified
from beam_agents.io.changes import Change, change_type


class Reading(BaseModel):
    device: str


class Device(BaseModel):
    name: str


INSERT: Change[Reading] = Change[Reading](operation="insert", table="readings", after=Reading(device="d"))
BOTH = change_type({"readings": Reading, "devices": Device})


@pytest.mark.parametrize(
    "value",
    [
        INSERT,
        Identified[Change[Reading]](id="1", event=INSERT),
        RunResult[Change[Reading], str](run_id="1", event=INSERT, output="fine"),
        RunFailure[Change[Reading]](reason=FailureReason.DEADLINE, message="late", event=INSERT),
        Identified[BOTH](id="1", event=INSERT),
        Identified[Change[Reading] | None](id="1", event=INSERT),
    ],
    ids=repr,
)
def test_a_value_is_pickled_with_its_types_arguments(value: Any) -> None:
    read = pickle.loads(pickle.dumps(value))
    assert read == value
    assert type(read).model_json_schema() == type(value).model_json_schema()
    assert type(read.event if hasattr(read, "event") else read) is Change[Reading]


def test_a_row_is_what_it_is_now_or_was_before() -> None:
    gone: Change[Reading] = Change[Reading](operation="delete", table="readings", before=Reading(device="d"))
    assert INSERT.row == gone.row == Reading(device="d")
    assert Change[Reading](operation="truncate", table="readings").row is None
