"""Watches a file of card payments with the fraud agent, on DirectRunner.

Without --input the payments are made up, and some are fraud. Each gets a verdict in results.jsonl or stands
with its reason in failures.jsonl; what comes twice is in duplicates.jsonl, and each step of each run in trace.jsonl.

    python -m examples.fraud                       # no key, no server: an offline model decides by rules
    python -m examples.fraud                       # again: everything comes from the ledger, nothing is done twice
    python -m examples.fraud --model openai:NAME --base-url http://localhost:8080/v1
    python -m examples.fraud --input payments.csv

A CSV file needs the columns txn_id, card, time, amount, merchant, city, latitude and longitude; a JSONL file has an
object with these fields on each line. Times are ISO 8601 with a zone, amounts are in US dollars.
Stop it in the middle, kill it, start it again: it goes on where it was, and no card is put on hold twice.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from pydantic import AwareDatetime, TypeAdapter, ValidationError

from beam_agents import RunAgent
from examples.common import (
    Progress,
    ReadRows,
    Row,
    chosen_model,
    counters,
    headline,
    parse,
    parser,
    read_jsonl,
    write_outputs,
)
from examples.fraud.agent import fraud_agent
from examples.fraud.bank import Bank
from examples.fraud.generator import PATTERNS, blocklist, generate, merchants
from examples.fraud.rules import fraud_rules

_TIME: TypeAdapter[AwareDatetime] = TypeAdapter(AwareDatetime)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments, options = _arguments(argv)
    bank = Bank(arguments.bank)
    bank.set_up(merchants().items(), blocklist().items())
    patterns: dict[str, str] = {}
    if arguments.input is None:
        payments = generate(arguments.events, arguments.seed)
        arguments.input = Path(arguments.out) / "payments.jsonl"
        payments.write(arguments.input)
        patterns = payments.patterns
    print(f"Reading payments from {arguments.input}, recording runs in {arguments.ledger}", file=sys.stderr)
    with Progress() as progress:
        counts = watch(arguments, options)
    print(_summary(arguments, counts, patterns, bank, progress.seconds))
    bank.close()


def watch(arguments: argparse.Namespace, options: PipelineOptions) -> dict[str, int]:
    """Runs the pipeline to its end and returns its counters."""
    model = chosen_model(arguments, offline=fraud_rules())
    agent = fraud_agent(model, open_bank=partial(Bank, arguments.bank, arguments.bank_delay))
    with beam.Pipeline(options=options) as pipeline:
        rows, bad_lines = pipeline | "Payments" >> ReadRows(arguments.input)
        out = (
            rows
            | "EventTime" >> beam.Map(at_event_time)
            | "ByCard" >> beam.WithKeys(card_of)
            | "Fraud" >> RunAgent(agent, event_id="txn_id", ledger=arguments.ledger)
        )
        write_outputs(out, arguments.out, bad_lines=bad_lines, order=_time_and_id)
    return counters(pipeline.result, scope="fraud")


def at_event_time(row: Row) -> Any:
    """The row, at the time that it names; the agent refuses a row without one."""
    try:
        return TimestampedValue(row, Timestamp(_TIME.validate_python(row.get("time")).timestamp()))
    except ValidationError:
        return row


def card_of(row: Row) -> str | None:
    """The card, by which payments are remembered together; the agent refuses a row without one."""
    card = row.get("card")
    return card if isinstance(card, str) else None


def _time_and_id(result: Row) -> tuple[str, str]:
    return result["event"]["time"], result["run_id"]


def _arguments(argv: list[str] | None) -> tuple[argparse.Namespace, PipelineOptions]:
    made = parser("fraud", __doc__)
    made.add_argument(
        "--events", metavar="N", type=int, default=2000, help="how many payments to make up (%(default)s)"
    )
    made.add_argument("--seed", metavar="S", type=int, default=1, help="which ones (%(default)s)")
    made.add_argument("--bank", metavar="FILE", help="the bank's database, made if it is not there (FOLDER/bank.db)")
    made.add_argument(
        "--bank-delay",
        metavar="SECONDS",
        type=float,
        default=0.0,
        help="how slow the bank is: a hold takes this long before it stands, and again before the bank answers",
    )
    arguments, options = parse(made, argv)
    if arguments.events < 50:
        made.error(f"--events {arguments.events}: at least 50 are needed to hold one of each kind of payment")
    arguments.bank = arguments.bank or f"{arguments.out}/bank.db"
    return arguments, options


def _summary(
    arguments: argparse.Namespace, counts: dict[str, int], patterns: dict[str, str], bank: Bank, seconds: float
) -> str:
    out = Path(arguments.out)
    results, failures = read_jsonl(out / "results.jsonl"), read_jsonl(out / "failures.jsonl")
    duplicates = read_jsonl(out / "duplicates.jsonl")
    decisions = Counter(result["output"]["decision"] for result in results)
    deciders = Counter(result["output"]["decided_by"] for result in results)
    holds, second_holds = bank.count_holds()
    lines = [
        f"Verdicts    {len(results)}: {_counts(decisions)}",
        f"Decided by  {_counts(deciders)}",
        f"Failures    {len(failures)}: {_counts(Counter(failure['reason'] for failure in failures))}",
        f"Duplicates  {len(duplicates)}",
        f"Holds       {holds} in the bank's database, {second_holds} of them a second one for the same request",
    ]
    if patterns:
        stopped = {result["run_id"] for result in results if result["output"]["decision"] != "approve"}
        found = Counter(pattern for payment, pattern in patterns.items() if payment in stopped)
        total = Counter(patterns.values())
        parts = ", ".join(f"{pattern} {found[pattern]} of {total[pattern]}" for pattern in PATTERNS)
        lines.append(f"Fraud       {parts} stopped; {len(stopped - patterns.keys())} other payments stopped")
    lines += [
        f"Files       {shlex.quote(str(out))}/results.jsonl, failures.jsonl, duplicates.jsonl, trace.jsonl",
        f"Time        {seconds:.1f} s",
        headline(counts),
    ]
    return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"
