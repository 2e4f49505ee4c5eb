"""The application: what each path answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from beam_agents.io.ingress.admission import Admission
from beam_agents.io.ingress.body import Accepted, Events, may_be_id, read_body
from beam_agents.io.ingress.openapi import document
from beam_agents.io.ingress.problems import Problem, refused, told, unexpected, unroutable
from beam_agents.io.ingress.rate import Rate
from beam_agents.io.ingress.results import Result, Results
from beam_agents.io.ingress.store import Store, StoreDown, TooLarge

_RETRY_SECONDS = "1"
_SECONDS = re.compile(r"(\d{1,6})(ms|s)?")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes."""

    max_bytes: int = 1_000_000
    """Of a request's body."""
    max_batch: int = 1_000
    """Events in a request."""
    per_second: float | None = None
    """Events a second of one caller, in the long run; no limit by default."""
    max_waiting: int = 1_000
    """Requests that wait for the store at once; the rest is told to come back."""
    store_seconds: float = 10.0
    """How long a request waits for the store."""
    max_wait: float = 60.0
    """The longest that a request may wait for its result, in seconds."""


class Door:
    """Takes events, says 202 when the store has them, and tells their results.

    Args:
        events: What is taken.
        store: Where it is kept.
        admission: Who may send, and ask.
        results: What events come to; without them nothing is told.
        limits: How much is taken.
    """

    def __init__(
        self, events: Events, store: Store, admission: Admission, results: Results | None, limits: Limits
    ) -> None:
        self._events = events
        self._store = store
        self._admission = admission
        self._results = results
        self._limits = limits
        self._rate = Rate(limits.per_second, max(limits.max_batch, int(limits.per_second or 0)))
        self._waiting = 0
        self._registry = CollectorRegistry()
        name = "beam_agents_ingress_"
        self._requests = Counter(name + "requests", "By status.", ["status"], registry=self._registry)
        self._stored = Counter(name + "events", "Events that were stored.", registry=self._registry)
        self._seconds = Histogram(name + "store_seconds", "Waiting for the store.", registry=self._registry)
        Gauge(name + "waiting", "Requests that wait for the store.", registry=self._registry).set_function(
            lambda: self._waiting
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Has the store and the results open for the length of the block, in which the application may be served.

        Raises:
            ConfigurationError: They cannot work as they were set up.
        """
        try:
            await self._store.open()
            if self._results is not None:
                await self._results.open()
            yield
        finally:
            if self._results is not None:
                await self._results.close()
            await self._store.close()

    def application(self) -> Starlette:
        """The ASGI application."""

        made = Starlette(
            routes=[
                Route("/events", self._counted(self._take), methods=["POST"]),
                Route("/events/{id:path}", self._counted(self._tell), methods=["GET"]),
                Route("/openapi.json", self._counted(self._describe), methods=["GET"]),
                Route("/healthz", self._health),
                Route("/readyz", self._ready),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={Problem: refused, HTTPException: unroutable, Exception: unexpected},
        )
        made.router.redirect_slashes = False
        return made

    async def _take(self, request: Request) -> Response:
        body = await read_body(request, self._limits.max_bytes)
        caller = self._admission.caller(request, body)
        seconds = self._patience(request)
        accepted, batch = self._events.read(request, body)
        if seconds is not None and batch:
            raise Problem(400, "only a single event's result can be waited for")
        self._rate.take(caller, len(accepted))
        await self._keep(accepted)
        if batch:
            return JSONResponse({"accepted": [_place(event) for event in accepted]}, 202)
        (event,) = accepted
        where = {"Location": _place(event)["location"]}
        if seconds is not None and self._results is not None:
            result = await self._results.within(event.id, seconds)
            if result is not None:
                return _told(event.id, result, where)
        return JSONResponse(_place(event), 202, where)

    async def _keep(self, events: list[Accepted]) -> None:
        if self._waiting >= self._limits.max_waiting:
            raise Problem(503, "too many requests wait already", headers={"Retry-After": _RETRY_SECONDS})
        self._waiting += 1
        try:
            # What is given up here may be stored all the same; the client sends it again with the same id.
            with self._seconds.time():
                async with asyncio.timeout(self._limits.store_seconds):
                    await self._store.append(events)
        except TooLarge as error:
            raise Problem(413, str(error)) from error
        except (StoreDown, TimeoutError) as error:
            why = str(error) or "it takes too long"
            detail = f"it could not be stored ({why}); send it again with the same id"
            raise Problem(503, detail, headers={"Retry-After": _RETRY_SECONDS}) from error
        finally:
            self._waiting -= 1
        self._stored.inc(len(events))

    async def _tell(self, request: Request) -> Response:
        self._admission.caller(request, None)
        if self._results is None:
            raise Problem(404, "this server is not told what events come to")
        id, seconds = request.path_params["id"], self._patience(request)
        if not may_be_id(id):  # before a database is asked, which may refuse to look for it
            raise Problem(404, "no event has this id")
        try:
            result = await (self._results.within(id, seconds) if seconds else self._results.find(id))
        except Exception as error:
            detail = "results cannot be read now"
            raise Problem(503, detail, headers={"Retry-After": _RETRY_SECONDS}) from error
        if result is None:
            detail = "there is no result by this id: it has not come yet, is no longer kept, or no event has this id"
            raise Problem(404, detail, headers={"Retry-After": _RETRY_SECONDS})
        return _told(id, result, {})

    def _patience(self, request: Request) -> float | None:
        """How many seconds the client waits for a result."""
        given = request.query_params.get("wait")
        if given is None:
            wishes = [part.strip() for part in request.headers.get("prefer", "").split(",")]
            given = next((wish.removeprefix("wait=") for wish in wishes if wish.startswith("wait=")), None)
        if given is None:
            return None
        found = _SECONDS.fullmatch(given)
        if found is None:
            raise Problem(400, "wait is a time such as 5s or 500ms")
        if self._results is None:
            raise Problem(400, "this server is not told what events come to: send it without wait")
        return min(int(found[1]) / (1000 if found[2] == "ms" else 1), self._limits.max_wait)

    async def _describe(self, request: Request) -> Response:
        self._admission.caller(request, None)
        return JSONResponse(
            document(
                self._events.adapter,
                id_header=self._events.id_header,
                bearer=self._admission.bearer,
                signature=self._admission.signature_header,
                open=self._admission.open,
                results=self._results is not None,
            )
        )

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        if not await self._store.ready():
            return told(Problem(503, f"{self._store.place} takes no events now"))
        return JSONResponse({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _counted(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def counted(request: Request) -> Response:
            status = 500
            try:
                response = await answer(request)
                status = response.status_code
            except Problem as problem:
                status = problem.status
                raise
            finally:
                self._requests.labels(str(status)).inc()
            return response

        return counted


def _place(event: Accepted) -> dict[str, str]:
    return {"id": event.id, "key": event.key, "location": f"/events/{quote(event.id, safe='')}"}


def _told(id: str, result: Result, headers: dict[str, str]) -> Response:
    return JSONResponse({"id": id, "status": result.status, "result": result.value}, 200, headers)
