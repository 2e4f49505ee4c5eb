"""`mcp_tools` against servers that are commands and a server on HTTP."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from apache_beam.internal import cloudpickle_pickler
from mcp_http import HttpShop
from toolkit_kit import call, failure

from beam_agents import Agent, ConfigurationError, Tool
from beam_agents.messages import ToolMessage
from beam_agents.secrets import EnvSecret
from beam_agents.testing import ScriptedModel, calls
from beam_agents.toolkit import mcp_tools

SHOP = str(Path(__file__).with_name("mcp_shop.py"))
COMMAND = [sys.executable, SHOP]
READS = ["search", "greet", "picture"]
TOKEN = "t0ken-Value"


def shop(*names: str, server: Any = COMMAND, effect: Any = "pure", **more: Any) -> dict[str, Tool[Any]]:
    tools = mcp_tools(server, only=names, effects=dict.fromkeys(names, effect), **more)
    return {tool.name: tool for tool in tools}


@pytest.fixture(scope="module")
def reading() -> dict[str, Tool[Any]]:
    return shop(*READS)


@pytest.fixture(scope="module")
def over_http() -> Iterator[str]:
    with HttpShop() as served:
        yield served.url


def test_tools_have_their_servers_schema_and_description(reading: dict[str, Tool[Any]]) -> None:
    spec = reading["search"].spec

    assert spec.description == "Looks for things."
    assert spec.parameters["required"] == ["query"]
    assert spec.parameters["properties"]["limit"]["type"] == "integer"


def test_results_are_structured_text_or_parts(reading: dict[str, Tool[Any]]) -> None:
    assert call(reading["search"], query="pen", limit=1) == {"result": [{"name": "pen 0", "price": 0.0}]}
    assert call(reading["greet"], name="Ann") == "Hello Ann"
    assert [part["type"] for part in call(reading["picture"])] == ["text", "image"]


def test_a_pickled_tool_works(reading: dict[str, Tool[Any]]) -> None:
    again = cloudpickle_pickler.loads(cloudpickle_pickler.dumps(reading["greet"]))

    assert again.spec == reading["greet"].spec
    assert call(again, name="Bo") == "Hello Bo"


def test_wrong_arguments_are_told_to_the_model(reading: dict[str, Tool[Any]]) -> None:
    model = ScriptedModel(
        [calls(("search", {"query": 3, "limit": "x"})), calls(("search", "[1]")), calls(("greet", {"name": "A"})), "ok"]
    )
    Agent("a", model=model, tools=list(reading.values())).run_sync({})
    told = [message.text for message in model.requests[-1].messages if isinstance(message, ToolMessage)]

    assert "query: 3 is not of type 'string'" in told[0]
    assert "limit: 'x' is not of type 'integer'" in told[0]
    assert "not of type 'object'" in told[1]
    assert told[2] == "Hello A"


def test_a_tool_without_an_effect_is_refused_by_name(over_http: str) -> None:
    with pytest.raises(ConfigurationError, match=r"'die', 'greet', 'order', 'picture', 'token'; or leave") as caught:
        mcp_tools(over_http, effects={"search": "pure"})
    assert "'search'" not in str(caught.value).split("effects=")[1]

    with pytest.raises(ConfigurationError, match="has no tool 'serch'; there is: die, greet"):
        mcp_tools(over_http, effects={"serch": "pure"})


def test_a_default_effect_is_for_the_rest(over_http: str) -> None:
    tools = mcp_tools(over_http, effects={"search": "pure"}, default_effect="once", prefix="shop_")

    assert {tool.name: tool.effect for tool in tools if tool.name in ("shop_search", "shop_order")} == {
        "shop_search": "pure",
        "shop_order": "once",
    }


@pytest.mark.parametrize(
    ("server", "more", "says"),
    [
        ([], {}, "the command is empty"),
        ("no url", {}, "give the URL"),
        ("http://user:pw@host/mcp", {}, "without a user"),
        ("http://host/mcp", {"headers": {"Authorization": EnvSecret("E")}}, "use https"),
        ("http://host/mcp", {"headers": {"Authorization": "x"}}, "EnvSecret"),
        ("https://host/mcp", {"env": {"A": "b"}}, "env is for"),
        (["x"], {"headers": {"A": "b"}}, "headers are for"),
        (["x"], {"effects": {"a": "safe"}}, "effect='safe'"),
        (["/nowhere/at/all"], {}, "cannot be asked for its tools"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], {"timeout": timedelta(seconds=1)}, "in 1 s"),
        ("http://127.0.0.1:9/mcp", {"timeout": timedelta(seconds=5)}, "cannot be asked for its tools"),
    ],
)
def test_what_cannot_work_is_refused_at_once(server: Any, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        mcp_tools(server, **more)
    assert "pw" not in str(caught.value)


def test_the_calls_key_is_sent_and_errors_are_judged_by_the_effect(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    env = {"SHOP_NOTES": str(notes)}
    once = shop("order", effect="once", env=env)["order"]

    assert call(once, item="pen") == {"result": "ordered"}
    assert len(notes.read_text(encoding="utf-8").split()[1]) == 32
    assert failure(once, item="nothing").reason == "in_doubt"

    told = shop("order", effect="once", env=env, errors_without_effect=True)["order"]
    assert "sold out" in call(told, item="nothing")


def test_a_dead_server_is_started_again_for_pure_tools_only(tmp_path: Path) -> None:
    assert "alive" in call(shop("die")["die"], once_in=str(tmp_path / "one"))["result"]

    notes = tmp_path / "notes"
    once = shop("order", effect="once", env={"SHOP_NOTES": str(notes)})["order"]
    assert failure(once, item="death").reason == "in_doubt"
    assert notes.read_text(encoding="utf-8").count("death") == 1
    assert call(once, item="pen") == {"result": "ordered"}


def test_a_server_that_died_unnoticed_leaves_no_once_call_in_doubt(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    made = mcp_tools(
        COMMAND,
        only=["die", "order"],
        effects={"die": "pure", "order": "once"},
        env={"SHOP_NOTES": str(notes)},
    )
    tools = {tool.name: tool for tool in made}
    process = int(call(tools["die"], once_in=SHOP)["result"].split()[-1])
    os.kill(process, signal.SIGKILL)

    assert call(tools["order"], item="pen") == {"result": "ordered"}
    assert notes.read_text(encoding="utf-8").count("pen") == 1


def test_a_schema_that_has_changed_is_an_error_and_nothing_is_called(tmp_path: Path) -> None:
    new = tmp_path / "new"
    tool = shop("versioned", effect="once", env={"SHOP_NEW": str(new)})["versioned"]
    new.touch()
    ended = failure(tool, old=1)

    assert ended.reason == "tool_error"
    assert "the schema of tool 'versioned' has changed" in ended.message


def test_secrets_go_to_the_server_and_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_SECRET", TOKEN)
    tool = shop("token", env={"SHOP_TOKEN": EnvSecret("SHOP_SECRET")})["token"]

    assert TOKEN.encode() not in cloudpickle_pickler.dumps(tool)
    assert call(tool, kind="result") == {"result": "it is ***"}
    assert "bad ***" in call(tool, kind="error")

    monkeypatch.delenv("SHOP_SECRET")
    again = cloudpickle_pickler.loads(cloudpickle_pickler.dumps(tool))
    assert "environment variable 'SHOP_SECRET'" in failure(again, kind="result").message


def test_a_result_that_is_too_long_is_an_error(over_http: str) -> None:
    tool = shop("search", server=over_http, max_bytes=50, retries=0)["search"]
    assert "more than 50 bytes" in failure(tool, query="pen").message


def test_a_server_on_http_works_the_same_way_and_may_come_back() -> None:
    with HttpShop() as served:
        tools = shop("greet", "search", server=served.url, headers={"X-Plain": "p"}, retries=0)

        assert call(tools["greet"], name="Ann") == "Hello Ann"
        assert len(call(tools["search"], query="q")["result"]) == 5
        served.stop()
        assert failure(tools["greet"], name="Ann").reason == "tool_error"
        served.start()
        assert call(tools["greet"], name="Bo") == "Hello Bo"
