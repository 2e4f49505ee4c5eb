"""Starts a Python worker on a Flink cluster without containers.

    beam-agents-worker --id=ID --provision_endpoint=HOST:PORT

is what a TaskManager runs for a pipeline with `--environment_type=PROCESS` and this command in its
`--environment_config`. It asks the TaskManager what to run and becomes a Beam worker.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
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

_LOGGER = logging.getLogger(__name__)
_SECONDS = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker until its TaskManager is done with it; the exit code."""
    parser = argparse.ArgumentParser(
        prog="beam-agents-worker", description="A Beam worker, started by a Flink TaskManager."
    )
    parser.add_argument("--id", required=True, help="the worker's id")
    parser.add_argument("--provision_endpoint", required=True, help="where the TaskManager says what to run")
    given, _ = parser.parse_known_args(arguments)

    # Beam sends the log to the TaskManager; this is for who reads the worker's own output.
    # Not what an import has set up.
    logging.basicConfig(force=True, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
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
        sdk_worker_main.main([])
    return 0


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
