"""The mock chat server as a process: `python -m beam_agents.testing.mock_server --latency 2 --spread 0.2`.

It prints the base URL as its first line, serves until it gets SIGINT or SIGTERM, and then prints its statistics.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Sequence

from beam_agents.testing.chat_server import Fault, MockChatServer


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until a signal comes.

    Args:
        arguments: The command line; that of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m beam_agents.testing.mock_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; a free one by default")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each reply")
    parser.add_argument("--spread", type=float, default=0.0, help="how far the latency varies; 0.2 is 20 %% up or down")
    parser.add_argument("--seed", type=int, default=0, help="of the latencies")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        type=Fault.parse,
        metavar="FAULT",
        help="what goes wrong with the next request: 500, 429:2 (Retry-After: 2), cut, rubbish, empty; may be repeated",
    )
    given = parser.parse_args(arguments)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    server = MockChatServer(
        latency=given.latency, spread=given.spread, seed=given.seed, faults=given.fault, port=given.port
    )
    with server:
        print(server.base_url, flush=True)
        stopped.wait()
        print(json.dumps(server.stats), flush=True)


if __name__ == "__main__":
    main()
