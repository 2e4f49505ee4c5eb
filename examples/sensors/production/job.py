"""The pipeline: changes of the table of readings, an agent for each kind of device, alerts to a webhook.

    python -m examples.sensors.production.job --plant=postgresql://sensors@HOST/plant \\
        --ledger=postgresql://sensors@HOST/ledger --hook=https://HOST [Beam's options]

The workers need the passwords in PGPASSWORD, the plant's URL in SENSORS_PLANT_URL, and a real model's key.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_agents import RunAgent
from beam_agents.codec import digest
from beam_agents.io import Identified, ReadPostgresChanges, Undelivered, Webhook, WriteTable
from examples.common import chosen_model
from examples.sensors.production.agents import device_agent
from examples.sensors.production.plant import PLANT, READINGS, SLOT
from examples.sensors.production.readings import KINDS, Assessed, Kind, Reading, Readings, Result, alert, assessed
from examples.sensors.production.rolling import Rolling, RollingLevels
from examples.sensors.production.rules import MODELS


def sensors_job(pipeline: beam.Pipeline, arguments: argparse.Namespace) -> None:
    """Builds the pipeline."""
    changes, bad = pipeline | ReadPostgresChanges(arguments.plant, {READINGS: Reading}, slot=SLOT, key="device")
    _ = (
        changes
        | "Rolling" >> RollingLevels()
        | "WriteRolling" >> WriteTable(PLANT, "rolling", Rolling, id="ending", create=False, key_column="device")
    )
    outputs = [
        changes
        | f"Only {kind}" >> beam.Filter(_is_of, kind).with_output_types(changes.element_type)
        | RunAgent(device_agent(kind, chosen_model(arguments, offline=MODELS[kind])), ledger=arguments.ledger)
        for kind in KINDS
    ]
    results = [out.results for out in outputs] | "Results" >> beam.Flatten()
    failures = [bad, *(out.failures for out in outputs)] | "Failures" >> beam.Flatten()
    unwritten = results | "WriteAssessments" >> WriteTable(
        PLANT, "assessments", Assessed, row=assessed, create=False, key_column="device", id_column="run_id"
    )
    alerts = results | "Alerts" >> beam.Filter(_is_alert)
    unheard = alerts | "PostAlerts" >> Webhook(f"{arguments.hook}/alerts", body=alert)
    unheard_failures = failures | "PostFailures" >> Webhook(f"{arguments.hook}/failures")
    _ = (
        [unwritten, unheard, unheard_failures]
        | "Undelivered" >> beam.Flatten()
        | "WriteUndelivered"
        >> WriteTable(PLANT, "undelivered", Undelivered, id=_delivery, create=False, id_column="delivery")
    )


def _is_of(element: tuple[str, Identified[Readings]], kind: Kind) -> bool:
    row = element[1].event.row
    return row is not None and row.kind == kind


def _is_alert(element: tuple[str, Result]) -> bool:
    return element[1].output.status == "alert"


def _delivery(value: Undelivered) -> str:
    return value.id or digest(value.value)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; submits the job and waits for its end."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--plant", metavar="URL", required=True, help="the plant's database, without a password")
    made.add_argument("--ledger", metavar="URL", required=True, help="where runs are recorded")
    made.add_argument("--hook", metavar="URL", required=True, help="alerts go to URL/alerts, failures to URL/failures")
    made.add_argument("--model", metavar="NAME", help="a real model in the offline ones' place, as openai:NAME")
    made.add_argument("--base-url", metavar="URL", help="the model's server, if it is not the provider's own")
    arguments, options = made.parse_known_args(argv)
    with beam.Pipeline(options=PipelineOptions(options, streaming=True)) as pipeline:
        sensors_job(pipeline, arguments)


if __name__ == "__main__":
    main()
