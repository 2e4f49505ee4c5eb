"""What all tests share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from beam_agents.engine.live import REPLAY_VARIABLE
from runners.kafka import KafkaServer, KafkaUnavailable, install_kafka

# Beam logs its end of Prism from an exit handler, when pytest has closed what the log is written to.
logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long forms of tests that have a short one, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        skipped = pytest.mark.skip(reason="a long form: make test-flink, or pytest --long")
        for item in items:
            if "long" in item.keywords:
                item.add_marker(skipped)


@pytest.fixture(params=["live", "replayed"])
def replay_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test twice: as it is, and with each coroutine dropped and rebuilt from its journal at every suspension."""
    if request.param == "replayed":
        monkeypatch.setenv(REPLAY_VARIABLE, "always")
    return str(request.param)


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """A Kafka broker for all tests; each has topics of its own."""
    try:
        install_kafka()
    except KafkaUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with KafkaServer() as server:
        yield server
