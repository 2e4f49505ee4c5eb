"""The command `beam-agents ingress`: an HTTP server that takes events for agents.

beam-agents ingress --events shop.events:Order --key customer --store inbox --open
beam-agents ingress --events shop.events:Order --key customer --kafka broker:9092 --topic orders --token-env TOKEN
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Literal

from beam_agents.errors import BeamAgentsError, ConfigurationError
from beam_agents.io.kafka_connection import Kafka, Sasl, Tls
from beam_agents.secrets import EnvSecret, FileSecret, Secret

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    made = argparse.ArgumentParser(
        prog="beam-agents ingress", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = made.add_argument_group("events")
    what.add_argument("--events", metavar="MODULE:TYPE", required=True, help="what an event is: the agent's event_type")
    what.add_argument("--key", metavar="FIELD", required=True, help="the field that is the agent's key")
    what.add_argument("--event-id", metavar="FIELD", help="the field that is the event's id, instead of a header")
    what.add_argument("--id-header", metavar="NAME", default="Idempotency-Key", help="(%(default)s)")
    where = made.add_argument_group("where they are kept")
    either = where.add_mutually_exclusive_group(required=True)
    either.add_argument("--store", metavar="FOLDER", help="files in a folder, for ReadIngress")
    either.add_argument("--kafka", metavar="HOST:PORT", help="Kafka's brokers, with --topic")
    where.add_argument("--topic", metavar="TOPIC", help="of events")
    where.add_argument("--tls-ca", metavar="FILE", help="encrypts; the authorities that sign the brokers' certificates")
    where.add_argument("--sasl", metavar="MECHANISM:USER:VARIABLE", help="a name, and where its password is")
    who = made.add_argument_group("who may send")
    who.add_argument("--token-env", metavar="VARIABLE", action="append", default=[], help="has a bearer token")
    who.add_argument("--token-file", metavar="FILE", action="append", default=[], help="has a bearer token")
    who.add_argument("--hmac-env", metavar="VARIABLE", help="has the secret by which webhooks are signed")
    who.add_argument("--hmac-header", metavar="NAME", default="X-Hub-Signature-256", help="(%(default)s)")
    who.add_argument("--hmac-form", choices=("github", "stripe"), default="github", help="(%(default)s)")
    who.add_argument("--open", action="store_true", help="everybody who reaches the port")
    much = made.add_argument_group("how much")
    much.add_argument("--max-bytes", metavar="N", type=_positive, default=1_000_000, help="of a request (%(default)s)")
    much.add_argument(
        "--max-batch", metavar="N", type=_positive, default=1_000, help="events of a request (%(default)s)"
    )
    much.add_argument("--rate", metavar="N", type=_positive, help="events a second of each caller")
    much.add_argument(
        "--max-waiting", metavar="N", type=_positive, default=1_000, help="requests at once (%(default)s)"
    )
    much.add_argument("--store-seconds", metavar="S", type=_positive, default=10, help="for the store (%(default)s)")
    told = made.add_argument_group("what is told of results")
    told.add_argument("--results-topic", metavar="TOPIC", action="append", default=[], help="that WriteKafka writes")
    told.add_argument("--results", metavar="URL", help="a database, or env:VARIABLE that has its URL")
    told.add_argument("--results-table", metavar="TABLE", action="append", default=[], help="that WriteTable writes")
    told.add_argument("--failures-table", metavar="TABLE", action="append", default=[], help="the same of failures")
    told.add_argument("--max-wait", metavar="S", type=_positive, default=60, help="for a result (%(default)s)")
    made.add_argument("--host", default="127.0.0.1", help="(%(default)s)")
    made.add_argument("--port", metavar="PORT", type=int, default=8080, help="or 0 for a free one (%(default)s)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `beam-agents ingress` until it is ended.

    Returns:
        The exit code: 0 after SIGTERM or Ctrl-C; 2 if an argument has to be changed.
    """
    chosen = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return _serve(chosen)
    except BeamAgentsError as error:
        print(f"beam-agents ingress: {error}", file=sys.stderr)
        return 2


def _serve(chosen: argparse.Namespace) -> int:
    missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} is missing: pip install 'beam-agents[ingress]'")
    import uvicorn

    door = _door(chosen)
    with _listen(chosen.host, chosen.port) as listening:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(
            door.application(),
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            # What is being stored then is finished; a client that is cut off sends its event again.
            timeout_graceful_shutdown=chosen.store_seconds,
        )

        server = uvicorn.Server(config)

        def end(*_: Any) -> None:
            server.should_exit = True

        # For signals before the server has handlers of its own; it raises the one that ended it once more at its end.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)

        async def serve() -> None:
            async with door.opened():
                listening.listen(config.backlog)
                print(f"listening on http://{shown}:{port}", flush=True)
                await server.serve(sockets=[listening])

        asyncio.run(serve())
    return 0


