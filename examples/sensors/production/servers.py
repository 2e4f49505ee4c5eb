"""What the plant's platform has besides the servers: databases, those on duty, and the job with its secrets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import ClassVar

from beam_agents.codec import canonical_json
from examples.production.commands import model_options
from examples.production.folder import Running
from examples.production.platform import ROOT, Job, Platform
from examples.production.programs import Program, loopback_url, port_of
from examples.sensors.production.duty import DUTY, NAME, make_duty, received
from examples.sensors.production.feed import DEVICES, history
from examples.sensors.production.plant import PLANT, ROLE, make_databases, make_tables


class SensorsPlatform(Platform):
    """PostgreSQL with the ledger and the plant, those on duty, Flink, and the job."""

    uses_kafka: ClassVar[bool] = False
    postgres_settings: ClassVar[Mapping[str, str] | None] = {"wal_level": "logical"}

    def prepare(self) -> None:
        make_databases(self.postgres.url(), self.password)
        make_tables(self.postgres.url("plant"), DEVICES, history(seed=0, now=datetime.now(UTC)))
        make_duty(self.postgres.url("duty"))
        self._hook = loopback_url(0)

    def programs(self) -> list[Program]:
        command = [sys.executable, "-m", "examples.sensors.production.duty", f"--port={port_of(self._hook)}"]
        environment = {DUTY.variable: self.postgres.url("duty")}
        return [Program(NAME, command, url=self._hook, directory=ROOT, environment=environment)]

    def job(self) -> Job:
        return Job(
            "examples.sensors.production.job",
            [
                "--job_name=sensors",
                f"--plant={self.database('plant', ROLE)}",
                f"--ledger={self.database('ledger', ROLE)}",
                f"--hook={self._hook}",
                *model_options(self.chosen),
            ],
            {"PGPASSWORD": self.password, PLANT.variable: self.postgres.url("plant", ROLE, self.password)},
        )

    def end(self) -> None:
        # PostgreSQL does not end while somebody reads its changes and has not said that they may be forgotten.
        try:
            if self.folder.flink.is_dir():
                self._cluster.down()
        finally:
            super().end()

    def save(self, running: Running) -> None:
        with (self.folder.path / "received.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(f"{canonical_json(one._asdict())}\n" for one in received(running.database("duty")))
