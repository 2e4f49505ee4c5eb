"""The support agent as it runs in production: messages by HTTP, through Kafka and Flink, to answers and to people.

    python -m examples.support.production up         # starts it all on this machine; Ctrl-C ends it
    python -m examples.support.production feed       # in another terminal: customers who write; --wait shows answers
    python -m examples.support.production show       # what waits for a person, with all that was said
    python -m examples.support.production status     # what runs, and what became of the messages
    python -m examples.support.production down       # the same as Ctrl-C

`up` starts again what dies: kill any process that `status` names. Needs Java 11 or 17, and Maven for the first start.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from examples.production.commands import CommandLine, UserError, parts, running_in
from examples.production.topics import count, records
from examples.support.production.account import Account, account
from examples.support.production.crm import Waiting, queue
from examples.support.production.feed import Taken, endless_messages, feed
from examples.support.production.servers import DOOR, SupportPlatform
from examples.support.production.topics import FAILURES, MESSAGES
from examples.support.rules import MODEL


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    line = CommandLine(
        "support", __doc__, SupportPlatform, offline=MODEL, events="messages", account=account, lines=_counts
    )
    line.up.add_argument("--port", metavar="PORT", type=int, default=8080, help="of the door, or 0 (%(default)s)")
    feeding = line.command("feed", _feed, "customers write to the door")
    feeding.add_argument("--count", metavar="N", type=int, default=200, help="(%(default)s)")
    feeding.add_argument("--rate", metavar="N", type=float, default=10.0, help="a second at most (%(default)s)")
    feeding.add_argument("--seed", metavar="S", type=int, help="which messages; by default new ones")
    feeding.add_argument("--wait", action="store_true", help="wait for each answer, and print it")
    line.command("show", _show, "print what waits for a person, with all that the person is told, and failures")
    return line.run(argv)


def _feed(chosen: argparse.Namespace) -> int:
    if chosen.count < 1 or chosen.rate <= 0:
        raise UserError(f"--count {chosen.count} and --rate {chosen.rate:g} must be above zero")
    running = running_in(chosen.folder)
    seed = count(running.servers, MESSAGES) + 1 if chosen.seed is None else chosen.seed
    taken = feed(
        f"{running.urls[DOOR]}/events",
        running.token,
        islice(endless_messages(seed), chosen.count),
        chosen.rate,
        wait="10s" if chosen.wait else None,
        told=_tell if chosen.wait else lambda taken: None,
    )
    said = Counter(each.status for each in taken)
    answers = ", ".join(f"{status} {number} times" for status, number in sorted(said.items()))
    print(f"{len(taken)} messages sent with --seed={seed}; the door said {answers}")
    return 0


def _tell(taken: Taken) -> None:
    print(f"{taken.sent.body['ticket']:10} {taken.sent.body.get('text', '')}")
    print(f"{'':10} {taken.status} {json.dumps(taken.answer)}", flush=True)


def _show(chosen: argparse.Namespace) -> int:
    running = running_in(chosen.folder)
    for waiting in queue(running.database("crm")):
        print(*_lines(waiting), sep="\n")
    for record in records(running.servers, [FAILURES]):
        failure = json.loads(record.value() or b"")
        print(f"failure  {failure['reason']}: {failure['message']}")
    return 0


def _lines(waiting: Waiting) -> list[str]:
    known = waiting.account
    who = (
        "not known" if known is None else f"{known['name']}, {known['plan']}, {known['balance']}, card {known['card']}"
    )
    urgent = "URGENT " if waiting.urgent else "waiting"
    head = f"{urgent}  {waiting.ticket}  {waiting.customer_id} ({who}): {waiting.reason}"
    return [head, *(f"         {said['who']:8}  {' '.join(said['text'].split())}" for said in waiting.transcript)]


def _counts(counted: Account) -> list[str]:
    return [
        f"Messages     {counted.messages}, {counted.repeats} of them again; {counted.open} open",
        f"Tickets      {counted.tickets}",
        f"Answers      {parts(counted.answers)}; {counted.answered_twice} twice",
        f"Failures     {parts(counted.failures)}",
        f"Queue        {counted.waiting} wait for a person, asked for {counted.asked} times",
    ]
