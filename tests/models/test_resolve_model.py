from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from beam_agents.errors import ConfigurationError
from beam_agents.models import FunctionModel, OpenAIModel, Price, resolve_model, say
from beam_agents.models.prices import known_price


def test_a_name_becomes_a_model() -> None:
    model = resolve_model("openai:org/name:7b", base_url="http://localhost:8000/v1")

    assert isinstance(model, OpenAIModel)
    assert (model.name, model.model_name, model.base_url) == (
        "openai:org/name:7b",
        "org/name:7b",
        "http://localhost:8000/v1",
    )


def test_a_model_stays_itself() -> None:
    model = FunctionModel(lambda request: say("Hi"))

    assert resolve_model(model) is model
    with pytest.raises(ConfigurationError, match="base_url="):
        resolve_model(model, base_url="http://localhost:8000/v1")


@pytest.mark.parametrize("name", ["gpt-5-mini", "openai:", "other:name", "", None])
def test_other_names_are_refused_with_the_forms_that_exist(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"'openai:NAME'.*FunctionModel"):
        resolve_model(name)


def test_the_list_price_is_known_with_the_optional_package() -> None:
    pytest.importorskip("genai_prices")

    price = OpenAIModel("gpt-4o-mini").price

    assert price is not None
    assert 0 < price.input < price.output < 100
    assert OpenAIModel("no-such-model-at-all").price is None
    assert OpenAIModel("gpt-4o-mini", base_url="http://localhost:8000/v1").price is None
    assert OpenAIModel("gpt-4o-mini", price=Price(input=0, output=0)).price == Price(input=0, output=0)


def test_without_the_package_no_price_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    known_price.cache_clear()

    assert OpenAIModel("gpt-4o-mini").price is None

    known_price.cache_clear()


def test_naming_a_model_does_not_import_the_client() -> None:
    code = (
        "import sys\n"
        "from beam_agents.models import resolve_model\n"
        "resolve_model('openai:m1')\n"
        "print('openai' in sys.modules, 'aiohttp' in sys.modules)\n"
    )

    printed = subprocess.check_output([sys.executable, "-c", code], cwd=Path(__file__).parents[2], text=True)

    assert printed.split() == ["False", "False"]
