"""Models behind OpenAI's chat protocol: OpenAI itself, and the many servers that share it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from beam_agents.errors import ConfigurationError, ModelError
from beam_agents.limits import ModelLimits
from beam_agents.messages import ModelRequest, ModelResponse
from beam_agents.models.base import Model, Price
from beam_agents.models.openai_wire import read_response, request_body
from beam_agents.models.prices import known_price

if TYPE_CHECKING:
    from beam_agents.models.openai_client import ChatClient

_OPENAI_HOST = "https://api.openai.com/"
_NO_KEY = "no-key"  # servers of one's own mostly want none, but the client insists


class OpenAIModel(Model):
    """A model served over OpenAI's chat protocol (`POST /chat/completions`).

    The API key is read from the worker's environment when the model connects: it is never pickled. A server other
    than OpenAI's may be without one.

    Args:
        model_name: The server's name of the model.
        base_url: Where the server is, with its version (`http://localhost:8000/v1`). By default the environment
            variable `OPENAI_BASE_URL` of the worker, and without that OpenAI.
        api_key_env: The environment variable with the API key.
        price: What the model costs. By default the list price, if the package `genai-prices` is installed (extra
            `prices`) and knows the model.
        headers: Further HTTP headers. They are pickled with the model, so no secrets here.
        limits: How much of it a worker process may use. All models of a process with the same name and server share
            them, so they must be the same for all.

    Raises:
        ConfigurationError: An argument cannot be right.
    """

    def __init__(
        self,
        model_name: str,
        *,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        price: Price | None = None,
        headers: Mapping[str, str] | None = None,
        limits: ModelLimits | None = None,
    ) -> None:
        if not model_name:
            raise ConfigurationError(f"OpenAIModel({model_name!r}): give the server's name of the model")
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"OpenAIModel({model_name!r}, base_url={base_url!r}): a URL begins with http:// or https://"
            )
        self.model_name = model_name
        self.base_url = base_url
        self.api_key_env = api_key_env
        self.headers = dict(headers or {})
        self.limits = limits or ModelLimits()
        self._price = price
        self._client: ChatClient | None = None
        self._openai_itself = True

    @property
    def name(self) -> str:
        return f"openai:{self.model_name}"

    @property
    def server(self) -> str:
        return f"{self.name} at {self._url()}"

    @property
    def price(self) -> Price | None:
        return self._price or known_price(self.model_name, self.base_url)

    async def connect(self) -> None:
        if self._client is not None:
            return
        base_url = self._url()
        self._openai_itself = base_url.startswith(_OPENAI_HOST)
        api_key = os.environ.get(self.api_key_env)
        if not api_key:
            if self._openai_itself:
                return  # told by each request, so that a fallback can take over
            api_key = _NO_KEY
        # In a thread: the imports take a second, in which the loop has leases to renew.
        client = await asyncio.to_thread(self._open, api_key, base_url)
        self._client = self._client or client
        if self._client is not client:  # two requests came before `connect`
            await client.close()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def request(self, request: ModelRequest) -> ModelResponse:
        if self._client is None:
            await self.connect()
        if self._client is None:
            raise ModelError(
                f"model {self.name!r}: the environment variable {self.api_key_env!r} with the API key is not set in "
                "this worker; set it there, or name another one with api_key_env=...",
                status=401,
            )
        body = request_body(self.model_name, request, openai_itself=self._openai_itself)
        answer = await self._client.post(body, seconds=request.settings.timeout, name=self.name)
        return read_response(answer, request, name=self.name, price=self.price)

    def _url(self) -> str:
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI_HOST + "v1"

    def _open(self, api_key: str, base_url: str) -> ChatClient:
        from beam_agents.models.openai_client import ChatClient

        known_price(self.model_name, self.base_url)
        return ChatClient(api_key=api_key, base_url=base_url, headers=self.headers)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def __repr__(self) -> str:
        return f"OpenAIModel({self.model_name!r}, base_url={self.base_url!r})"
