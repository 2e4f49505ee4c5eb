"""What all tests share."""

from __future__ import annotations

import logging

import pytest

from beam_agents.engine.live import REPLAY_VARIABLE

# Beam logs its end of Prism from an exit handler, when pytest has closed what the log is written to.
logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)


@pytest.fixture(params=["live", "replayed"])
def replay_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test twice: as it is, and with each coroutine dropped and rebuilt from its journal at every suspension."""
    if request.param == "replayed":
        monkeypatch.setenv(REPLAY_VARIABLE, "always")
    return str(request.param)