def _door(chosen: argparse.Namespace) -> Any:
    from beam_agents.io.ingress.admission import Admission, Signature
    from beam_agents.io.ingress.app import Door, Limits
    from beam_agents.io.ingress.body import Events

    if chosen.open and chosen.host not in _LOOPBACK:
        print(f"beam-agents ingress: whoever reaches {chosen.host} may send events", file=sys.stderr)
    tokens: list[Secret] = [EnvSecret(name) for name in chosen.token_env]
    tokens += [FileSecret(path) for path in chosen.token_file]
    signature = None
    if chosen.hmac_env:
        signature = Signature(EnvSecret(chosen.hmac_env), chosen.hmac_header, chosen.hmac_form)
    if not (tokens or signature or chosen.open):
        raise ConfigurationError("say who may send: --token-env, --token-file or --hmac-env, or --open for everybody")
    events = Events(
        _found(chosen.events),
        key=chosen.key,
        event_id=chosen.event_id,
        id_header=chosen.id_header,
        max_batch=chosen.max_batch,
    )
    limits = Limits(
        max_bytes=chosen.max_bytes,
        max_batch=chosen.max_batch,
        per_second=chosen.rate,
        max_waiting=chosen.max_waiting,
        store_seconds=chosen.store_seconds,
        max_wait=chosen.max_wait,
    )
    admission = Admission(tokens, signature, chosen.open)
    return Door(events, _store(chosen), admission, _results(chosen), limits)


def _store(chosen: argparse.Namespace) -> Any:
    if chosen.store:
        from beam_agents.io.ingress.folder_store import FolderStore

        return FolderStore(chosen.store)
    if not chosen.topic:
        raise ConfigurationError("--kafka needs the topic of events: --topic")
    kafka = _kafka(chosen)
    from beam_agents.io.ingress.kafka_store import KafkaStore

    return KafkaStore(kafka, chosen.topic, seconds=chosen.store_seconds, max_bytes=chosen.max_bytes)


def _results(chosen: argparse.Namespace) -> Any:
    tables: dict[str, Literal["decided", "failed"]] = dict.fromkeys(chosen.results_table, "decided")
    tables |= dict.fromkeys(chosen.failures_table, "failed")
    if chosen.results_topic and tables:
        raise ConfigurationError("results are in topics or in tables: --results-topic or --results-table")
    if bool(tables) != bool(chosen.results):
        raise ConfigurationError("results in a database need both its URL and tables: --results and --results-table")
    if tables:
        from beam_agents.io.ingress.table_results import TableResults

        _, env, variable = chosen.results.partition("env:")
        return TableResults(EnvSecret(variable).reveal() if env else chosen.results, tables)
    if chosen.results_topic:
        if not chosen.kafka:
            raise ConfigurationError("--results-topic needs Kafka's brokers: --kafka")
        kafka = _kafka(chosen)
        from beam_agents.io.ingress.kafka_results import KafkaResults

        return KafkaResults(kafka, chosen.results_topic)
    return None


def _kafka(chosen: argparse.Namespace) -> Kafka:
    if importlib.util.find_spec("confluent_kafka") is None:
        raise ConfigurationError("--kafka needs confluent-kafka: pip install 'beam-agents[kafka]'")
    sasl = None
    if chosen.sasl:
        mechanism, _, rest = chosen.sasl.partition(":")
        user, _, variable = rest.rpartition(":")
        if not (user and variable):
            raise ConfigurationError(f"--sasl={chosen.sasl!r} must be MECHANISM:USER:VARIABLE")
        sasl = Sasl(mechanism, user, EnvSecret(variable))
    return Kafka(chosen.kafka, tls=Tls(ca=chosen.tls_ca) if chosen.tls_ca else None, sasl=sasl)


def _found(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigurationError(f"--events={name!r} must be MODULE:TYPE, such as shop.events:Order")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: a module of yours stands beside where you are
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigurationError(f"--events={name!r}: {error}; start it where the module can be imported") from error
    except AttributeError as error:
        raise ConfigurationError(f"--events={name!r}: module {module!r} has no {attribute!r}") from error
    return found


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigurationError(f"--host={host} --port={port}: {os.strerror(error.errno or 0)}") from error
    return listening


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
