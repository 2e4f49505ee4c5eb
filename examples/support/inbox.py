"""The messages of a file, as events for the agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apache_beam.pvalue import TaggedOutput

from beam_agents import RunFailure
from examples.common import Row, read_rows
from examples.support.desk import sample_customer

SAMPLE = Path(__file__).with_name("sample.csv")
EVENT_FIELDS = ("kind", "message_id", "customer_id", "subject", "text")


def messages(path: str | Path) -> Iterator[Row | RunFailure[Any]]:
    """The file's rows; one without an id is named by its number, one without a customer gets a sample customer."""
    for number, row in enumerate(read_rows(path), 1):
        if isinstance(row, dict):
            row.setdefault("message_id", f"{number:06d}")
            row.setdefault("customer_id", sample_customer(number))
            row.setdefault("kind", "chat")
        yield row


def events(path: str) -> Iterator[Any]:
    """The messages as a customer wrote them: without the true intent. What is no row goes to the output `bad`."""
    for row in messages(path):
        if isinstance(row, RunFailure):
            yield TaggedOutput("bad", (None, row))
        else:
            yield {name: row[name] for name in EVENT_FIELDS if name in row}


def customer_of(event: Row) -> str:
    """The customer, by whom a conversation is remembered."""
    return str(event["customer_id"])


def accuracy(path: str | Path, results: list[Row]) -> str:
    """How many of the file's intents were found; a message without a result counts as a wrong one."""
    rows = (row for row in messages(path) if isinstance(row, dict))
    truth = {row["message_id"]: row["category"] for row in rows if "category" in row}
    if not truth:
        return "not known, the input has no column category"
    found = {result["event"]["message_id"]: result["output"]["intent"] for result in results}
    right = sum(found.get(message) == intent for message, intent in truth.items())
    return f"{right:,} of {len(truth):,} intents right ({right / len(truth):.1%})"
