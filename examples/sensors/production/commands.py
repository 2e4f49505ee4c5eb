"""The sensors as they run in production: PostgreSQL's changes to agents on Flink, alerts to a webhook.

    python -m examples.sensors.production up       # starts it all on this machine; Ctrl-C ends it
    python -m examples.sensors.production feed     # in another terminal: readings
    python -m examples.sensors.production show     # the alerts that came; --follow for what comes
    python -m examples.sensors.production status   # what runs, and what became of the readings
    python -m examples.sensors.production down     # the same as Ctrl-C

`up` starts again what dies: kill any process that `status` names. Needs Java 11 or 17, and Maven for the first start.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from examples.production.commands import CommandLine, UserError, parts, running_in
from examples.sensors.production.account import Account, account
from examples.sensors.production.duty import Received, received
from examples.sensors.production.feed import feed, wait_for_history
from examples.sensors.production.plant import written
from examples.sensors.production.rules import MODELS
from examples.sensors.production.servers import SensorsPlatform

_LOOK_SECONDS = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    line = CommandLine(
        "sensors", __doc__, SensorsPlatform, offline=MODELS["door"], events="readings", account=account, lines=_counts
    )
    feeding = line.command("feed", _feed, "write made-up readings to the table")
    feeding.add_argument("--count", metavar="N", type=int, default=1000, help="(%(default)s)")
    feeding.add_argument("--rate", metavar="N", type=float, default=20.0, help="a second (%(default)s)")
    feeding.add_argument("--seed", metavar="S", type=int, default=1, help="which noise (%(default)s)")
    show = line.command("show", _show, "print the alerts and failures that came")
    show.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    return line.run(argv)


def _feed(chosen: argparse.Namespace) -> int:
    if chosen.count < 1 or chosen.rate <= 0:
        raise UserError(f"--count {chosen.count} and --rate {chosen.rate:g} must be above zero")
    plant = running_in(chosen.folder).database("plant")
    wait_for_history(plant)
    readings, corrections = feed(plant, chosen.seed, written(plant), chosen.count, chosen.rate)
    print(f"{readings} readings written, {corrections} corrected")
    return 0


def _show(chosen: argparse.Namespace) -> int:
    duty = running_in(chosen.folder).database("duty")
    last = 0
    while True:
        for one in received(duty, behind=last):
            last = one.number
            print(_line(one), flush=True)
        if not chosen.follow or chosen.folder.running() is None:
            return 0
        time.sleep(_LOOK_SECONDS)


def _line(one: Received) -> str:
    if one.path == "/failures":
        failure = one.body["value"]
        return f"failure   {failure['reason']}: {failure['message']}"
    alert = one.body
    return f"{alert['severity']:8}  {alert['device']:9} {alert['taken'][:19]}  {alert['summary']}"


def _counts(counted: Account) -> list[str]:
    return [
        f"Readings     {counted.readings}, corrected {counted.corrections} times; {counted.open} open",
        f"Assessments  {parts(counted.statuses)}",
        f"Alerts       {counted.alerts}; {counted.alerts_missing} missing, {counted.alerts_twice} twice; posted again "
        f"with the same key {counted.posted_again} times",
        f"Failures     {counted.failures}; undelivered {counted.undelivered}",
        f"Windows      {counted.rolling}",
    ]
