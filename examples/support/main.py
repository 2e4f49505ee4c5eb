"""Classifies the messages of a bank's customers, answers them or routes them to a person, on DirectRunner.

    python -m examples.support                     # a small sample; an offline model classifies by rules
    python -m examples.support                     # again: everything comes from the ledger, nothing is done twice
    python -m examples.support --model openai:NAME --base-url http://localhost:8080/v1
    python -m examples.support --input messages.csv --evaluate

A file needs the column text. If it has them, message_id, customer_id, kind (chat or email), subject and category (the
true intent, which only --evaluate looks at) are used. Replies are in results.jsonl, what could not be handled in
failures.jsonl, and what waits for a person in the table queue of desk.db.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import apache_beam as beam

from beam_agents import RunAgent
from examples.common import Progress, chosen_model, counters, headline, parse, parser, read_jsonl, write_outputs
from examples.support.agent import support_agent
from examples.support.desk import Desk
from examples.support.inbox import SAMPLE, accuracy, customer_of, events
from examples.support.rules import MODEL


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = parser("support", __doc__)
    made.add_argument("--evaluate", action="store_true", help="compare the intents with the column category")
    arguments, options = parse(made, argv)
    path, folder = str(arguments.input or SAMPLE), Path(arguments.out)
    model, open_desk = chosen_model(arguments, offline=MODEL), partial(Desk, str(folder / "desk.db"))
    print(f"Reading messages from {path}, recording runs in {arguments.ledger}", file=sys.stderr)

    with Progress() as progress, beam.Pipeline(options=options) as pipeline:
        read = pipeline | beam.Create([path]) | "Messages" >> beam.FlatMap(events).with_outputs("bad", main="events")
        out = (
            read.events
            | "ByCustomer" >> beam.WithKeys(customer_of)
            | "Support" >> RunAgent(support_agent(model, open_desk), event_id="message_id", ledger=arguments.ledger)
        )
        write_outputs(out, folder, bad_lines=read.bad, order=lambda result: result["run_id"])

    results, failures = read_jsonl(folder / "results.jsonl"), read_jsonl(folder / "failures.jsonl")
    answered = Counter(result["output"]["answered_by"] for result in results)
    with closing(open_desk()) as desk:
        print(f"Replies     {len(results)}: {answered['agent']} answered, {answered['person']} handed to a person")
        print(f"Queue       {desk.waiting()} wait for a person")
    print(f"Failures    {len(failures)}: {dict(Counter(failure['reason'] for failure in failures)) or 'none'}")
    if arguments.evaluate:
        print(f"Accuracy    {accuracy(path, results)}")
    print(f"Model       {model.name}")
    print(f"Time        {progress.seconds:.1f} s")
    print(headline(counters(pipeline.result, scope="support")))
