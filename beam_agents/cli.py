"""The command line `beam-agents`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

_COMMANDS = {
    "flink": "runners.flink.cli",
    "ingress": "beam_agents.io.ingress.cli",
    "ledger": "beam_agents.ledger.cli",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `beam-agents COMMAND ...`; each command is a module with a `main` of its own, imported when it is asked for.

    Args:
        arguments: Those of the process if `None`.

    Returns:
        The exit code: 0; 2 when the user has to change something; what 1 means, each command says.
    """
    parser = argparse.ArgumentParser(prog="beam-agents", description="AI agents that live in event streams.")
    parser.add_argument(
        "command",
        choices=sorted(_COMMANDS),
        help="flink: a real Flink cluster on this machine; ingress: an HTTP server that takes events; "
        "ledger: what a ledger holds, for operators",
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="see beam-agents COMMAND --help")
    chosen = parser.parse_args(arguments)
    return int(importlib.import_module(_COMMANDS[chosen.command]).main(chosen.arguments))


if __name__ == "__main__":
    sys.exit(main())
