"""`ReadLines`: what it emits while files grow, what it keeps, and what it does with files that were replaced."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam import coders
from apache_beam.io.filesystem import BeamIOError
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PaneInfoTiming

from beam_agents import FailureReason
from beam_agents.errors import ConfigurationError, StoredFormUnknown
from beam_agents.io import Line, ReadLines, files, tail
from beam_agents.io.files import BUSY_SECONDS, IDLE_SECONDS, ReadDoFn, shard_of
from beam_agents.io.tail import Place
from runners.prism import prism_options, prism_path
from tests.streaming_job import Sink, running

needs_prism = pytest.mark.skipif(prism_path() is None, reason="Prism is not built: run 'python -m runners.prism'")


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def prism_pipeline() -> beam.Pipeline:
    return beam.Pipeline(options=PipelineOptions(prism_options()))


# ---- on a runner ----


@needs_prism
def test_lines_appended_lines_and_new_files_are_read_once_and_in_order(tmp_path):
    append(tmp_path / "b.jsonl", b"b1\nb2\nb")
    append(tmp_path / "a.jsonl", b"a1\n\xff\na2\n")
    append(tmp_path / ".hidden", b"not this\n")
    pipeline, lines, bad = prism_pipeline(), Sink(), Sink()
    read = pipeline | ReadLines(tmp_path)
    read.lines | "Lines" >> lines
    read.bad | "BadLines" >> bad

    with running(pipeline) as job:
        assert [seen.value for seen in lines.take(4, job)] == [
            Line(id="a.jsonl:0", text="a1"),
            Line(id="a.jsonl:5", text="a2"),
            Line(id="b.jsonl:0", text="b1"),
            Line(id="b.jsonl:3", text="b2"),
        ]
        append(tmp_path / "b.jsonl", b"3\r\n")
        assert lines.take(1, job)[0].value == Line(id="b.jsonl:6", text="b3")
        append(tmp_path / "0.jsonl", b"\n")
        assert lines.take(1, job)[0].value == Line(id="0.jsonl:0", text="")
        (tmp_path / "a.jsonl").write_bytes(b"another file with other lines\n")
        append(tmp_path / "c.jsonl", b"the end\n")
        assert lines.take(1, job)[0].value == Line(id="c.jsonl:0", text="the end")
        failures = [seen.value for seen in bad.take(2, job)]

    assert lines.values() == []
    assert bad.values() == []
    assert [(key, failure.reason, failure.raw) for key, failure in failures] == [
        (None, FailureReason.INVALID_EVENT, "\\xff"),
        (None, FailureReason.INVALID_EVENT, None),
    ]
    assert "line a.jsonl:3 is not UTF-8" in failures[0][1].message
    assert "a.jsonl is not the file any more that was read up to byte 8" in failures[1][1].message


@needs_prism
def test_lines_of_several_shards_are_on_time_in_the_windows_of_their_reading(tmp_path):
    names = [f"{number}.txt" for number in range(6)]
    assert {shard_of(name, 3) for name in names} == {0, 1, 2}
    for name in names:
        append(tmp_path / name, b"first\n")
    pipeline, windows = prism_pipeline(), Sink()
    read = pipeline | ReadLines(f"{tmp_path}/*.txt", shards=3)
    keyed = read.lines | beam.Map(lambda line: ("all", line.id)).with_output_types(tuple[str, str])
    keyed | beam.WindowInto(FixedWindows(1)) | beam.GroupByKey() | windows

    with running(pipeline) as job:
        seen = windows.take(1, job)
        for name in names:
            append(tmp_path / name, b"second\n")
        while sum(len(window.value[1]) for window in seen) < 12:
            seen += windows.take(1, job)

    ids = [id for window in seen for id in window.value[1]]
    assert sorted(ids) == sorted(f"{name}:{offset}" for name in names for offset in (0, 6))
    assert {window.timing for window in seen} == {PaneInfoTiming.ON_TIME}


def test_an_element_is_coded_without_pickle():
    line = Line(id="a.jsonl:0", text="ä")
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=PrismRunner"]))
    read = pipeline | ReadLines("/nowhere/")
    assert not read.lines.is_bounded
    encoded = coders.registry.get_coder(read.lines.element_type).encode(line)
    assert encoded == b'\x01{"id":"a.jsonl:0","text":"\xc3\xa4"}'


# ---- a shard, look by look ----


class Clock:
    """Stands still unless it is moved."""

    now = 1_000_000.0

    def time(self) -> float:
        return self.now


@dataclass
class Shard:
    """A shard that a test has look; itself the state cell and the timer."""

    dofn: ReadDoFn
    clock: Clock
    kept: bytes | None = None
    writes: int = 0
    pauses: list[float] = field(default_factory=list)

    def read(self) -> bytes | None:
        return self.kept

    def write(self, value: bytes) -> None:
        self.kept = value
        self.writes += 1

    def set(self, due: float) -> None:
        self.pauses.append(round(due - self.clock.now, 3))

    def look(self, shard: int = 0) -> list[Any]:
        """Ids and texts of lines, and messages of failures."""
        return [
            read.value.value[1].message if isinstance(read, TaggedOutput) else (read.value.id, read.value.text)
            for read in self.dofn.look(shard, Timestamp(0), self, self)
        ]


Shards = Callable[..., Shard]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(files, "time", clock)
    return clock


@pytest.fixture
def shard_on(clock: Clock) -> Shards:
    def make(
        path: Path | str, *, shards: int = 1, lines: int = 100, size: int = 10_000, kept: bytes | None = None
    ) -> Shard:
        return Shard(ReadDoFn(Place.of(path), shards, lines, size, 60), clock, kept)

    return make


def test_a_shard_goes_on_where_its_state_says(tmp_path, shard_on):
    append(tmp_path / "a.txt", b"1\n2\n")
    first = shard_on(tmp_path)
    assert first.look() == [("a.txt:0", "1"), ("a.txt:2", "2")]
    checkpoint = first.kept
    append(tmp_path / "a.txt", b"3\n")
    assert first.look() == [("a.txt:4", "3")]

    restored = shard_on(tmp_path, kept=checkpoint)
    assert restored.look() == [("a.txt:4", "3")]
    assert restored.kept == first.kept
    assert restored.look() == []


def test_positions_that_were_kept_by_this_version_are_read_for_ever(tmp_path, shard_on):
    append(tmp_path / "a.txt", b"1\n2\n3\n")
    append(tmp_path / "b.txt", b"1\n")
    kept = b'{"schema_version":1,"files":{"a.txt":[2,"4355a46b19d348dc",false,null],"b.txt":[0,"",true,null]}}'
    assert shard_on(tmp_path, kept=kept).look() == [("a.txt:2", "2"), ("a.txt:4", "3")]


def test_positions_of_another_version_are_refused(tmp_path, shard_on):
    with pytest.raises(StoredFormUnknown, match="a stored Positions"):
        shard_on(tmp_path, kept=b'{"schema_version":2,"files":{}}').look()


def test_state_is_written_only_when_something_was_read(tmp_path, shard_on):
    append(tmp_path / "a.txt", b"unfinished")
    shard = shard_on(tmp_path)
    assert shard.look() == []
    assert shard.writes == 0
    append(tmp_path / "a.txt", b"\n")
    assert shard.look() == [("a.txt:0", "unfinished")]
    assert shard.writes == 1


@pytest.mark.parametrize("limits", [{"lines": 2}, {"size": 4}])
def test_a_look_reads_no_more_than_its_limits_and_the_first_files_first(tmp_path, shard_on, limits):
    append(tmp_path / "b.txt", b"1\n2\n3\n")
    append(tmp_path / "a.txt", b"1\n2\n3\n")
    shard = shard_on(tmp_path, **limits)
    looks = [shard.look() for _ in range(4)]
    assert [[id for id, _ in look] for look in looks] == [
        ["a.txt:0", "a.txt:2"],
        ["a.txt:4", "b.txt:0"],
        ["b.txt:2", "b.txt:4"],
        [],
    ]
    assert shard.pauses[:2] == [0, 0]


def test_the_pause_grows_while_nothing_comes(tmp_path, shard_on):
    append(tmp_path / "a.txt", b"1\n")
    shard = shard_on(tmp_path)
    for _ in range(6):
        shard.look()
    append(tmp_path / "a.txt", b"2\n")
    shard.look()
    assert shard.pauses == [BUSY_SECONDS, 0.1, 0.2, 0.4, IDLE_SECONDS, IDLE_SECONDS, BUSY_SECONDS]


def test_each_file_belongs_to_one_shard(tmp_path, shard_on):
    names = [f"{number}.txt" for number in range(20)]
    for name in names:
        append(tmp_path / name, b"1\n")
    read = [shard_on(tmp_path, shards=4).look(shard) for shard in range(4)]
    assert sorted(id for ids in read for id, _ in ids) == sorted(f"{name}:0" for name in names)
    assert shard_of("payments-00000.jsonl", 8) == 3  # for ever: positions are kept by shard


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"1\n", id="shrank"),
        pytest.param(b"1\n3\n4\n", id="replaced by a longer one"),
        pytest.param(b"", id="emptied"),
    ],
)
def test_a_file_that_was_replaced_is_named_once_and_left_alone(tmp_path, shard_on, content):
    append(tmp_path / "a.txt", b"1\n2\n")
    shard = shard_on(tmp_path)
    shard.look()
    (tmp_path / "a.txt").write_bytes(content)
    [message] = shard.look()
    assert "a.txt is not the file any more that was read up to byte 4" in message
    append(tmp_path / "a.txt", b"5\n6\n7\n")
    assert shard.look() == []
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert shard.look()[-1] == (f"b.txt:{len(content) + 4}", "7")


def test_a_file_that_is_gone_for_long_is_forgotten(tmp_path, shard_on, clock):
    path = tmp_path / "a.txt"
    append(path, b"1\n")
    shard = shard_on(tmp_path)
    shard.look()
    path.rename(tmp_path / ".away")
    shard.look()
    clock.now += 59
    shard.look()
    (tmp_path / ".away").rename(path)
    append(path, b"2\n")
    assert shard.look() == [("a.txt:2", "2")]

    path.rename(tmp_path / ".away")
    shard.look()
    clock.now += 60
    shard.look()
    assert shard.kept == b'{"schema_version":1,"files":{}}'
    (tmp_path / ".away").rename(path)
    assert shard.look() == [("a.txt:0", "1"), ("a.txt:2", "2")]


def test_a_place_that_cannot_be_listed_forgets_nothing(tmp_path, shard_on, monkeypatch, caplog):
    append(tmp_path / "a.txt", b"1\n")
    shard = shard_on(tmp_path)
    shard.look()
    kept = shard.kept

    def fail(self: Place) -> None:
        raise BeamIOError("the network is down")

    with monkeypatch.context() as patched:
        patched.setattr(Place, "files", fail)
        assert [shard.look(), shard.look()] == [[], []]
    assert shard.kept == kept
    assert [record.message for record in caplog.records] == [
        f"ReadLines tries again: {tmp_path}/*: the network is down with exceptions None"
    ]


def test_a_file_that_cannot_be_read_now_holds_up_no_other(tmp_path, shard_on, monkeypatch, caplog):
    append(tmp_path / "a.txt", b"1\n")
    append(tmp_path / "b.txt", b"2\n")
    shard = shard_on(tmp_path)
    read = tail.FileSystems.open

    def deny(path: str, **options: Any) -> Any:
        if path.endswith("a.txt"):
            raise PermissionError("not you")
        return read(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(tail.FileSystems, "open", deny)
        assert [shard.look(), shard.look()] == [[("b.txt:0", "2")], []]
    assert shard.look() == [("a.txt:0", "1")]
    assert [record.message for record in caplog.records] == [f"ReadLines tries again: {tmp_path}/a.txt: not you"]


def test_a_line_is_read_whole_whatever_the_limits(tmp_path, shard_on):
    append(tmp_path / "a.txt", b"x" * 5_000 + b"\nshort\n")
    shard = shard_on(tmp_path, size=10)
    assert shard.look() == [("a.txt:0", "x" * 5_000)]
    assert shard.look() == [("a.txt:5001", "short")]


def test_what_cannot_be_lines_is_refused(tmp_path, shard_on, monkeypatch):
    monkeypatch.setattr(tail, "LONGEST_LINE", 1_000)
    append(tmp_path / "a.txt", b"x" * 1_000)
    append(tmp_path / "b.gz", gzip.compress(b"1\n"))
    append(tmp_path / "c.txt", b"1\n")
    shard = shard_on(tmp_path, size=10)
    messages, lines = shard.look()[:-1], shard.look()
    assert [message.split(":")[0] for message in messages] == [
        "a.txt has a line of more than 1000 bytes at 0",
        "b.gz is compressed",
    ]
    assert lines == []


# ---- construction ----


def test_names_are_relative_to_what_comes_before_the_pattern(tmp_path, monkeypatch):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    append(tmp_path / "in" / "a.txt", b"")
    append(tmp_path / "in" / "deep" / "b.txt", b"")
    monkeypatch.chdir(tmp_path)
    given = ("in", "in/", Path("in"), "in/*.txt", "in/**", "in/*/b.txt", "in/a.txt")
    assert [list(Place.of(path).files()) for path in given] == [
        ["a.txt"],
        ["a.txt"],
        ["a.txt"],
        ["a.txt"],
        ["a.txt", "deep/b.txt"],
        ["deep/b.txt"],
        ["a.txt"],
    ]


@pytest.mark.parametrize(
    ("path", "arguments", "named"),
    [
        ("/tmp/", {"shards": 0}, "shards=0"),
        ("/tmp/", {"max_lines": 0}, "max_lines=0"),
        ("/tmp/", {"max_bytes": 0}, "max_bytes=0"),
        ("/tmp/", {"forget_after": timedelta(seconds=-1)}, "forget_after="),
        ("", {}, "name a folder"),
        ("/nowhere/at-all", {}, "/nowhere/at-all.*no such file or folder"),
        ("unheard://of/", {}, "unheard://of/"),
    ],
)
def test_arguments_that_cannot_work_are_refused(path, arguments, named):
    with pytest.raises(ConfigurationError, match=named):
        ReadLines(path, **arguments)


@pytest.mark.parametrize("runner", ["DirectRunner", "FnApiRunner", "BundleBasedDirectRunner"])
def test_a_runner_without_unbounded_sources_is_refused(tmp_path, runner):
    pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={runner}"]))
    with pytest.raises(ConfigurationError, match="never ends"):
        pipeline | ReadLines(tmp_path)
