"""`redact` sees each text of a result and of an error before anything else does."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
from toolkit_kit import call, failure, serving

from beam_agents import (
    Agent,
    ConfigurationError,
    FailRun,
    Happened,
    ModelRetry,
    RunContext,
    ToolFailed,
    Unknown,
    tool,
)
from beam_agents.errors import NotCalled
from beam_agents.messages import ToolMessage
from beam_agents.testing import ScriptedModel, calls
from beam_agents.toolkit import http_tool, sql_tool

CARD = "4111 1111 1111 1111"


def mask(text: str) -> str:
    """Hides card numbers."""
    return re.sub(r"\d{4}( \d{4}){3}", "<card>", text)


def test_every_text_of_a_result_is_redacted_and_the_rest_stays() -> None:
    @tool(effect="pure", redact=mask)
    def look() -> dict[str, Any]:
        return {"a": [f"has {CARD}", {"b": CARD}], "n": 4, "t": True, "z": None}

    assert call(look) == {"a": ["has <card>", {"b": "<card>"}], "n": 4, "t": True, "z": None}


def test_the_model_and_the_ledger_see_what_is_redacted(tmp_path: Path) -> None:
    @tool(effect="once", redact=mask)
    def pay(to: str) -> str:
        return f"paid with {CARD}"

    agent = Agent("a", model=ScriptedModel([calls(("pay", {"to": "x"})), "ok"]), tools=[pay])
    agent.run_sync({}, ledger=f"sqlite:///{tmp_path}/l.db", event_id="e")

    assert isinstance(agent.model, ScriptedModel)
    message = agent.model.requests[-1].messages[-1]
    assert isinstance(message, ToolMessage)
    assert message.text == "paid with <card>"
    with closing(sqlite3.connect(tmp_path / "l.db")) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    stored = (tmp_path / "l.db").read_bytes()
    assert b"paid with <card>" in stored
    assert CARD.encode() not in stored


@pytest.mark.parametrize("raised", [ModelRetry, ToolFailed, FailRun, ValueError, NotCalled])
@pytest.mark.parametrize("effect", ["pure", "once"])
def test_every_error_is_redacted(raised: type[Exception], effect: Any) -> None:
    @tool(effect=effect, redact=mask)
    def fail() -> str:
        raise raised(f"{'x' * 190} {CARD}")

    if raised in (ModelRetry, ToolFailed):
        assert call(fail).endswith("<card>")
    else:
        message = failure(fail).model_dump_json()
        assert "<card>" in message
        assert "4111" not in message


def test_what_reconcile_says_is_redacted() -> None:
    def status(ctx: RunContext[Any, Any, Any]) -> Any:
        return answers.pop(0)

    @tool(effect="once", reconcile=status, redact=mask)
    def pay() -> str:
        raise ValueError(CARD)

    answers: list[Any] = [Happened(f"it was {CARD}"), Unknown(f"not {CARD}")]
    assert call(pay) == "it was <card>"
    assert "4111" not in failure(pay).model_dump_json()


@pytest.mark.parametrize("effect", ["pure", "once"])
def test_a_result_that_does_not_fit_is_not_shown(effect: Any) -> None:
    @tool(effect=effect, redact=mask)
    def look() -> Literal["yes"]:
        return f"{'x' * 190} {CARD}"  # type: ignore[return-value]

    ended = failure(look)
    assert ended.reason == ("tool_error" if effect == "pure" else "result_lost")
    assert "4111" not in ended.model_dump_json()


def raises(text: str) -> str:
    raise KeyError(text)


def returns_nothing(text: str) -> Any:
    return None


@pytest.mark.parametrize(("redact", "says"), [(raises, "raised KeyError"), (returns_nothing, "returned NoneType")])
@pytest.mark.parametrize("effect", ["pure", "once"])
def test_where_redact_fails_nothing_is_shown(redact: Callable[[str], str], says: str, effect: Any) -> None:
    @tool(effect=effect, redact=redact)
    def look(fail: bool) -> str:
        if fail:
            raise ToolFailed(CARD)
        return CARD

    ended = failure(look, fail=False)
    assert ended.reason == ("tool_error" if effect == "pure" else "result_lost")
    assert says in ended.message
    assert "4111" not in ended.model_dump_json()
    assert says in call(look, fail=True)


def test_redact_must_be_a_function() -> None:
    with pytest.raises(ConfigurationError, match="redact must be a function"):
        tool(effect="pure", redact="x")(raises)  # type: ignore[arg-type]


def test_a_page_that_is_quoted_in_an_error_is_redacted_before_it_is_cut() -> None:
    with serving() as served:
        served.answers(400)

        @http_tool("GET", served.url + "/{card}", effect="pure", redact=lambda text: text.replace("said", "<x>"))
        def look(card: str) -> Any: ...

        assert call(look, card="c").endswith('{"<x>": "no"}')


def test_declared_tools_redact_too(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "d.db").close()

    @sql_tool(f"sqlite:///{tmp_path}/d.db", "select :card", effect="pure", redact=mask)
    def card(card: str) -> str: ...

    assert call(card, card=CARD) == "<card>"
