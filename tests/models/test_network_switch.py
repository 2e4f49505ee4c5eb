from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beam_agents.errors import ConfigurationError, NetworkModelForbidden
from beam_agents.messages import ModelRequest
from beam_agents.models import FallbackModel, FunctionModel, OpenAIModel, forbid_network_models, say
from beam_agents.models.network import SWITCH, check_network_allowed, network_models_forbidden
from beam_agents.models.retry import request_with_retries
from beam_agents.testing import MockChatServer, SchemaModel, ScriptedModel

OFFLINE = FunctionModel(lambda request: say("Hi"), name="offline")
ONLINE = OpenAIModel("m1")


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)


def test_the_switch_is_on_within_the_block_only() -> None:
    assert not network_models_forbidden()
    with forbid_network_models():
        assert network_models_forbidden()
        with forbid_network_models():
            assert network_models_forbidden()
        assert network_models_forbidden()
    assert not network_models_forbidden()
    assert SWITCH not in os.environ


def test_it_reaches_processes_that_are_started_within() -> None:
    code = "from beam_agents.models.network import network_models_forbidden as f; print(f())"
    with forbid_network_models():
        printed = subprocess.check_output([sys.executable, "-c", code], cwd=Path(__file__).parents[2], text=True)

    assert printed.strip() == "True"


def test_a_typing_error_is_not_taken_for_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "forbidden")

    with pytest.raises(ConfigurationError, match="'forbidden'"):
        network_models_forbidden()


def test_network_models_are_refused_by_name() -> None:
    with pytest.raises(NetworkModelForbidden, match="'openai:m1'"):
        check_network_allowed(ONLINE, forbidden=True)
    with pytest.raises(NetworkModelForbidden, match=r"'fallback:openai:m1\|openai:m1'"):
        check_network_allowed(FallbackModel(ONLINE, ONLINE), forbidden=True)


def test_others_are_not() -> None:
    for model in (OFFLINE, SchemaModel(), ScriptedModel(["Hi"])):
        assert check_network_allowed(model, forbidden=True) == (model,)
    assert check_network_allowed(ONLINE, forbidden=False) == (ONLINE,)


def test_a_fallback_keeps_the_models_that_work_offline() -> None:
    assert check_network_allowed(FallbackModel(ONLINE, OFFLINE), forbidden=True) == (OFFLINE,)


@pytest.mark.parametrize("by_environment", [True, False])
def test_a_forbidden_model_is_never_asked(question: ModelRequest, by_environment: bool) -> None:
    async def asked() -> str:
        with MockChatServer() as server:
            model = OpenAIModel("m1", base_url=server.base_url)
            with pytest.raises(NetworkModelForbidden):
                await request_with_retries(model, question, forbidden=not by_environment)
            response = await request_with_retries(FallbackModel(model, OFFLINE), question, forbidden=not by_environment)
            assert server.stats["calls"] == 0
            return response.model

    if by_environment:
        with forbid_network_models():
            assert asyncio.run(asked()) == "offline"
    else:
        assert asyncio.run(asked()) == "offline"
