"""Where events come from, with ids that are the same after any replay, and where results go."""

from beam_agents.events import Identified
from beam_agents.io.changes import Change
from beam_agents.io.debezium import Debezium
from beam_agents.io.dynamodb import DynamoDbStream
from beam_agents.io.files import Line, LinesRead, ReadLines
from beam_agents.io.ingress.read import IngressRead, ReadIngress
from beam_agents.io.kafka_connection import Kafka, Sasl, Tls
from beam_agents.io.kafka_read import KafkaRead, ReadKafka
from beam_agents.io.kafka_record import Header, KafkaRecord
from beam_agents.io.kafka_write import WriteKafka
from beam_agents.io.postgres.place import ChangesLost
from beam_agents.io.postgres.read import ChangesRead, ReadPostgresChanges
from beam_agents.io.sinks.jsonl import WriteJsonLines
from beam_agents.io.sinks.outgoing import Undelivered
from beam_agents.io.sinks.table import WriteTable
from beam_agents.io.sinks.webhook import Webhook

__all__ = [
    "Change",
    "ChangesLost",
    "ChangesRead",
    "Debezium",
    "DynamoDbStream",
    "Header",
    "Identified",
    "IngressRead",
    "Kafka",
    "KafkaRead",
    "KafkaRecord",
    "Line",
    "LinesRead",
    "ReadIngress",
    "ReadKafka",
    "ReadLines",
    "ReadPostgresChanges",
    "Sasl",
    "Tls",
    "Undelivered",
    "Webhook",
    "WriteJsonLines",
    "WriteKafka",
    "WriteTable",
]
