"""What the platform has besides the servers: topics, databases, the HTTP door, and the job with its secrets."""

from __future__ import annotations

import sys

from examples.production.commands import model_options
from examples.production.folder import Running
from examples.production.platform import ROOT, Job, Platform
from examples.production.programs import Program, loopback_url, port_of
from examples.production.topics import make_topics, records
from examples.support.production.crm import CRM, ROLE, make_databases, make_tables
from examples.support.production.topics import ANSWERS, FAILURES, MESSAGES, TOPICS, TRACE

DOOR = "Door"
"""The HTTP door's name among the programs."""

TOKEN_VARIABLE = "SUPPORT_TOKEN"
"""Has what clients show at the door."""


class SupportPlatform(Platform):
    """Kafka, PostgreSQL with the ledger and the help desk, the HTTP door, Flink, and the job."""

    def prepare(self) -> None:
        make_topics(self.kafka.servers, TOPICS)
        make_databases(self.postgres.url(), self.password)
        make_tables(self.postgres.url("crm"))

    def programs(self) -> list[Program]:
        url = loopback_url(self.chosen.port)
        return [
            Program(
                DOOR,
                [
                    *(sys.executable, "-m", "beam_agents.cli", "ingress"),
                    "--events=examples.support.production.events:Message",
                    "--key=ticket",
                    f"--kafka={self.kafka.servers}",
                    f"--topic={MESSAGES}",
                    f"--results-topic={ANSWERS}",
                    f"--results-topic={FAILURES}",
                    f"--token-env={TOKEN_VARIABLE}",
                    f"--port={port_of(url)}",
                ],
                url=url,
                directory=ROOT,
                environment={TOKEN_VARIABLE: self.token},
                health="/readyz",
            )
        ]

    def job(self) -> Job:
        return Job(
            "examples.support.production.job",
            [
                "--job_name=support",
                f"--servers={self.kafka.servers}",
                f"--ledger={self.database('ledger', ROLE)}",
                *model_options(self.chosen),
            ],
            {"PGPASSWORD": self.password, CRM.variable: self.postgres.url("crm", ROLE, self.password)},
        )

    def save(self, running: Running) -> None:
        for topic in (MESSAGES, ANSWERS, FAILURES, TRACE):
            with (self.folder.path / f"{topic}.jsonl").open("wb") as file:
                file.writelines((message.value() or b"null") + b"\n" for message in records(running.servers, [topic]))
