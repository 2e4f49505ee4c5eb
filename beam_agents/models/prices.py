"""What known models cost, from the optional package genai-prices."""

from __future__ import annotations

from functools import lru_cache

from beam_agents.models.base import Price

_SAMPLE = 1_000  # tokens; small enough to stay in the first step of a price that rises with the prompt


@lru_cache(maxsize=256)
def known_price(model_name: str, base_url: str | None) -> Price | None:
    """The list price of a model; `None` if it is not known or the package is not installed (extra `prices`).

    Discounts for cached input are left out, so the price is an upper bound.

    Args:
        model_name: The server's name of the model.
        base_url: Where the server is; `None` for OpenAI.
    """
    try:
        from genai_prices import Usage, calc_price
    except ImportError:
        return None
    usage = Usage(input_tokens=_SAMPLE, output_tokens=_SAMPLE)
    try:
        if base_url is None:
            found = calc_price(usage, model_name, provider_id="openai")
        else:
            found = calc_price(usage, model_name, provider_api_url=base_url)
    except LookupError:
        return None
    per_million = 1_000_000 / _SAMPLE
    return Price(input=float(found.input_price) * per_million, output=float(found.output_price) * per_million)
