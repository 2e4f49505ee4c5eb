"""The documentation holds: its Python runs, its commands exist, its links lead somewhere, its lists are complete."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

import beam_agents
from beam_agents import Agent, Budget, FailureReason, RunAgent, RunContext, WorkerStatus, cli, workflow
from beam_agents.transforms.run_agent import AgentOutputs

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
PROGRAM = re.compile(r"# (\w+\.py)\n")
PRINTED = re.compile(r"^# -> (.*)$", re.MULTILINE)
PLAIN_COMMANDS = {"git", "cd", "pip"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    """Of its first line, from 1."""


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(match[1], match[2], text[: match.start(2)].count("\n") + 1) for match in BLOCK.finditer(text)]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to be in, where modules can be imported from; no key, and no network but loopback."""
    resolve = socket.getaddrinfo

    def loopback_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        assert host in ("localhost", "127.0.0.1", "::1"), f"the documentation's code asked for {host!r}"
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", loopback_only)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pages
def test_the_python_of_a_page_runs(
    page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of a page share a namespace; one that begins with `# name.py` is a program of its own."""
    module = ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    on_page = blocks(page)
    for block, after in zip(on_page, [*on_page[1:], None], strict=True):
        if block.language != "python":
            continue
        program = PROGRAM.match(block.text)
        if program:
            printed = run_program(workplace / program[1], block.text)
            if after is not None and after.language == "text":
                assert sorted(printed.splitlines()) == sorted(after.text.splitlines())
            continue
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
        capsys.readouterr()
        exec(code, module.__dict__)
        assert sorted(capsys.readouterr().out.splitlines()) == sorted(PRINTED.findall(block.text))


def run_program(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BEAM_AGENTS_NETWORK_MODELS": "forbid"}
    done = subprocess.run(
        [sys.executable, path.name], cwd=path.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pages
def test_the_commands_of_a_page_exist(page: Path) -> None:
    programs = [match[1] for block in blocks(page) if (match := PROGRAM.match(block.text))]
    for block in blocks(page):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                check_command(shlex.split(line, comments=True), programs)


@functools.cache
def make_targets() -> frozenset[str]:
    """What can be made, as make itself sees it: names may be put together."""
    said = subprocess.run(["make", "-pRrq"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return frozenset(re.findall(r"^([a-z-]+):", said, re.MULTILINE))


def check_command(words: list[str], programs: list[str]) -> None:
    while words and re.match(r"[A-Z_]+=", words[0]):
        name = words.pop(0).split("=")[0]
        sources = [*(ROOT / "beam_agents").rglob("*.py"), ROOT / "Makefile"]
        assert any(name in source.read_text(encoding="utf-8") for source in sources), f"nothing reads {name!r}"
    if not words or words[0] in PLAIN_COMMANDS:
        return
    words[0] = words[0].removeprefix(".venv/bin/")
    if words[0] == "make":
        known = make_targets()
        for word in words[1:]:
            name, equals, value = word.partition("=")
            assert name in (("PYTHON", "VENV", "ARGS") if equals else known), f"make {word}"
            if name == "ARGS":
                check_options("examples.fraud" if "demo" in words else "pytest", shlex.split(value))
    elif words[0] == "beam-agents":
        with pytest.raises(SystemExit) as left:
            cli.main([*words[1:3], "--help"])
        assert left.value.code == 0
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None, f"there is no module {words[2]!r}"
        check_options(words[2], words[3:])
    else:
        assert words[0] == "python", f"unknown command {words!r}"
        assert words[1] in programs or (ROOT / words[1]).is_file(), f"there is no file {words[1]!r}"


def check_options(module: str, words: list[str]) -> None:
    if not module.startswith("examples."):
        return
    program = ROOT / module.replace(".", "/")
    sources = [ROOT / "examples/common.py", program / "main.py" if program.is_dir() else program.with_suffix(".py")]
    known = set(re.findall(r'"(--[a-z-]+)"', "".join(source.read_text(encoding="utf-8") for source in sources)))
    known |= {f"--{name}" for name in PipelineOptions([]).get_all_options()}
    for word in words:
        assert not word.startswith("--") or word.split("=")[0] in known, f"{module} does not know {word!r}"


@pages
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target


@pages
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(r"[\w/.-]*\w/[\w.-]+\.(?:py|md|sh)\b", page.read_text(encoding="utf-8")):
        assert any((folder / name).exists() for folder in (ROOT, page.parent, ROOT / "beam_agents")), name


def named(page: str) -> set[str]:
    """The words that a page sets as code."""
    text = BLOCK.sub("", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"\w+", code)}


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "args", "kwargs"}


def is_public_method(name: str, value: Any) -> bool:
    return callable(value) and not name.startswith("_") and name != "for_call"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("agents.md", parameters(Agent.__init__)),
        ("agents.md", {field.name for field in fields(Budget)}),
        ("agents.md", parameters(beam_agents.Tool.__init__) - {"function"}),
        ("workflows.md", parameters(workflow) - parameters(Agent.__init__)),
        ("workflows.md", {name for name, value in vars(RunContext).items() if is_public_method(name, value)}),
        ("running.md", parameters(RunAgent.__init__)),
        ("running.md", {field.name for field in fields(AgentOutputs)}),
        ("running.md", {field.name for field in fields(WorkerStatus)}),
        ("failures.md", {reason.value for reason in FailureReason}),
    ],
)
def test_a_page_is_complete(page: str, names: set[str]) -> None:
    assert names - named(page) == set()
