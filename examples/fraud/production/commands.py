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
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from confluent_kafka import KafkaException
from psycopg import OperationalError

from examples.common import chosen_model
from examples.fraud.production.account import Account, account
from examples.fraud.production.feed import feed, payments
from examples.fraud.production.servers import Folder, Platform, Running
from examples.fraud.production.topics import DECISIONS, FAILURES, PAYMENTS, Decision, count, records
from examples.fraud.rules import fraud_rules
from runners.flink.cluster import FlinkCluster
from runners.flink.errors import FlinkError
from runners.kafka import KafkaUnavailable
from runners.postgres import PostgresUnavailable

LOOK_SECONDS = 1.0


class UserError(RuntimeError):
    """A command that cannot be carried out as it was given."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    chosen = _parser().parse_args(argv)
    chosen.folder = Folder(chosen.folder)
    try:
        return int(chosen.action(chosen))
    except (UserError, FlinkError, KafkaUnavailable, PostgresUnavailable, KafkaException, OperationalError) as error:
        print(f"{chosen.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m examples.fraud.production",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start everything, and stay until Ctrl-C")
    up.add_argument("--model", metavar="NAME", help="a real model in the offline one's place, as openai:NAME")
    up.add_argument("--base-url", metavar="URL", help="the model's server, if it is not the provider's own")
    up.add_argument("--task-managers", metavar="N", type=int, default=1, help="(%(default)s)")
    up.add_argument("--parallelism", metavar="N", type=int, default=1, help="of the job (%(default)s)")
    up.add_argument("--rest-port", metavar="PORT", type=int, default=8081, help="of Flink's page, or 0 (%(default)s)")
    up.add_argument("--keep", action="store_true", help="leave logs, checkpoints and what came out in the folder")
    up.set_defaults(action=_up)
    feeding = commands.add_parser("feed", help="write made-up payments to the topic")
    feeding.add_argument("--count", metavar="N", type=int, default=1000, help="(%(default)s)")
    feeding.add_argument("--rate", metavar="N", type=float, default=20.0, help="a second (%(default)s)")
    feeding.add_argument("--seed", metavar="S", type=int, default=1, help="which payments (%(default)s)")
    feeding.add_argument("--again", action="store_true", help="the first ones once more, not those that follow")
    feeding.set_defaults(action=_feed)
    show = commands.add_parser("show", help="print decisions that are no approvals, and failures")
    show.add_argument("--all", action="store_true", help="print approvals, too")
    show.add_argument("--follow", action="store_true", help="from now on, until Ctrl-C")
    show.set_defaults(action=_show)
    status = commands.add_parser(
        "status", help="what runs and what became of the payments; exit code 1 if a part is dead"
    )
    status.add_argument("--json", action="store_true", help="what became of the payments, for programs")
    status.set_defaults(action=_status)
    down = commands.add_parser("down", help="end everything, also what an `up` that was killed has left")
    down.set_defaults(action=_down)
    for command in commands.choices.values():
        command.add_argument("--folder", default="demo-out/fraud-production", help="where all is noted (%(default)s)")
    return made


def _up(chosen: argparse.Namespace) -> int:
    if chosen.base_url and not chosen.model:
        raise UserError("--base-url names the server of a --model; give both")
    chosen_model(chosen, offline=fraud_rules())  # a wrong name is told before everything is started
    model = [f"--{name.replace('_', '-')}={value}" for name in ("model", "base_url") if (value := vars(chosen)[name])]
    folder: Folder = chosen.folder
    cluster = FlinkCluster(
        folder.flink,
        task_managers=chosen.task_managers,
        parallelism=chosen.parallelism,
        rest_port=chosen.rest_port,
    )
    with folder.held() as held:
        if not held:
            raise UserError(f"it runs already in {str(folder.path)!r}: end it with `down`, or name another --folder")
        signal.signal(signal.SIGTERM, _interrupt)
        folder.clear()
        print("Starting; the first time programs are fetched, which takes minutes.", flush=True)
        platform = Platform(folder, cluster, model, keep=chosen.keep, say=_say)
        try:
            running = platform.start()
            print(
                f"Kafka       {running.servers}",
                f"PostgreSQL  {running.bank}",
                f"Flink       {cluster.rest_url}",
                f"Folder      {folder.path}",
                "It runs. Payments: `feed` in another terminal. Ctrl-C ends it.",
                sep="\n",
                flush=True,
            )
            while True:
                time.sleep(LOOK_SECONDS)
                platform.look()
        except KeyboardInterrupt:
            return 0
        finally:
            _say("Ending everything ...")
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            platform.end()


def _feed(chosen: argparse.Namespace) -> int:
    if chosen.count < 1 or chosen.rate <= 0:
        raise UserError(f"--count {chosen.count} and --rate {chosen.rate:g} must be above zero")
    running = _running(chosen.folder)
    first = 0 if chosen.again else count(running.servers, PAYMENTS)
    written = feed(running.servers, payments(chosen.seed, first, chosen.count), chosen.rate)
    print(f"{written} payments written, from number {first} on")
    return 0


def _show(chosen: argparse.Namespace) -> int:
    running = _running(chosen.folder)

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


def _status(chosen: argparse.Namespace) -> int:
    running = _running(chosen.folder)
    counted = account(running.servers, running.bank)
    if chosen.json:
        print(counted.model_dump_json())
        return 0
    print(f"Kafka        {running.servers}, process {running.kafka_pid}")
    print(f"PostgreSQL   {running.bank}, process {running.postgres_pid}")
    cluster = FlinkCluster.load(chosen.folder.flink)
    parts = cluster.processes()
    named = [f"{part.name} {part.pid}{'' if part.alive() else ' (dead)'}" for part in parts]
    named += [f"worker {pid}" for pid in cluster.workers()]
    print(f"Flink        {cluster.rest_url}, processes {', '.join(named)}")
    print(f"Job          {running.job} is {cluster.rest.job(running.job).state}")
    print(*_counts(counted), sep="\n")
    return 0 if all(part.alive() for part in parts) else 1


def _counts(counted: Account) -> list[str]:
    return [
        f"Payments     {counted.payments}, {counted.repeats} of them again as they were; {counted.open} open",
        f"Decisions    {_parts(counted.decisions)}; {counted.decided_twice} twice",
        f"Failures     {_parts(counted.failures)}",
        f"Holds        {counted.holds}, asked for {counted.asked} times; {counted.holds_unnamed} without a decision",
    ]


def _parts(counts: dict[str, int]) -> str:
    named = ", ".join(f"{name} {number}" for name, number in counts.items())
    return f"{sum(counts.values())} ({named})" if counts else "0"


def _down(chosen: argparse.Namespace) -> int:
    folder: Folder = chosen.folder
    running = folder.running()
    if running is None:
        return 0
    with folder.held() as held:
        if not held:
            os.kill(running.pid, signal.SIGTERM)
    with folder.held(wait=True):
        folder.leave(keep=running.keep)  # what an `up` that was killed has left
    return 0


def _running(folder: Folder) -> Running:
    running = folder.running()
    if running is None or not running.job:
        raise UserError(f"nothing runs in {str(folder.path)!r} yet: start it with `up`, in another terminal")
    return running


def _say(what: str) -> None:
    print(what, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
