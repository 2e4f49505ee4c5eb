"""What the bank's platform has besides the servers: topics, databases, and the job with its secrets."""

from __future__ import annotations

from beam_agents.codec import canonical_json
from examples.fraud.generator import blocklist, merchants
from examples.fraud.production.bank import BANK, ROLE, holds, make_databases, make_tables
from examples.fraud.production.topics import DECISIONS, FAILURES, TOPICS, TRACE
from examples.production.commands import model_options
from examples.production.folder import Running
from examples.production.platform import Job, Platform
from examples.production.topics import make_topics, records


class FraudPlatform(Platform):
    """Kafka, PostgreSQL with the ledger and the bank, Flink, and the job."""

    def prepare(self) -> None:
        make_topics(self.kafka.servers, TOPICS)
        make_databases(self.postgres.url(), self.password)
        make_tables(self.postgres.url("bank"), merchants().items(), blocklist().items())

    def job(self) -> Job:
        return Job(
            "examples.fraud.production.job",
            [
                "--job_name=fraud",
                f"--servers={self.kafka.servers}",
                f"--ledger={self.database('ledger', ROLE)}",
                *model_options(self.chosen),
            ],
            {"PGPASSWORD": self.password, BANK.variable: self.postgres.url("bank", ROLE, self.password)},
        )

    def save(self, running: Running) -> None:
        for topic in (DECISIONS, FAILURES, TRACE):
            with (self.folder.path / f"{topic}.jsonl").open("wb") as file:
                file.writelines((message.value() or b"null") + b"\n" for message in records(running.servers, [topic]))
        with (self.folder.path / "holds.jsonl").open("w") as file:
            file.writelines(f"{canonical_json(row._asdict())}\n" for row in holds(running.database("bank")))
