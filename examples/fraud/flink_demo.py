"""The endless fraud demo on a real Flink cluster: starts it, submits the job, shows what comes out until Ctrl-C.

    python -m examples.fraud.flink_demo
    python -m examples.fraud.flink_demo --task-managers=2 --parallelism=2 --rate=50

The cluster is on this machine: a JobManager, TaskManagers with RocksDB, and Python workers, each a process of its own.
Kill some of them while it runs. Ctrl-C stops the job with a savepoint and takes the cluster down; the next start goes
on from there, unless `savepoint.txt` is deleted from the output folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.fraud.stream import feeding, read_arguments, set_up, show, stream_parser
from runners.flink.cluster import FlinkCluster
from runners.flink.rest import TERMINAL, FlinkRest

SAVEPOINT_NOTE = "savepoint.txt"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    made = stream_parser()
    made.description = __doc__
    made.prog = "python -m examples.fraud.flink_demo"
    made.set_defaults(out="demo-out/fraud-flink", runner="PortableRunner")
    made.add_argument("--task-managers", metavar="N", type=int, default=1, help="(%(default)s)")
    made.add_argument("--parallelism", metavar="N", type=int, default=1, help="(%(default)s)")
    made.add_argument("--rest-port", metavar="PORT", type=int, default=8081, help="of Flink's web UI (%(default)s)")
    arguments, _ = read_arguments(argv, made)
    set_up(arguments)
    note = Path(arguments.out) / SAVEPOINT_NOTE
    cluster = FlinkCluster(
        Path(arguments.out) / "flink",
        task_managers=arguments.task_managers,
        parallelism=arguments.parallelism,
        rest_port=arguments.rest_port,
    )
    print(
        "Starting the cluster; the first time Flink and the job server are fetched, which takes minutes ...", flush=True
    )
    try:
        cluster.up()
        print(f"The web UI is at {cluster.rest_url}. Submitting the job ...", flush=True)
        before = note.read_text().strip() if note.exists() else None
        job = cluster.submit(_program(arguments), savepoint_path=before)
        with feeding(arguments):
            show(arguments, lambda: _goes_on(cluster.rest, job))
        print("Stopping the job with a savepoint ...", flush=True)
        note.write_text(cluster.rest.stop_with_savepoint(job, cluster.savepoints.as_uri()))
    except KeyboardInterrupt:
        print("Stopped before the job ran.", flush=True)
    finally:
        print("Taking the cluster down ...", flush=True)
        cluster.down()


def _program(arguments: argparse.Namespace) -> list[str]:
    """The program that submits the job: the same as on Prism, without payments of its own."""
    options = {name: getattr(arguments, name) for name in ("out", "payments", "ledger", "model", "base_url")}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value]
    return [sys.executable, "-m", "examples.fraud.stream", "--rate=0", *given]


def _goes_on(rest: FlinkRest, job: str) -> bool:
    return rest.job(job).state not in TERMINAL


if __name__ == "__main__":
    main()
