"""A secret's value is looked up in the worker, and is nowhere else: in no pickle, record, error, trace or repr."""

from __future__ import annotations

import logging
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.internal import cloudpickle_pickler
from driving import BATCH, STREAM, TAGS, collect, collected, options_of, pairs
from echo_server import echoing

from beam_agents import Agent, ConfigurationError, RunAgent, RunFailed
from beam_agents.secrets import CallSecret, EnvSecret, FileSecret, Secret, conceal, conceal_json, reveal
from beam_agents.testing import ScriptedModel, calls
from beam_agents.toolkit import http_tool

VALUE = "v4lue-of-the-secret"


def from_vault() -> str:
    return VALUE


def from_nowhere() -> str:
    raise KeyError(VALUE)


def nothing() -> Any:
    return None


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Secret]:
    (tmp_path / "held").write_text(f" {VALUE}\n", encoding="utf-8")
    monkeypatch.setenv("HELD", VALUE)
    return [EnvSecret("HELD"), FileSecret(str(tmp_path / "held")), CallSecret(from_vault)]


def test_secrets_are_found_in_their_places_and_show_the_place(places: list[Secret]) -> None:
    for place in places:
        assert place.reveal() == VALUE
        assert place.prefixed("Bearer ").reveal() == f"Bearer {VALUE}"
        for one in (place, place.prefixed("Bearer ")):
            assert VALUE not in f"{one!r} {one} {one.name} {vars(one)}"
            for dumps, loads in [(pickle.dumps, pickle.loads), (cloudpickle_pickler.dumps, cloudpickle_pickler.loads)]:
                assert VALUE.encode() not in dumps(one)
                assert loads(dumps(one)) == one
    assert [reveal(value) for value in ("plain", *places)] == ["plain", VALUE, VALUE, VALUE]


def test_a_secret_is_looked_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = EnvSecret("HELD")
    for value in ("one", "two"):
        monkeypatch.setenv("HELD", value)
        assert secret.reveal() == value


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: EnvSecret("NOT_THERE"), "environment variable 'NOT_THERE' .* not set"),
        (lambda folder: FileSecret(f"{folder}/none"), "none' .* No such file"),
        (lambda folder: FileSecret(f"{folder}/empty"), "empty' .* is empty"),
        (lambda folder: FileSecret(f"{folder}/binary"), "not UTF-8"),
        (lambda folder: FileSecret(str(folder)), "Is a directory"),
        (lambda folder: CallSecret(from_nowhere), "from_nowhere raised KeyError"),
        (lambda folder: CallSecret(nothing), "returned NoneType"),
    ],
)
def test_a_missing_secret_is_named(make: Callable[[Path], Secret], says: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff" + VALUE.encode())
    with pytest.raises(ConfigurationError, match=says) as caught:
        make(tmp_path).reveal()

    error: BaseException | None = caught.value
    while error is not None:
        assert VALUE not in str(error)
        error = error.__cause__


@pytest.mark.parametrize(
    "make",
    [
        lambda: EnvSecret(""),
        lambda: EnvSecret(f"A={VALUE}"),
        lambda: FileSecret(" "),
        lambda: CallSecret(VALUE),  # type: ignore[arg-type]
        lambda: CallSecret(lambda: VALUE),
        lambda: CallSecret(Path("x").read_text),
    ],
)
def test_what_is_no_place_is_refused_and_not_shown(make: Callable[[], Secret]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert VALUE not in str(caught.value)


def test_what_a_text_says_of_secrets_is_concealed() -> None:
    assert conceal("Bearer abcd, abcd", ["Bearer abcd"]) == "***, ***"
    assert conceal('x "a\\"bé\\u00e9" a%22b', ['a"bé', 'a"b']) == 'x "***\\u00e9" ***'
    assert conceal("one 1", ["1", ""]) == "one 1"


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_the_value_is_in_no_pickle_record_output_or_log(
    driver: str, places: list[Secret], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with echoing() as url:

        @http_tool("POST", url + "/{what}", effect="idempotent", headers={"X-Key": places[0]}, retries=0)
        def echo(what: str) -> Any: ...

        @http_tool("GET", url + "/{what}", effect="pure", retries=0, headers={"Cookie": places[1].prefixed("id=")})
        def look(what: str) -> Any: ...

        @http_tool("GET", url + "/{what}", effect="pure", headers={"X-Key": places[2].prefixed("Bearer ")})
        def refused(what: str) -> Any: ...

        script = [
            calls(("echo", {"what": "200"}), ("look", {"what": "400"})),
            calls(("refused", {"what": "401"})),
            "ok",
        ]
        agent = Agent("a", model=ScriptedModel(script), tools=[echo, look, refused])
        ledger = f"sqlite:///{tmp_path}/l.db"
        run = RunAgent(agent, event_id="id", ledger=ledger)
        assert VALUE.encode() not in cloudpickle_pickler.dumps((agent, run))
        with beam.Pipeline(options=options_of(driver)) as pipeline:
            out = pairs(pipeline, driver, [(("k", {"id": "e1"}), 1)]) | run
            for tag in TAGS:
                collect(getattr(out, tag), f"secrets {tag}")
        with pytest.raises(RunFailed) as caught:
            agent.run_sync({"id": "x"}, model=ScriptedModel(script))

    outputs = {tag: collected(f"secrets {tag}") for tag in TAGS}
    assert len(outputs["failures"]) == 1
    assert "'X-Key'" in outputs["failures"][0].value.message
    assert "***" in str(outputs["failures"][0].value.transcript)
    with closing(sqlite3.connect(tmp_path / "l.db")) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("l.db*"))
    assert b"***" in stored
    assert VALUE.encode() not in stored
    assert VALUE not in f"{outputs!r} {caught.value} {caught.value.failure!r} {agent!r} {caplog.text}"


def test_json_is_concealed_as_it_is_read_and_not_as_it_is_written() -> None:
    secret = "abcd/efgh+ijkl=="
    for written in (r'"abcd\/efgh+ijkl=="', r'"abcd/efgh\u002Bijkl=="'):
        assert conceal_json(f'{{"seen": [{written}]}}', [secret]) == '{"seen": ["***"]}'
    assert conceal_json('{"id": 123456, "at": 1.10}', ["1234"]) == '{"id": 123456, "at": 1.10}', "digits are no secret"
    assert conceal_json('{"abcdef": 1}', ["abcdef"]) == '{"***": 1}'
    assert conceal_json("status: abcdef", ["abcdef"]) == "status: ***"
    assert conceal_json("[" * 100_000, ["abcdef"]) == "[" * 100_000
