"""The model used when none is given: rules on what the request says, no network and no training.

It compares words, so it cannot know that "my wallet is gone" is about a lost card. A language model in its place
(`--model`) gets the same requests.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import lru_cache
from itertools import pairwise

from beam_agents.messages import AssistantMessage, ModelRequest, SystemMessage, UserMessage
from beam_agents.models import FunctionModel

NAME = "offline:support-rules"

_LABEL_LINE = re.compile(r"^- ([^:\s]+): (.+)$", re.MULTILINE)
_ARTICLE = re.compile(r"^Help article: (.+)$", re.MULTILINE)
_WORD = re.compile(r"[a-z0-9]+")
_ENDINGS = ("ations", "ation", "ings", "ing", "ies", "ied", "ed", "es", "s", "e", "y")
_STOP = frozenset(
    _WORD.findall(
        "a an and are as at be been but by can could did do does for from had has have hello help hi i if in is it its "
        "just know let like m me my need of on or please re s so some t tell that the their them there they this to ve "
        "want was were what when which will with would you your"
    )
)


def answer(request: ModelRequest) -> AssistantMessage:
    """A label where the request asks for a form, else the help article as the answer."""
    instructions = "\n".join(message.text for message in request.messages if isinstance(message, SystemMessage))
    said = [message.text for message in request.messages if isinstance(message, UserMessage)][-1]
    if request.output is not None:
        return AssistantMessage(text=json.dumps({"label": Labels.of(instructions).nearest(said)}))
    articles = _ARTICLE.findall(f"{instructions}\n{said}")
    return AssistantMessage(text=f"[{NAME}] {articles[-1] if articles else 'Please tell us more.'}")


MODEL = FunctionModel(answer, name=NAME)


class Labels:
    """Labels with their descriptions, as vectors of words and word pairs, each weighed by how few labels have it."""

    def __init__(self, descriptions: dict[str, str]) -> None:
        counts = {
            label: features(f"{label.replace('_', ' ')}. {description}") for label, description in descriptions.items()
        }
        labels_with = Counter(feature for found in counts.values() for feature in found)
        self.rarity = {feature: math.log((len(counts) + 1) / number) for feature, number in labels_with.items()}
        self.vectors = {label: self._unit(found) for label, found in counts.items()}

    @staticmethod
    @lru_cache(maxsize=8)  # every message brings the same instructions
    def of(instructions: str) -> Labels:
        """The labels that instructions explain in lines of the form `- label: description`."""
        return Labels(dict(_LABEL_LINE.findall(instructions)))

    def nearest(self, text: str) -> str:
        """The label whose vector has the smallest angle to the text's; of equal ones the first by name."""
        vector = self._unit(features(text))
        return max(sorted(self.vectors), key=lambda label: _dot(vector, self.vectors[label]))

    def _unit(self, found: Counter[str]) -> dict[str, float]:
        weights = {
            feature: (1 + math.log(number)) * self.rarity[feature]
            for feature, number in found.items()
            if feature in self.rarity
        }
        length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        return {feature: weight / length for feature, weight in weights.items()}


def features(text: str) -> Counter[str]:
    """The stems of the words that mean something, and the pairs of neighbours among them."""
    plain = text.lower().replace("’", "'").replace("n't", " not").replace("top-up", "topup").replace("top up", "topup")
    words = [_stem(word) for word in _WORD.findall(plain.replace("topping up", "topup")) if word not in _STOP]
    return Counter([*words, *map(" ".join, pairwise(words))])


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _dot(one: dict[str, float], other: dict[str, float]) -> float:
    return sum(weight * other[feature] for feature, weight in one.items() if feature in other)
