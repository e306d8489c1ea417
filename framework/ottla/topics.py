"""Topics that an application declares (Spring: NewTopic beans and KafkaAdmin)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ottla.client.admin import AdminClient, NewTopic, SomeFailed
from ottla.errors import KafkaError, TopicAlreadyExists


def declare_topics(admin: AdminClient, topics: Sequence[NewTopic]) -> None:
    """Create the topics that are missing, and give those that have fewer partitions than declared what they lack.

    Raises:
        KafkaError, SomeFailed: a topic cannot be created, or not be grown.
    """
    try:
        admin.create_topics(topics)
        return
    except TopicAlreadyExists:
        existing = [topics[0].name]
    except SomeFailed as failure:
        existing = _existing(failure)
    _grow(admin, [topic for topic in topics if topic.name in existing])


def _existing(failure: SomeFailed[str, object]) -> list[str]:
    errors: Mapping[str, KafkaError] = failure.errors
    if not all(isinstance(error, TopicAlreadyExists) for error in errors.values()):
        raise failure
    return list(errors)


def _grow(admin: AdminClient, topics: Sequence[NewTopic]) -> None:
    described = admin.describe_topics([topic.name for topic in topics])
    wanted = {
        topic.name: topic.partitions
        for topic in topics
        if topic.partitions is not None and len(described[topic.name].partitions) < topic.partitions
    }
    if wanted:
        admin.create_partitions(wanted)
