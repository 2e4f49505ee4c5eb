"""The command line of an example in production: `up`, `status` and `down`, and what an example adds."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Generic, TypeVar

from confluent_kafka import KafkaException
from psycopg import OperationalError
from pydantic import BaseModel

from beam_agents import Model
from examples.common import chosen_model
from examples.production.folder import Folder, Running
from examples.production.platform import Platform
from examples.production.programs import ProgramFailed
from runners.flink.cluster import FlinkCluster
from runners.flink.errors import FlinkError
from runners.kafka import KafkaUnavailable
from runners.postgres import PostgresUnavailable

AccountT = TypeVar("AccountT", bound=BaseModel)

_LOOK_SECONDS = 1.0
_PASSWORD = re.compile(r":[^:/@]*@")
_EXPECTED = (FlinkError, KafkaUnavailable, PostgresUnavailable, ProgramFailed, KafkaException, OperationalError)


class UserError(RuntimeError):
    """A command that cannot be carried out as it was given."""


class CommandLine(Generic[AccountT]):
    """Commands of an example, each with the option `--folder`; `up`, `status` and `down` are there.

    Args:
        name: The example's package below `examples`.
        description: Shown by `--help` as it is written.
        platform: What `up` starts.
        offline: The model where no `--model` is given.
        events: What comes in, for people, such as "payments".
        account: Counts what became of them.
        lines: The count, for people.

    Attributes:
        up: The parser of `up`, to be given more options; the platform has them in `chosen`.
    """

    def __init__(
        self,
        name: str,
        description: str | None,
        platform: type[Platform],
        *,
        offline: Model,
        events: str,
        account: Callable[[Running], AccountT],
        lines: Callable[[AccountT], list[str]],
    ) -> None:
        self._platform = platform
        self._offline = offline
        self._events = events
        self._account = account
        self._lines = lines
        self._folder = f"demo-out/{name}-production"
        self._parser = argparse.ArgumentParser(
            prog=f"python -m examples.{name}.production",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._commands = self._parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        self.up = self.command("up", self._up, "start everything, and stay until Ctrl-C")
        self.up.add_argument("--model", metavar="NAME", help="a real model in the offline one's place, as openai:NAME")
        self.up.add_argument("--base-url", metavar="URL", help="the model's server, if it is not the provider's own")
        self.up.add_argument("--task-managers", metavar="N", type=int, default=1, help="(%(default)s)")
        self.up.add_argument("--parallelism", metavar="N", type=int, default=1, help="of the job (%(default)s)")
        self.up.add_argument(
            "--rest-port", metavar="PORT", type=int, default=8081, help="of Flink's page, or 0 (%(default)s)"
        )
        self.up.add_argument("--keep", action="store_true", help="leave logs, checkpoints and what came out")
        status = self.command(
            "status", self._status, f"what runs and what became of the {events}; exit code 1 if a part is dead"
        )
        status.add_argument("--json", action="store_true", help=f"what became of the {events}, for programs")
        self.command("down", _down, "end everything, also what an `up` that was killed has left")

    def command(self, name: str, action: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        """Adds a command.

        Args:
            name: Its name.
            action: Is given the options, with `folder` as a `Folder`; its result is the exit code.
            help: What it does.

        Returns:
            Its parser, to be given options.
        """
        made = self._commands.add_parser(name, help=help)
        made.set_defaults(action=action)
        made.add_argument("--folder", default=self._folder, help="where all is noted (%(default)s)")
        return made

    def run(self, argv: Sequence[str] | None = None) -> int:
        """Carries out what the command line says; the exit code."""
        chosen = self._parser.parse_args(argv)
        chosen.folder = Folder(chosen.folder)
        try:
            return int(chosen.action(chosen))
        except (UserError, *_EXPECTED) as error:
            print(f"{chosen.command}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130

    def _up(self, chosen: argparse.Namespace) -> int:
        if chosen.base_url and not chosen.model:
            raise UserError("--base-url names the server of a --model; give both")
        chosen_model(chosen, offline=self._offline)  # a wrong name is told before everything is started
        folder: Folder = chosen.folder
        cluster = FlinkCluster(
            folder.flink,
            task_managers=chosen.task_managers,
            parallelism=chosen.parallelism,
            rest_port=chosen.rest_port,
        )
        with folder.held() as held:
            if not held:
                raise UserError(
                    f"it runs already in {str(folder.path)!r}: end it with `down`, or name another --folder"
                )
            signal.signal(signal.SIGTERM, _interrupt)
            folder.clear()
            print("Starting; the first time programs are fetched, which takes minutes.", flush=True)
            platform = self._platform(folder, cluster, chosen, say=_say)
            try:
                running = platform.start()
                print(*_places(running), f"Flink        {cluster.rest_url}", f"Folder       {folder.path}", sep="\n")
                _say(f"It runs. {self._events.capitalize()}: `feed` in another terminal. Ctrl-C ends it.")
                while True:
                    time.sleep(_LOOK_SECONDS)
                    platform.look()
            except KeyboardInterrupt:
                return 0
            finally:
                _say("Ending everything ...")
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                platform.end()

    def _status(self, chosen: argparse.Namespace) -> int:
        running = running_in(chosen.folder)
        counted = self._account(running)
        if chosen.json:
            print(counted.model_dump_json())
            return 0
        cluster = FlinkCluster.load(chosen.folder.flink)
        parts = cluster.processes()
        named = [f"{part.name} {part.pid}{'' if part.alive() else ' (dead)'}" for part in parts]
        named += [f"worker {pid}" for pid in cluster.workers()]
        print(*_places(running), sep="\n")
        print(f"Flink        {cluster.rest_url}, processes {', '.join(named)}")
        print(f"Job          {running.job} is {cluster.rest.job(running.job).state}")
        print(*self._lines(counted), sep="\n")
        return 0 if all(part.alive() for part in parts) else 1


def model_options(chosen: argparse.Namespace) -> list[str]:
    """The job's options that choose the model that `up` was given."""
    given = {"--model": chosen.model, "--base-url": chosen.base_url}
    return [f"{name}={value}" for name, value in given.items() if value]


def running_in(folder: Folder) -> Running:
    """What runs.

    Raises:
        UserError: Nothing does, or the job is not submitted yet.
    """
    running = folder.running()
    if running is None or not running.job:
        raise UserError(f"nothing runs in {str(folder.path)!r} yet: start it with `up`, in another terminal")
    return running


def parts(counts: dict[str, int]) -> str:
    """Counts by name as text, their sum first."""
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


def _places(running: Running) -> list[str]:
    places = {"Kafka": running.servers, "PostgreSQL": _PASSWORD.sub("@", running.postgres), **running.urls}
    return [f"{name:12} {places[name]}, process {pid}" for name, pid in running.pids.items()]


def _say(what: str) -> None:
    print(what, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
