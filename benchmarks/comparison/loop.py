"""The consumer loop of those systems that have none of their own, as a Kafka client's documentation writes it.

At least once: the reply is at the brokers before the message's offset is committed. With `commits="auto"` the client
commits by itself every five seconds, which is its default.
"""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka import Consumer, KafkaException, Producer

from benchmarks.comparison.task import Message, Place, Reply


def consume(place: Place, handle: Callable[[Message], str]) -> None:
    """Handles message after message for ever.

    Args:
        place: Where they come from and where replies go.
        handle: Runs the agent; the text of the reply.

    Raises:
        KafkaException: The brokers refuse something.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": place.servers,
            # A static member that comes back gets what it had, also if that was the topic of another trial.
            "group.id": f"support-{place.messages}",
            "group.instance.id": "support-1",  # whoever comes after a crash need not wait for the dead one's session
            "auto.offset.reset": "earliest",
            "enable.auto.commit": place.commits == "auto",
        }
    )
    producer = Producer({"bootstrap.servers": place.servers, "enable.idempotence": True})
    consumer.subscribe([place.messages])
    while True:
        record = consumer.poll(1.0)
        if record is None:
            continue
        if record.error():
            raise KafkaException(record.error())
        message = Message.model_validate_json(record.value())
        reply = Reply(reference=message.reference, text=handle(message))
        producer.produce(place.replies, key=message.customer, value=reply.model_dump_json())
        producer.flush()
        if place.commits == "each":
            consumer.commit(record, asynchronous=False)
