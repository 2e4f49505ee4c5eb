"""A real Kafka broker for tests and measurements, from Maven Central and without Docker.

`python -m runners.kafka` installs it (90 MB, once; needs Java and Maven) and prints where it is. `KafkaServer` runs one
node (KRaft, broker and controller in one) on a free port of loopback, with its data below a folder of its own.
"""

from __future__ import annotations

import base64
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from runners.flink.errors import FlinkUnavailable
from runners.flink.java import find_java
from runners.tools import ToolUnavailable, alone, find_maven, move, run, scratch, tools_folder

_POM = Path(__file__).with_name("kafka.pom.xml")
_ERROR_TAIL = 3_000
_PATIENCE_SECONDS = 90.0
_ATTEMPTS = 5
_READY = "Kafka Server started"
_TAKEN = "Address already in use"
# Of the rest it says so much that a cause of failure is not to be found.
_LOG = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)
_HEAP = ("-Xms64m", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
_ONE_NODE = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "CLIENT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "5",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "5",
    "group.initial.rebalance.delay.ms": "0",
    # A broker that was killed may come back when its last session is over.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    "log.cleaner.dedupe.buffer.size": "8388608",
}


class KafkaUnavailable(ToolUnavailable):
    """The broker is not there and cannot be had, or does not start. The message says what to do."""


def kafka_home() -> Path | None:
    """The folder with the broker's jars, or `None` when `install_kafka` was not run yet."""
    home = _home()
    return home if home.is_dir() else None


def install_kafka() -> Path:
    """The folder with the broker's jars, fetched first if they are not there.

    Several processes may call this at once: one fetches, the others wait.

    Raises:
        KafkaUnavailable: There is no Java or no Maven, or Maven could not fetch the parts.
    """
    home = _home()
    if home.is_dir():
        return home
    try:
        with alone("kafka"):
            if not home.is_dir():
                java, maven = find_java(), find_maven()
                with scratch(home) as folder:
                    shutil.copy(_POM, folder / "pom.xml")
                    run([maven, "--quiet", "--batch-mode", "dependency:copy-dependencies"], folder=folder, java=java)
                    move(folder / "lib", home)
    except (ToolUnavailable, FlinkUnavailable) as error:
        raise KafkaUnavailable(f"Kafka's broker cannot be installed: {error}") from error
    return home


class KafkaServer:
    """One broker. Ends with this process at the latest, however that ends.

    Args:
        settings: More settings, by their names in Kafka's `server.properties`. The listener for clients is `CLIENT`.
        environment: Environment variables of the broker.

    Attributes:
        servers: Where clients connect, the same after `restart`.
        folder: Its data and its log.
    """

    def __init__(
        self, settings: Mapping[str, str] | None = None, *, environment: Mapping[str, str] | None = None
    ) -> None:
        try:
            self._java = str(find_java())
        except FlinkUnavailable as error:
            raise KafkaUnavailable(str(error)) from error
        self._class_path = f"{install_kafka()}/*"
        self._settings = dict(settings or {})
        self._environment = dict(environment or {}) or None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="kafka-"))
        self.servers = ""

    def __enter__(self) -> KafkaServer:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self) -> None:
        """Starts it for the first time, and waits until it takes connections.

        Raises:
            KafkaUnavailable: It does not; the message has the end of its log.
        """
        for _ in range(_ATTEMPTS):
            self._make()
            try:
                self._launch()
                return
            except KafkaUnavailable:
                # Another process took a port between our asking for a free one and the broker's binding it.
                if _TAKEN not in self._said():
                    raise
        raise KafkaUnavailable(f"Kafka's broker found no free port in {_ATTEMPTS} attempts")

    def restart(self) -> None:
        """Starts it again, with the data and at the place that it had."""
        self.stop()
        self._launch()

    def stop(self) -> None:
        """Ends it as an operator would. May be called again."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as a crash of its machine would."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """Ends it and deletes its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        """Of its process; `None` while it is not running."""
        return self._process.pid if self._process is not None else None

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "server.log"

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _make(self) -> None:
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        port, control = _free_ports(2)
        self.servers = f"127.0.0.1:{port}"
        settings = {
            **_ONE_NODE,
            "listeners": f"CLIENT://{self.servers},CONTROLLER://127.0.0.1:{control}",
            "advertised.listeners": f"CLIENT://{self.servers}",
            "controller.quorum.voters": f"1@127.0.0.1:{control}",
            "log.dirs": str(self.folder / "data"),
            **self._settings,
        }
        self._properties.touch(mode=0o600)
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # With "=", as one id in 64 begins with "-".
        options = (f"--cluster-id={cluster}", f"--config={self._properties}")
        try:
            run(self._command("kafka.tools.StorageTool", "format", *options), folder=self.folder)
        except ToolUnavailable as error:
            raise KafkaUnavailable(f"the data folder of Kafka's broker cannot be made: {error}") from error

    def _launch(self) -> None:
        at = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command("kafka.Kafka"), str(self._properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment,
                start_new_session=True,
            )
        # Its input ends with this process, however that ends.
        self._guard = subprocess.Popen(
            ["sh", "-c", "cat; kill -KILL $0", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while _READY not in self._said(at):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                raise KafkaUnavailable(f"Kafka's broker does not start:\n{self._said(at)[-_ERROR_TAIL:]}")
            time.sleep(0.05)

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [self._java, *_HEAP, *_LOG, "-cp", self._class_path, program, *arguments]

    def _said(self, since: int = 0) -> str:
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    def _end(self, how: signal.Signals) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.kill()
            self._guard.wait()
            self._guard.stdin.close()
            self._guard = None
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports


def _home() -> Path:
    # Named by what it is made from, so that a change of versions is fetched anew.
    return tools_folder() / f"kafka-{sha256(_POM.read_bytes()).hexdigest()[:12]}"


def main(arguments: Sequence[str]) -> int:
    """Install the broker if needed and print where it is; the exit code."""
    if arguments:
        print(f"runners.kafka takes no arguments, got {list(arguments)!r}", file=sys.stderr)
        return 2
    try:
        print(install_kafka())
    except KafkaUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
