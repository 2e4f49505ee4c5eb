"""From a model's name to the model."""

from __future__ import annotations

from beam_agents.errors import ConfigurationError
from beam_agents.models.base import Model
from beam_agents.models.openai_chat import OpenAIModel

_OPENAI = "openai:"


def resolve_model(model: Model | str, base_url: str | None = None) -> Model:
    """The model that a name stands for.

    Args:
        model: `"openai:NAME"`, or a model, which is returned as it is.
        base_url: Where the named model's server is; OpenAI's own by default.

    Raises:
        ConfigurationError: The name has another form.
    """
    if isinstance(model, Model):
        if base_url is not None:
            raise ConfigurationError(
                f"base_url={base_url!r} goes with a model's name only; give it to {model!r} itself"
            )
        return model
    if isinstance(model, str) and model.startswith(_OPENAI) and model.removeprefix(_OPENAI).strip():
        return OpenAIModel(model.removeprefix(_OPENAI), base_url=base_url)
    raise ConfigurationError(
        f"model={model!r} is not known: give 'openai:NAME' for OpenAI or a server that speaks its chat protocol "
        "(with base_url=...), or a Model such as OpenAIModel(...), FallbackModel(...) or FunctionModel(...)"
    )
