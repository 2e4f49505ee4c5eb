"""`Webhook`: results posted as JSON, with an idempotency key and retries."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import Any, Final, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection
from apache_beam.utils.windowed_value import WindowedValue

from beam_agents.codec import canonical_json
from beam_agents.errors import ConfigurationError
from beam_agents.io.sinks.held import Held
from beam_agents.io.sinks.outgoing import (
    Field,
    check_field,
    check_identifiable,
    identify,
    pair_of,
    typed_undelivered,
    undelivered,
)
from beam_agents.io.sinks.webhook_client import Client, Refusal, Target
from beam_agents.secrets import Secret

_WAITING: Final = 1_000
"""How many deliveries of a bundle may be under way or waiting for their next attempt."""

Body = Callable[[Any, Any], Any]
"""A function of key and value: what is posted, as JSON."""


class Webhook(beam.PTransform[Any, Any]):
    """Posts each value of a PCollection of (key, value): an output of `RunAgent`, or with `id` anything.

    At least once: after a crash what came since the runner's last checkpoint is posted again with the same
    `Idempotency-Key`, by which the other side can leave it out. A value is delivered when it was answered with 2xx. On
    408, 425, 429, 5xx, a time-out or a lost connection it is posted again, after as long as `Retry-After` says or with
    growing pauses, until `give_up_after`. Any other status, redirects too, ends it at once. What was not delivered is
    in the output; nothing is lost.

    A bundle ends when its values are delivered or given up, so `give_up_after` is also about how long a checkpoint may
    have to wait.

    Args:
        url: Where to post; a `Secret` if the URL is one.
        id: A field of the value that is unique among the values of its key, or a function of the value; not needed
            for outputs of `RunAgent`.
        body: What is posted: a function of key and value. By default an object with `key`, `id`, `kind` and `value`.
        headers: More headers; values that are secret as `Secret`.
        sign: A shared secret: requests are signed as standardwebhooks.com describes.
        timeout: Of one request.
        give_up_after: How long after its first attempt a value is given up.
        in_flight: How many requests a worker process makes at once.

    Returns:
        (key, `Undelivered`) for each value that was given up, or of which there is no id or JSON.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        url: str | Secret,
        *,
        id: Field | None = None,
        body: Body | None = None,
        headers: Mapping[str, str | Secret] | None = None,
        sign: Secret | None = None,
        timeout: timedelta = timedelta(seconds=10),
        give_up_after: timedelta = timedelta(minutes=1),
        in_flight: int = 32,
    ) -> None:
        super().__init__()
        if not isinstance(url, Secret) and (not isinstance(url, str) or not url.startswith(("https://", "http://"))):
            raise ConfigurationError(f"Webhook(url={url!r}) must be a URL of http or https, or a Secret that holds one")
        for name, time in (("timeout", timeout), ("give_up_after", give_up_after)):
            if time <= timedelta(0):
                raise ConfigurationError(f"Webhook({name}={time!r}) must be above zero")
        if in_flight < 1:
            raise ConfigurationError(f"Webhook(in_flight={in_flight!r}) must be 1 or more")
        if sign is not None and not isinstance(sign, Secret):
            raise ConfigurationError("Webhook(sign=...) must be a Secret, such as EnvSecret('NAME')")
        if body is not None and not callable(body):
            raise ConfigurationError(f"Webhook(body={body!r}) must be a function of key and value")
        check_field("Webhook", "id", id)
        target = Target(
            url=url,
            headers=dict(headers or {}),
            sign=sign,
            timeout=timeout.total_seconds(),
            give_up_after=give_up_after.total_seconds(),
            in_flight=in_flight,
        )
        self._id = id
        self._body = body
        self._held = Held(partial(Client, target))

    def expand(self, pcoll: PCollection[Any]) -> PCollection[Any]:
        """Builds the stages."""
        check_identifiable(pcoll, "Webhook", self._id, once=False)
        post = _Post(self._held, self._id, self._body)
        return typed_undelivered(pcoll | "Post" >> beam.ParDo(post))


class _UnderWay(NamedTuple):
    outcome: Future[Refusal | None]
    id: str
    element: tuple[Any, Any]
    place: tuple[Any, Any]
    """The element's timestamp and window."""


class _Post(beam.DoFn):
    def __init__(self, held: Held[Client], id: Field | None, body: Body | None) -> None:
        self._held = held
        self._id = id
        self._body = body
        self._delivered = Metrics.counter("beam_agents.webhook", "delivered")
        self._given_up = Metrics.counter("beam_agents.webhook", "given_up")

    def setup(self) -> None:
        self._client = self._held.enter()

    def teardown(self) -> None:
        self._held.leave()

    def start_bundle(self) -> None:
        self._under_way: deque[_UnderWay] = deque()

    def process(
        self, element: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterable[Any]:
        key, value = pair_of(element, "Webhook")
        try:
            identity = identify(value, self._id)
            id = identity.digest(key)
            if self._body is not None:
                body = self._body(key, value)
            else:
                body = {"key": key, "id": id, "kind": identity.kind, "value": value}
            text = canonical_json(body).encode()
        except Exception as error:  # the user's functions may raise anything, and the stream has to go on
            yield key, undelivered(value, error)
            return
        if len(self._under_way) >= _WAITING:
            yield from self._ended(self._under_way.popleft())
        self._under_way.append(_UnderWay(self._client.deliver(text, id), id, (key, value), (timestamp, window)))

    def finish_bundle(self) -> Iterable[WindowedValue]:
        while self._under_way:
            yield from self._ended(self._under_way.popleft())

    def _ended(self, one: _UnderWay) -> Iterable[WindowedValue]:
        refusal = one.outcome.result()
        if refusal is None:
            self._delivered.inc()
            return
        self._given_up.inc()
        (key, value), (timestamp, window) = one.element, one.place
        failure = undelivered(value, refusal.message, id=one.id, attempts=refusal.attempts, status=refusal.status)
        yield WindowedValue((key, failure), timestamp, (window,))
