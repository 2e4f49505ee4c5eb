"""The Python worker that `beam-agents-worker` starts: asks the TaskManager what to run and becomes a Beam worker."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
from apache_beam.portability import common_urns
from apache_beam.portability.api import (
    beam_artifact_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from apache_beam.runners.portability.artifact_service import resolve_artifacts
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format

from beam_agents.engine.worker import this_worker

_LOGGER = logging.getLogger(__name__)
_SECONDS = 60

_LINGER_SECONDS = 60.0
"""How long calls in flight may take to come back after the job was stopped; others are repeated or in doubt."""

_SECONDS_TO_END = 5.0


def main() -> int:
    """Run until the TaskManager is done with this worker; the exit code."""
    parser = argparse.ArgumentParser(
        prog="beam-agents-worker", description="A Beam worker, started by a Flink TaskManager."
    )
    parser.add_argument("--id", required=True, help="the worker's id")
    parser.add_argument("--provision_endpoint", required=True, help="where the TaskManager says what to run")
    parser.add_argument("--told", required=True, type=int, help=argparse.SUPPRESS)
    given, _ = parser.parse_known_args()

    # Beam sends the log to the TaskManager; this is for who reads the worker's own output.
    # Not what an import has set up.
    logging.basicConfig(force=True, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    threading.Thread(target=_obey, args=(given.told,), name="let-go", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda number, frame: threading.Thread(target=_let_go, name="let-go").start())
    provided = _provision_info(given.id, given.provision_endpoint)
    with tempfile.TemporaryDirectory(prefix="beam-worker-") as folder:
        _stage(provided, Path(folder, "staged"))
        os.environ.update(
            WORKER_ID=given.id,
            PIPELINE_OPTIONS=json_format.MessageToJson(provided.pipeline_options),
            SEMI_PERSISTENT_DIRECTORY=folder,
            RUNNER_CAPABILITIES=" ".join(provided.runner_capabilities),
            CONTROL_API_SERVICE_DESCRIPTOR=_text(provided.control_endpoint),
            LOGGING_API_SERVICE_DESCRIPTOR=_text(provided.logging_endpoint),
        )
        if provided.HasField("status_endpoint"):
            os.environ["STATUS_API_SERVICE_DESCRIPTOR"] = _text(provided.status_endpoint)
        try:
            sdk_worker_main.main([])
        finally:  # the TaskManager is done with this worker, or dead
            this_worker().let_go(_LINGER_SECONDS)
    return 0


def _obey(told: int) -> None:
    """Waits for the process that stands before this one."""
    if os.read(told, 1):
        _let_go()
    os._exit(1)  # it was killed


def _let_go() -> None:
    this_worker().let_go(_LINGER_SECONDS)
    time.sleep(_SECONDS_TO_END)  # in which the main thread closes what is open
    os._exit(0)


def _provision_info(worker: str, endpoint: str) -> beam_provision_api_pb2.ProvisionInfo:
    with grpc.insecure_channel(endpoint) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        return service.GetProvisionInfo(request, metadata=[("worker_id", worker)], timeout=_SECONDS).info


def _stage(provided: beam_provision_api_pb2.ProvisionInfo, folder: Path) -> None:
    """Fetch the files that came with the pipeline, for example a pickled main module. Packages are not installed."""
    folder.mkdir()
    with grpc.insecure_channel(provided.artifact_endpoint.url) as channel:
        retrieval = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(channel)
        for artifact in resolve_artifacts(list(provided.dependencies), retrieval, str(folder)):
            if artifact.role_urn != common_urns.artifact_roles.STAGING_TO.urn:
                continue
            name = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name
            path = beam_runner_api_pb2.ArtifactFilePayload.FromString(artifact.type_payload).path
            Path(path).replace(folder / Path(name).name)
            if name.endswith((".whl", ".tar.gz", ".zip", "requirements.txt")):
                _LOGGER.warning("%s is not installed by this worker: install it where the TaskManagers run", name)


def _text(endpoint: endpoints_pb2.ApiServiceDescriptor) -> str:
    return str(text_format.MessageToString(endpoint))


if __name__ == "__main__":
    sys.exit(main())
