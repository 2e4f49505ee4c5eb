"""A job for a test: writes down each line that `ReadLines` emits, and each window of a second that has ended.

python -m tests.flink.lines_job --read FOLDER --out FOLDER [Beam's options]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import FixedWindows

from beam_agents.io import Line, ReadLines


class _Append(beam.DoFn):
    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, text: str) -> None:
        with Path(self._path).open("a") as file:
            file.write(f"{text}\n")


def _told(line: Line) -> str:
    return f"{line.id} {line.text}"


def _window(pair: tuple[int, Iterable[str]], pane: Any = beam.DoFn.PaneInfoParam) -> list[str]:
    return [f"{pane.timing} {id}" for id in pair[1]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--read", required=True)
    parser.add_argument("--out", required=True)
    given, others = parser.parse_known_args()
    options = PipelineOptions(
        others,
        streaming=True,
        max_bundle_time_mills=20,
        finish_bundle_before_checkpointing=True,
        save_main_session=False,
    )
    with beam.Pipeline(options=options) as pipeline:
        lines, _ = pipeline | ReadLines(given.read, shards=4, max_lines=50)
        lines | "Tell" >> beam.Map(_told) | "Lines" >> beam.ParDo(_Append(f"{given.out}/lines.txt"))
        keyed = lines | beam.Map(lambda line: (0, line.id)).with_output_types(tuple[int, str])
        windows = keyed | beam.WindowInto(FixedWindows(1)) | beam.GroupByKey()
        windows | beam.FlatMap(_window) | "Windows" >> beam.ParDo(_Append(f"{given.out}/windows.txt"))


if __name__ == "__main__":
    main()
