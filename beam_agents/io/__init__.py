"""Where events come from, with ids that are the same after any replay, and where results go."""

from beam_agents.events import Identified
from beam_agents.io.files import Line, LinesRead, ReadLines
from beam_agents.io.kafka_connection import Kafka, Sasl, Tls
from beam_agents.io.kafka_read import KafkaRead, ReadKafka
from beam_agents.io.kafka_record import Header, KafkaRecord
from beam_agents.io.kafka_write import WriteKafka
from beam_agents.io.sinks.jsonl import WriteJsonLines
from beam_agents.io.sinks.outgoing import Undelivered
from beam_agents.io.sinks.table import WriteTable
from beam_agents.io.sinks.webhook import Webhook

__all__ = [
    "Header",
    "Identified",
    "Kafka",
    "KafkaRead",
    "KafkaRecord",
    "Line",
    "LinesRead",
    "ReadKafka",
    "ReadLines",
    "Sasl",
    "Tls",
    "Undelivered",
    "Webhook",
    "WriteJsonLines",
    "WriteKafka",
    "WriteTable",
]
