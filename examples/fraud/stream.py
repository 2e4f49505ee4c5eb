"""Watches an endless stream of card payments with the fraud agent.

Payments are appended to JSONL files in a folder, and made up unless --input has them. The job reads the folder,
and each payment's verdict appears here, and in a SQLite file, soon after its line was written. Stop it with Ctrl-C and
start it again: the ledger knows what was decided, and nothing is done twice.

    python -m examples.fraud.stream                       # on Prism, without Java
    python -m examples.fraud.stream --rate=50 --seconds=60
    python -m examples.fraud.stream --rate=0              # no payments of its own: append some to the folder

`python -m examples.fraud.flink_demo` runs the same on a Flink cluster that it starts.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from beam_agents import RunAgent
from examples.common import FollowRows, Row, chosen_model, parse, parser
from examples.fraud.agent import fraud_agent
from examples.fraud.bank import Bank
from examples.fraud.feed import Feeder, endless_payments
from examples.fraud.generator import blocklist, merchants
from examples.fraud.kept import KeepOutputs, kept_after, make_file
from examples.fraud.main import card_of
from examples.fraud.rules import fraud_rules
from runners.prism import prism_options

LOOK_SECONDS = 0.2
SUMMARY_SECONDS = 5.0


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments, options = read_arguments(argv, stream_parser())
    set_up(arguments)
    pipeline = beam.Pipeline(options=options)
    fraud_stream(pipeline, arguments)
    job = pipeline.run()
    try:
        with feeding(arguments):
            show(arguments, lambda: not PipelineState.is_terminal(job.state))
        if PipelineState.is_terminal(job.state):
            job.wait_until_finish()  # raises what it failed with
    finally:
        logging.disable()  # the program ends here, and the job's threads complain that they are cut off
        job.cancel()


def fraud_stream(pipeline: beam.Pipeline, arguments: argparse.Namespace) -> None:
    """Builds the pipeline."""
    model = chosen_model(arguments, offline=fraud_rules())
    agent = fraud_agent(model, open_bank=partial(Bank, arguments.bank))
    rows, bad_lines = pipeline | "Payments" >> FollowRows(arguments.payments)
    # A payment's own time is long ago when its line is read: a window that waits for it would have ended. So the time
    # of a payment in the stream is when it was read; the agent goes by the payment's own, which is in the event.
    out = (
        rows
        | "ByCard" >> beam.WithKeys(card_of).with_output_types(tuple[Any, Row])
        | "Fraud" >> RunAgent(agent, event_id="txn_id", ledger=arguments.ledger)
    )
    out.results | "Results" >> KeepOutputs(arguments.outputs, "results")
    (
        (out.failures, bad_lines)
        | "AllFailures" >> beam.Flatten()
        | "Failures" >> KeepOutputs(arguments.outputs, "failures")
    )
    out.duplicates | "Duplicates" >> KeepOutputs(arguments.outputs, "duplicates")


def stream_parser() -> argparse.ArgumentParser:
    """The options of the endless demo."""
    made = parser("fraud.stream", __doc__)
    made.set_defaults(out="demo-out/fraud-stream", runner="PrismRunner")
    made.add_argument("--payments", metavar="FOLDER", help="where payments arrive, as JSONL files (FOLDER/payments)")
    made.add_argument(
        "--rate", metavar="N", type=float, default=5.0, help="payments a second, 0 for none (%(default)s)"
    )
    made.add_argument("--seed", metavar="S", type=int, default=1, help="which payments to make up (%(default)s)")
    made.add_argument("--seconds", metavar="N", type=float, help="stop by itself after so long")
    return made


def read_arguments(argv: list[str] | None, made: argparse.ArgumentParser) -> tuple[argparse.Namespace, PipelineOptions]:
    """The program's options and Beam's, with all paths absolute: workers may be in another folder."""
    given = sys.argv[1:] if argv is None else argv
    if made.parse_known_args(given)[0].runner == "PrismRunner":
        given = [*prism_options(), *given]
    arguments, options = parse(made, [*given, "--streaming"])
    if arguments.rate < 0:
        made.error(f"--rate {arguments.rate:g} must not be negative")
    arguments.out = str(Path(arguments.out).absolute())
    arguments.payments = str(Path(arguments.payments or f"{arguments.out}/payments").absolute())
    arguments.bank = f"{arguments.out}/bank.db"
    arguments.outputs = f"{arguments.out}/outputs.db"
    return arguments, options


def set_up(arguments: argparse.Namespace) -> None:
    """Makes the folder where payments arrive, the file where outputs are kept, and the bank."""
    Path(arguments.payments).mkdir(parents=True, exist_ok=True)
    make_file(arguments.outputs)
    with closing(Bank(arguments.bank)) as bank:
        bank.set_up(merchants().items(), blocklist().items())


def feeding(arguments: argparse.Namespace) -> AbstractContextManager[Any]:
    """Appends payments while the block runs, if the options ask for it."""
    if not arguments.rate:
        return nullcontext()
    if arguments.input is None:
        return Feeder(arguments.payments, endless_payments(arguments.seed), arguments.rate)
    return Feeder(arguments.payments, Path(arguments.input).read_text("utf-8").splitlines(), arguments.rate)


def show(arguments: argparse.Namespace, goes_on: Callable[[], bool]) -> None:
    """Prints what comes out until Ctrl-C, the end of --seconds, or the job's."""
    started = time.monotonic()
    number = max((kept.number for kept in kept_after(arguments.outputs)), default=0)
    counts: Counter[str] = Counter()
    summed_up = started
    try:
        while goes_on() and (arguments.seconds is None or time.monotonic() - started < arguments.seconds):
            time.sleep(LOOK_SECONDS)
            for kept in kept_after(arguments.outputs, number):
                number = kept.number
                counts[kept.row["output"]["decision"] if kept.kind == "results" else kept.kind] += 1
                if (line := _line(kept.kind, kept.row)) is not None:
                    print(line, flush=True)
            if time.monotonic() - summed_up >= SUMMARY_SECONDS:
                summed_up = time.monotonic()
                print(_summary(counts, summed_up - started), flush=True)
    except KeyboardInterrupt:
        pass
    print(_summary(counts, time.monotonic() - started), flush=True)


def _line(kind: str, row: Row) -> str | None:
    """What is worth a line: whatever is no approval."""
    if kind == "failures":
        return f"failure  {row['reason']}: {row['message']}"
    if kind != "results" or row["output"]["decision"] == "approve":
        return None
    event, output = row["event"], row["output"]
    return f"{output['decision']:7}  {row['key']}  {event['amount']:9.2f} USD  {'; '.join(output['reasons'])}"


def _summary(counts: Counter[str], seconds: float) -> str:
    parts = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "nothing yet"
    return f"[{seconds:5.0f} s]  {parts}"


if __name__ == "__main__":
    main()
