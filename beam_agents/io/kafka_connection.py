"""Where Kafka's brokers are and how to talk to them, for the two client libraries that are used."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from beam_agents.errors import ConfigurationError
from beam_agents.secrets import Secret

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

_RESERVED = ("bootstrap.servers", "security.protocol", "sasl.", "ssl.")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """An encrypted connection.

    Args:
        ca: A PEM file with the authorities that the brokers' certificates are checked against; the system's by default.
        certificate: A PEM file with the client's own certificate, where brokers ask for one.
        key: A PEM file with its key.
        key_password: Of the key.

    Raises:
        ConfigurationError: A certificate without a key, or the other way round, or the password is not a `Secret`.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    key_password: Secret | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError(
                f"Tls(certificate={self.certificate!r}, key={self.key!r}): a client's certificate goes with its key; "
                "give both or none"
            )
        if self.key_password is not None and self.key is None:
            raise ConfigurationError("Tls(key_password=...) is the password of a key: give key=... too, or drop it")
        if self.key_password is not None and not isinstance(self.key_password, Secret):
            raise ConfigurationError(
                "Tls(key_password=...) must be a Secret, such as EnvSecret('KAFKA_KEY_PASSWORD'), so that it is in no "
                "pickle"
            )


@dataclass(frozen=True)
class Sasl:
    """A name and a password.

    Args:
        mechanism: How they are told to the brokers: `"PLAIN"` (not without `Tls`, or anybody can read it),
            `"SCRAM-SHA-256"` or `"SCRAM-SHA-512"`.
        username: The name.
        password: Looked up by each worker.

    Raises:
        ConfigurationError: There is no such mechanism, or the password is not a `Secret`.
    """

    mechanism: Mechanism
    username: str
    password: Secret

    def __post_init__(self) -> None:
        if self.mechanism not in get_args(Mechanism):
            raise ConfigurationError(
                f"Sasl(mechanism={self.mechanism!r}) must be one of {', '.join(map(repr, get_args(Mechanism)))}"
            )
        if not isinstance(self.password, Secret):
            raise ConfigurationError(
                f"Sasl({self.mechanism!r}, {self.username!r}): the password must be a Secret, such as "
                "EnvSecret('KAFKA_PASSWORD'), so that it is in no pickle"
            )


@dataclass(frozen=True)
class Kafka:
    """Kafka's brokers.

    Args:
        servers: Some of them, as `"host:9092,host:9092"`.
        tls: Encryption; none by default.
        sasl: A name and a password; none by default.
        options: Further options of librdkafka, such as `{"socket.timeout.ms": "10000"}`. They are pickled, so no
            secrets here.

    Raises:
        ConfigurationError: It cannot be right.
    """

    servers: str
    tls: Tls | None = None
    sasl: Sasl | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for server in self.servers.split(","):
            host, colon, port = server.strip().rpartition(":")
            if not (host and colon and port.isdigit()):
                raise ConfigurationError(f"Kafka({self.servers!r}): {server.strip()!r} must be 'host:port'")
        for name in self.options:
            if name.startswith(_RESERVED):
                raise ConfigurationError(f"Kafka(options={{{name!r}: ...}}): use servers=, tls= or sasl= for that")
        object.__setattr__(self, "options", dict(self.options))

    def client_options(self) -> dict[str, str | int | float | bool]:
        """The options for confluent-kafka, with secrets: for use in a worker, and never kept.

        Raises:
            ConfigurationError: A secret is not there.
        """
        protocol = ("SASL_" if self.sasl else "") + ("SSL" if self.tls else "PLAINTEXT")
        options: dict[str, str | int | float | bool] = {
            **self.options,
            "bootstrap.servers": self.servers,
            "security.protocol": protocol,
        }
        if self.sasl is not None:
            options |= {
                "sasl.mechanism": self.sasl.mechanism,
                "sasl.username": self.sasl.username,
                "sasl.password": self.sasl.password.reveal(),
            }
        if self.tls is not None:
            options |= {
                name: value
                for name, value in (
                    ("ssl.ca.location", self.tls.ca or _system_authorities()),
                    ("ssl.certificate.location", self.tls.certificate),
                    ("ssl.key.location", self.tls.key),
                    ("ssl.key.password", self.tls.key_password and self.tls.key_password.reveal()),
                )
                if value
            }
        return options


def _system_authorities() -> str | None:
    """The file with the system's authorities; librdkafka is linked to an OpenSSL that looks elsewhere."""
    found = ssl.get_default_verify_paths().cafile
    return found if found and Path(found).exists() else None
