"""The commands `beam-agents ledger ...`: what a ledger holds, calls in doubt, and what may go."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

from beam_agents.engine.outcome import Outcome
from beam_agents.errors import BeamAgentsError
from beam_agents.ledger.cli_changes import prune, resolve
from beam_agents.ledger.cli_desk import Desk, Refused, desk
from beam_agents.ledger.cli_find import ledger_view, run_page, runs_view
from beam_agents.ledger.cli_text import age
from beam_agents.ledger.cli_views import View
from beam_agents.ledger.commands import FindRuns


def parser() -> argparse.ArgumentParser:
    """What the commands understand. Each sets `action`."""
    made = argparse.ArgumentParser(prog="beam-agents ledger", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    show = commands.add_parser("show", help="what it holds of each agent")
    show.set_defaults(action=_show)

    runs = commands.add_parser("runs", help="its runs, the newest first: what they wait for, or how they ended")
    _add_names(runs)
    runs.add_argument("--run", metavar="ID", help="only of this event id")
    which = runs.add_mutually_exclusive_group()
    for name, said in (
        ("open", "only those that have not ended"),
        ("doubtful", "only those that ended with a call in doubt that nobody has resolved"),
        ("failed", "only those that ended without an answer"),
    ):
        which.add_argument(f"--{name}", dest="which", action="store_const", const=name, default="all", help=said)
    runs.add_argument("--limit", type=_positive, default=50, metavar="N", help="at most so many (%(default)s)")
    runs.set_defaults(action=_runs)

    run = commands.add_parser("run", help="one run: its event, its calls in order, its end")
    _add_one(run)
    run.add_argument("--full", action="store_true", help="shorten nothing")
    run.set_defaults(action=_run)

    resolving = commands.add_parser(
        "resolve",
        help="say what a call came to of which nobody knows whether it happened",
        description="Of an open run that nobody drives, this is the call's outcome, with which the run goes on. Of an "
        "ended run it is noted; what was emitted stands.",
    )
    _add_one(resolving)
    resolving.add_argument("--path", required=True, metavar="P", help="of the call, as `run` shows it")
    resolving.add_argument("--attempt", type=_positive, metavar="N", help="of the call (the last one)")
    said_so = resolving.add_mutually_exclusive_group(required=True)
    said_so.add_argument(
        "--done", dest="outcome", type=_result, metavar="JSON", help="it happened, and this is what it returned"
    )
    said_so.add_argument(
        "--failed", dest="outcome", type=_message, metavar="MESSAGE", help="it did not happen; the message says why"
    )
    resolving.add_argument("--by", required=True, metavar="NAME", help="who says so")
    resolving.set_defaults(action=_resolve)

    pruning = commands.add_parser(
        "prune",
        help="drop what is old; open runs and runs in doubt stay",
        description="Runs closed long ago keep a tombstone, so that their events are still known. Savepoints and "
        "checkpoints older than what was pruned can no longer be used with the ledger.",
    )
    _add_use(pruning)
    pruning.add_argument(
        "--older-than", type=_age, required=True, metavar="AGE", help="since the end of the run, such as 30d or 12h"
    )
    pruning.add_argument(
        "--tombstones-older-than",
        type=_age,
        default="365d",
        metavar="AGE",
        help="since the end of the run; events of runs forgotten so are too old to judge (%(default)s)",
    )
    pruning.add_argument("--dry-run", action="store_true", help="only count")
    pruning.set_defaults(action=_prune)

    for command in commands.choices.values():
        command.add_argument(
            "url", metavar="URL", help="of the ledger: sqlite:///path, postgresql://..., gs://bucket/prefix"
        )
        command.add_argument("--json", action="store_true", help="one JSON document, for programs")
    return made


def main(arguments: Sequence[str]) -> int:
    """Carries out a command.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code: 0; 1 for what is refused, and for a ledger that is unavailable; 2 for a command that has to be
        given in another way.
    """
    chosen = parser().parse_args(arguments)
    try:
        with desk(chosen.url) as opened:
            view, lines = chosen.action(opened, chosen)
    except BeamAgentsError as error:
        refused = error if isinstance(error, Refused) else Refused(str(error))
        if chosen.json:
            print(json.dumps({"error": str(refused), **refused.details}, indent=2))
        print(f"beam-agents ledger {chosen.command}: {refused}", file=sys.stderr)
        return refused.code
    if chosen.json:
        print(json.dumps(view.model_dump(mode="json"), indent=2))
    else:
        print(*lines, sep="\n")
    return 0


def _add_use(command: argparse.ArgumentParser) -> None:
    command.add_argument("--scope", metavar="S", help="only of this scope")
    command.add_argument("--agent", metavar="A", help="only of this agent")


def _add_names(command: argparse.ArgumentParser) -> None:
    _add_use(command)
    command.add_argument("--key", metavar="K", help='only of this key; what is no text as JSON: 7, ["a", 1]')
    command.add_argument("--revision", type=int, metavar="N", help="only of this revision of the agent")


def _add_one(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run", metavar="ID", required=True, help="the run: the id of its event")
    _add_names(command)


def _show(opened: Desk, chosen: argparse.Namespace) -> tuple[View, Iterable[str]]:
    view = ledger_view(opened)
    return view, view.lines()


def _runs(opened: Desk, chosen: argparse.Namespace) -> tuple[View, Iterable[str]]:
    view = runs_view(opened, replace(_wanted(chosen), which=chosen.which, limit=chosen.limit))
    return view, view.lines()


def _run(opened: Desk, chosen: argparse.Namespace) -> tuple[View, Iterable[str]]:
    view = run_page(opened, _wanted(chosen))
    return view, view.lines(full=chosen.full)


def _resolve(opened: Desk, chosen: argparse.Namespace) -> tuple[View, Iterable[str]]:
    view = resolve(opened, _wanted(chosen), chosen.path, chosen.attempt, chosen.outcome, chosen.by)
    return view, view.lines()


def _prune(opened: Desk, chosen: argparse.Namespace) -> tuple[View, Iterable[str]]:
    view = prune(
        opened,
        chosen.scope,
        chosen.agent,
        closed_for=chosen.older_than,
        tombstones_for=chosen.tombstones_older_than,
        dry_run=chosen.dry_run,
    )
    return view, view.lines()


def _wanted(chosen: argparse.Namespace) -> FindRuns:
    return FindRuns(chosen.scope, chosen.agent, chosen.key, chosen.run, chosen.revision)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _age(text: str) -> float:
    try:
        return age(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _result(text: str) -> Outcome:
    try:
        return Outcome.of("ok", json.loads(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not JSON ({error}); a text needs its own quotes: '\"done\"', and nothing is null"
        ) from error


def _message(text: str) -> Outcome:
    return Outcome.of("failed", text)
