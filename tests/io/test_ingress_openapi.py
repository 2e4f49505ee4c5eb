"""What a door says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from beam_agents.io.ingress.admission import Admission, Signature
from beam_agents.io.ingress.app import Door, Limits
from beam_agents.io.ingress.body import Events
from beam_agents.io.ingress.results import Result, Results
from beam_agents.secrets import EnvSecret, Secret
from tests.io.ingress_kit import MemoryStore, Order


class NoResults(Results):
    """Has none."""

    async def open(self) -> None:
        """Needs nothing."""

    async def find(self, id: str) -> Result | None:
        """Nothing is there."""
        return None

    async def wait(self, id: str) -> Result:
        """Nothing comes."""
        return await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Has nothing."""


class Accepted(BaseModel):
    """A type with a name that the server has a use for, too."""

    customer: str


class Wrapped(BaseModel):
    """An event with another type in it."""

    customer: str
    inner: Accepted


class Callback(BaseModel):
    """An event that JSON Schema has no words for."""

    customer: str
    then: Callable[[], None] | None = None


def told(
    of: Any = Order,
    *,
    event_id: str | None = None,
    tokens: tuple[Secret, ...] = (),
    signature: Signature | None = None,
    open: bool = True,
    results: Results | None = None,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    events = Events(of, key="customer", event_id=event_id, id_header="Idempotency-Key", max_batch=10)
    door = Door(events, MemoryStore(), Admission(tokens, signature, open), results, Limits())

    async def ask() -> httpx.Response:
        async with door.opened(), httpx.AsyncClient(transport=httpx.ASGITransport(door.application())) as client:
            return await client.get("http://door/openapi.json", headers=headers)

    return asyncio.run(ask())


def document(of: Any = Order, **how: Any) -> dict[str, Any]:
    """A document that is one by its specification."""
    answer = told(of, **how)
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    OpenAPIV31SpecValidator(read).validate()
    return read


def fits(read: dict[str, Any], event: Any) -> bool:
    schema = read["components"]["schemas"]["ingress.Event"] | {"components": read["components"]}
    return jsonschema.Draft202012Validator(schema).is_valid(event)


def test_the_events_schema_is_that_of_the_type() -> None:
    read = document()
    assert fits(read, {"customer": "ada", "amount": 5})
    assert not fits(read, {"amount": 5})
    assert set(read["paths"]) == {"/events"}
    assert set(read["paths"]["/events"]["post"]["responses"]) == {
        "202",
        "400",
        "401",
        "413",
        "415",
        "422",
        "429",
        "503",
    }


def test_a_type_of_the_user_may_have_any_name() -> None:
    read = document(Wrapped)
    assert fits(read, {"customer": "ada", "inner": {"customer": "bob"}})
    assert not fits(read, {"customer": "ada", "inner": {}})
    assert set(read["components"]["schemas"]["ingress.Accepted"]["properties"]) == {"id", "key", "location"}


def test_an_event_that_no_schema_describes_is_anything() -> None:
    read = document(Callback)
    assert fits(read, {"customer": "ada"})
    assert read["components"]["schemas"]["ingress.Event"]["description"].startswith("Not described: ")


@pytest.mark.parametrize(("event_id", "names"), [(None, ["Idempotency-Key"]), ("customer", [])])
def test_the_ids_header_is_asked_for_unless_it_is_a_field(event_id: str | None, names: list[str]) -> None:
    asked = document(event_id=event_id)["paths"]["/events"]["post"]["parameters"]
    assert [each["name"] for each in asked if each["required"]] == names


def test_results_are_described_where_there_are_some() -> None:
    read = document(results=NoResults())
    assert {"200", "404"} <= set(read["paths"]["/events/{id}"]["get"]["responses"])
    assert "200" in read["paths"]["/events"]["post"]["responses"]


def test_who_may_send_is_described_and_it_takes_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "t0ken")
    monkeypatch.setenv("SHARED", "secret")
    locked: dict[str, Any] = {
        "tokens": (EnvSecret("TOKEN"),),
        "signature": Signature(EnvSecret("SHARED")),
        "open": False,
        "results": NoResults(),
    }
    assert told(**locked).status_code == 401
    read = document(**locked, headers={"Authorization": "Bearer t0ken"})
    assert read["paths"]["/events"]["post"]["security"] == [{"bearer": []}, {"signature": []}]
    assert read["paths"]["/events/{id}"]["get"]["security"] == [{"bearer": []}]
    assert read["components"]["securitySchemes"]["signature"]["name"] == "X-Hub-Signature-256"
