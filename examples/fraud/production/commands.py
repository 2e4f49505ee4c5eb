"""The fraud agent as it runs in production: Kafka to Kafka on Flink, with the bank and the ledger in PostgreSQL.

    python -m examples.fraud.production up         # starts it all on this machine; Ctrl-C ends it
    python -m examples.fraud.production feed       # in another terminal: payments
    python -m examples.fraud.production show       # what was decided; --follow for what comes
    python -m examples.fraud.production status     # what runs, and what became of the payments
    python -m examples.fraud.production down       # the same as Ctrl-C

`up` starts again what dies: kill any process that `status` names. Needs Java 11 or 17, and Maven for the first start.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from examples.fraud.production.account import Account, account
from examples.fraud.production.feed import feed, payments
from examples.fraud.production.servers import FraudPlatform
from examples.fraud.production.topics import DECISIONS, FAILURES, PAYMENTS, Decision
from examples.fraud.rules import fraud_rules
from examples.production.commands import CommandLine, UserError, parts, running_in
from examples.production.topics import count, records


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    line = CommandLine(
        "fraud", __doc__, FraudPlatform, offline=fraud_rules(), events="payments", account=account, lines=_counts
    )
    feeding = line.command("feed", _feed, "write made-up payments to the topic")
    feeding.add_argument("--count", metavar="N", type=int, default=1000, help="(%(default)s)")
    feeding.add_argument("--rate", metavar="N", type=float, default=20.0, help="a second (%(default)s)")
    feeding.add_argument("--seed", metavar="S", type=int, default=1, help="which payments (%(default)s)")
    feeding.add_argument("--again", action="store_true", help="the first ones once more, not those that follow")
    show = line.command("show", _show, "print decisions that are no approvals, and failures")
    show.add_argument("--all", action="store_true", help="print approvals, too")
    show.add_argument("--follow", action="store_true", help="from now on, until Ctrl-C")
    return line.run(argv)


def _feed(chosen: argparse.Namespace) -> int:
    if chosen.count < 1 or chosen.rate <= 0:
        raise UserError(f"--count {chosen.count} and --rate {chosen.rate:g} must be above zero")
    running = running_in(chosen.folder)
    first = 0 if chosen.again else count(running.servers, PAYMENTS)
    written = feed(running.servers, payments(chosen.seed, first, chosen.count), chosen.rate)
    print(f"{written} payments written, from number {first} on")
    return 0


def _show(chosen: argparse.Namespace) -> int:
    running = running_in(chosen.folder)

    def goes_on() -> bool:
        return chosen.follow and chosen.folder.running() is not None

    for message in records(running.servers, [DECISIONS, FAILURES], from_end=chosen.follow, goes_on=goes_on):
        line = _line(message.topic(), message.value() or b"", approvals=chosen.all)
        if line is not None:
            print(line, flush=True)
    return 0


def _line(topic: str | None, value: bytes, *, approvals: bool) -> str | None:
    if topic == FAILURES:
        failure = json.loads(value)
        return f"failure  {failure['reason']}: {failure['message']}"
    decided = Decision.model_validate_json(value)
    if decided.decision == "approve" and not approvals:
        return None
    hold = f"  (hold {decided.hold_id})" if decided.hold_id is not None else ""
    return f"{decided.decision:7}  {decided.card}  {decided.amount:9.2f} USD  {'; '.join(decided.reasons)}{hold}"


def _counts(counted: Account) -> list[str]:
    return [
        f"Payments     {counted.payments}, {counted.repeats} of them again as they were; {counted.open} open",
        f"Decisions    {parts(counted.decisions)}; {counted.decided_twice} twice",
        f"Failures     {parts(counted.failures)}",
        f"Holds        {counted.holds}, asked for {counted.asked} times; {counted.holds_unnamed} without a decision",
    ]
