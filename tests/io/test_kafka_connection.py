"""`Kafka`: what the client is told, where secrets are, and what cannot be right."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from beam_agents.errors import ConfigurationError
from beam_agents.io import Kafka, Sasl, Tls
from beam_agents.secrets import EnvSecret
from runners.kafka import KafkaServer

_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KAFKA_PASSWORD", "open-sesame")
    return "open-sesame"


def test_secrets_are_in_the_options_of_a_client_alone(password: str) -> None:
    kafka = Kafka("a:9092, b:9093", sasl=Sasl("SCRAM-SHA-256", "me", EnvSecret("KAFKA_PASSWORD")), tls=Tls(ca="ca.pem"))
    assert kafka.client_options() == {
        "bootstrap.servers": "a:9092, b:9093",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": "me",
        "sasl.password": password,
        "ssl.ca.location": "ca.pem",
    }
    assert pickle.loads(pickle.dumps(kafka)) == kafka
    assert password.encode() not in pickle.dumps(kafka)
    assert password not in repr(kafka)


def test_a_client_certificate_goes_with_its_key(password: str) -> None:
    tls = Tls(ca="ca.pem", certificate="c.pem", key="k.pem", key_password=EnvSecret("KAFKA_PASSWORD"))
    options = Kafka("a:9092", tls=tls).client_options()
    assert {name: value for name, value in options.items() if name.startswith("ssl.")} == {
        "ssl.ca.location": "ca.pem",
        "ssl.certificate.location": "c.pem",
        "ssl.key.location": "k.pem",
        "ssl.key.password": password,
    }
    assert options["security.protocol"] == "SSL"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Kafka("localhost"), "'localhost' must be 'host:port'"),
        (lambda: Kafka(""), "must be 'host:port'"),
        (lambda: Kafka("a:1", options={"sasl.password": "x"}), "use servers=, tls= or sasl="),
        (lambda: Tls(certificate="c.pem"), "goes with its key"),
        (lambda: Tls(key_password=EnvSecret("X")), "give key="),
        (lambda: Tls(certificate="c", key="k", key_password="open-sesame"), "must be a Secret"),  # type: ignore[arg-type]
        (lambda: Sasl("MD5", "me", EnvSecret("X")), "'MD5'"),  # type: ignore[arg-type]
        (lambda: Sasl("PLAIN", "me", "open-sesame"), "must be a Secret"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_right_is_refused_without_showing_secrets(make: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        make()
    assert "open-sesame" not in str(caught.value)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and it with its key as Java wants them."""
    key, made, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(made)]
    command += ["-days", "2", "-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    both.write_text(key.read_text() + made.read_text())
    return made, both


def test_a_broker_that_wants_tls_and_a_password_gets_them(tmp_path: Path, password: str) -> None:
    made, both = certificate(tmp_path)
    settings = {
        "listener.security.protocol.map": "CLIENT:SASL_SSL,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.client.plain.sasl.jaas.config": (
            f'{_PLAIN} required username="me" password="{password}" user_me="{password}";'
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(both),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(made),
    }
    with KafkaServer(settings) as server:
        kafka = Kafka(server.servers, tls=Tls(ca=str(made)), sasl=Sasl("PLAIN", "me", EnvSecret("KAFKA_PASSWORD")))
        admin = AdminClient(kafka.client_options())
        assert admin.list_topics(timeout=20).brokers
        wrong = AdminClient(kafka.client_options() | {"sasl.password": "wrong"})
        with pytest.raises(KafkaException):
            wrong.list_topics(timeout=3)
