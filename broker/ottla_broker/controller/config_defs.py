"""The configuration keys of topics and brokers: type, default, bounds, what they mean.

Topics have all keys of Kafka 4.3, so that tools and `CreateTopics` requests written for Kafka work. Those of tiered
storage and of throttled replication exist with their defaults and do nothing (`remote.storage.enable=true` is
refused, as Kafka refuses it without a storage plugin). A topic key's default comes from the broker: `synonyms`.

Broker keys are the ones that Ottla honours (`BrokerConfig` holds their values and defaults; a test keeps the two in
step). `dynamic` ones can be changed while the broker runs, for one broker or as the default of all: those that give
topics their defaults.
"""

from __future__ import annotations

from typing import Final

from ottla_broker.controller.config_types import (
    INT_MAX,
    LONG_MAX,
    ConfigDef,
    ConfigType,
    at_least,
    between,
    level,
    one_of,
    some_of,
    throttled_replicas,
)

_MINUTES: Final = 60_000
_HOURS: Final = 3_600_000
_WEEK_MS: Final = 7 * 24 * _HOURS

_BOOLEAN, _STRING, _INT = ConfigType.BOOLEAN, ConfigType.STRING, ConfigType.INT
_LONG, _DOUBLE, _LIST = ConfigType.LONG, ConfigType.DOUBLE, ConfigType.LIST

_COMPRESSION_TYPES: Final = ("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer")
_TIMESTAMP_TYPES: Final = ("CreateTime", "LogAppendTime")
_NO_EFFECT: Final = " Kept for tools; it has no effect here."


def _like(*names: str) -> tuple[tuple[str, int], ...]:
    return tuple((name, 1) for name in names)


TOPIC_CONFIGS: Final[dict[str, ConfigDef]] = {
    definition.name: definition
    for definition in (
        ConfigDef(
            "cleanup.policy",
            _LIST,
            ["delete"],
            "How old data leaves the log: 'delete' drops whole segments by age or size, 'compact' keeps the last "
            "value of each key, both "
            "together do both, an empty list keeps everything.",
            some_of("compact", "delete"),
            _like("log.cleanup.policy"),
        ),
        ConfigDef(
            "compression.gzip.level",
            _INT,
            -1,
            "The level used where the broker compresses with gzip (compression.type=gzip).",
            level(1, 9, -1),
        ),
        ConfigDef(
            "compression.lz4.level",
            _INT,
            9,
            "The level used where the broker compresses with lz4 (compression.type=lz4).",
            between(1, 17),
        ),
        ConfigDef(
            "compression.type",
            _STRING,
            "producer",
            "How batches are stored: 'producer' as they were sent, 'uncompressed', or compressed again with the "
            "named codec.",
            one_of(*_COMPRESSION_TYPES),
            _like("compression.type"),
        ),
        ConfigDef(
            "compression.zstd.level",
            _INT,
            3,
            "The level used where the broker compresses with zstd (compression.type=zstd).",
            between(-131072, 22),
        ),
        ConfigDef(
            "delete.retention.ms",
            _LONG,
            24 * _HOURS,
            "How long compaction keeps a tombstone, in milliseconds: the time a reader has to get from the start of"
            " the log to its end without "
            "missing a deletion.",
            at_least(0),
            _like("log.cleaner.delete.retention.ms"),
        ),
        ConfigDef(
            "file.delete.delay.ms",
            _LONG,
            60_000,
            "Milliseconds between a segment's leaving the log and the removal of its file.",
            at_least(0),
            _like("log.segment.delete.delay.ms"),
        ),
        ConfigDef(
            "flush.messages",
            _LONG,
            LONG_MAX,
            "Records after which the log is forced to disk. The default leaves that to the operating system; 1 "
            "makes every acknowledged "
            "batch survive a loss of power.",
            at_least(1),
            _like("log.flush.interval.messages"),
        ),
        ConfigDef(
            "flush.ms",
            _LONG,
            LONG_MAX,
            "Milliseconds after which unflushed records are forced to disk.",
            at_least(0),
            _like("log.flush.interval.ms", "log.flush.scheduler.interval.ms"),
        ),
        ConfigDef(
            "follower.replication.throttled.replicas",
            _LIST,
            [],
            "Replicas whose fetching is throttled." + _NO_EFFECT,
            throttled_replicas,
        ),
        ConfigDef(
            "index.interval.bytes",
            _INT,
            4096,
            "Bytes of log between two entries of the offset index: a smaller number seeks faster in a larger index.",
            at_least(0),
            _like("log.index.interval.bytes"),
        ),
        ConfigDef(
            "leader.replication.throttled.replicas",
            _LIST,
            [],
            "Replicas whose serving is throttled." + _NO_EFFECT,
            throttled_replicas,
        ),
        ConfigDef(
            "local.retention.bytes",
            _LONG,
            -2,
            "Size of the local part of a tiered log." + _NO_EFFECT,
            at_least(-2),
        ),
        ConfigDef(
            "local.retention.ms",
            _LONG,
            -2,
            "Age of the local part of a tiered log." + _NO_EFFECT,
            at_least(-2),
        ),
        ConfigDef(
            "max.compaction.lag.ms",
            _LONG,
            LONG_MAX,
            "Milliseconds after which a record must be open to compaction, even if its segment is not full.",
            at_least(1),
            _like("log.cleaner.max.compaction.lag.ms"),
        ),
        ConfigDef(
            "max.message.bytes",
            _INT,
            1_048_588,
            "The largest record batch accepted, in bytes, after compression.",
            at_least(0),
            _like("message.max.bytes"),
        ),
        ConfigDef(
            "message.timestamp.after.max.ms",
            _LONG,
            _HOURS,
            "How far a record's timestamp may lie in the broker's future, in milliseconds, with CreateTime.",
            at_least(0),
            _like("log.message.timestamp.after.max.ms"),
        ),
        ConfigDef(
            "message.timestamp.before.max.ms",
            _LONG,
            LONG_MAX,
            "How far a record's timestamp may lie in the broker's past, in milliseconds, with CreateTime.",
            at_least(0),
            _like("log.message.timestamp.before.max.ms"),
        ),
        ConfigDef(
            "message.timestamp.type",
            _STRING,
            "CreateTime",
            "Whether records carry the time of their producer (CreateTime) or of the broker's append (LogAppendTime).",
            one_of(*_TIMESTAMP_TYPES),
            _like("log.message.timestamp.type"),
        ),
        ConfigDef(
            "min.cleanable.dirty.ratio",
            _DOUBLE,
            0.5,
            "The share of a log that must be uncompacted before compaction is worth it.",
            between(0, 1),
            _like("log.cleaner.min.cleanable.ratio"),
        ),
        ConfigDef(
            "min.compaction.lag.ms",
            _LONG,
            0,
            "Milliseconds for which a record stays out of compaction's reach.",
            at_least(0),
            _like("log.cleaner.min.compaction.lag.ms"),
        ),
        ConfigDef(
            "min.insync.replicas",
            _INT,
            1,
            "In-sync replicas that an acks=all write needs; with fewer it is refused.",
            at_least(1),
            _like("min.insync.replicas"),
        ),
        ConfigDef(
            "preallocate",
            _BOOLEAN,
            False,
            "Whether a new segment's file gets its full size at once.",
            None,
            _like("log.preallocate"),
        ),
        ConfigDef(
            "remote.log.copy.disable",
            _BOOLEAN,
            False,
            "Stop copying to tiered storage." + _NO_EFFECT,
        ),
        ConfigDef(
            "remote.log.delete.on.disable",
            _BOOLEAN,
            False,
            "Delete tiered data when tiering is switched off." + _NO_EFFECT,
        ),
        ConfigDef(
            "remote.storage.enable",
            _BOOLEAN,
            False,
            "Tiered storage for this topic: not available, true is refused.",
        ),
        ConfigDef(
            "retention.bytes",
            _LONG,
            -1,
            "Size of a partition above which its oldest segments are deleted (cleanup.policy=delete); -1 is unlimited.",
            None,
            _like("log.retention.bytes"),
        ),
        ConfigDef(
            "retention.ms",
            _LONG,
            _WEEK_MS,
            "Age at which segments are deleted (cleanup.policy=delete), in milliseconds; -1 is never.",
            at_least(-1),
            (("log.retention.ms", 1), ("log.retention.minutes", _MINUTES), ("log.retention.hours", _HOURS)),
        ),
        ConfigDef(
            "segment.bytes",
            _INT,
            1_073_741_824,
            "Size at which a segment is closed and the next one begun. Retention and compaction work on closed "
            "segments.",
            at_least(1024 * 1024),
            _like("log.segment.bytes"),
        ),
        ConfigDef(
            "segment.index.bytes",
            _INT,
            10 * 1024 * 1024,
            "The largest size of a segment's index files.",
            at_least(4),
            _like("log.index.size.max.bytes"),
        ),
        ConfigDef(
            "segment.jitter.ms",
            _LONG,
            0,
            "The most that is taken off segment.ms at random, so that not all logs roll at once.",
            at_least(0),
            (("log.roll.jitter.ms", 1), ("log.roll.jitter.hours", _HOURS)),
        ),
        ConfigDef(
            "segment.ms",
            _LONG,
            _WEEK_MS,
            "Age at which a segment is closed although it is not full, in milliseconds.",
            at_least(1),
            (("log.roll.ms", 1), ("log.roll.hours", _HOURS)),
        ),
        ConfigDef(
            "unclean.leader.election.enable",
            _BOOLEAN,
            False,
            "Whether a replica that is not in sync may lead when no other is left, at the price of the records it "
            "lacks.",
            None,
            _like("unclean.leader.election.enable"),
        ),
        ConfigDef(
            "internal.segment.bytes",
            _INT,
            None,
            "The size of a segment without a lower bound: for tests. It goes before segment.bytes.",
            at_least(1),
            listed=False,
        ),
    )
}

LISTED_TOPIC_CONFIGS: Final = [TOPIC_CONFIGS[name] for name in sorted(TOPIC_CONFIGS) if TOPIC_CONFIGS[name].listed]

_SAME_MEANING: Final = (
    ("log.retention.ms", "log.retention.minutes", "log.retention.hours"),
    ("log.roll.ms", "log.roll.hours"),
    ("log.roll.jitter.ms", "log.roll.jitter.hours"),
)
_PRECEDENCE: Final = {name: group for group in _SAME_MEANING for name in group} | {
    "log.flush.interval.ms": ("log.flush.interval.ms", "log.flush.scheduler.interval.ms")
}
# What gives a topic key its default can be changed while the broker runs, under the first of its names.
_DYNAMIC: Final = {definition.synonyms[0][0] for definition in TOPIC_CONFIGS.values() if definition.synonyms}


def _broker(name: str, kind: ConfigType, doc: str, check_like: str | None = None) -> ConfigDef:
    check = TOPIC_CONFIGS[check_like].check if check_like else None
    return ConfigDef(name, kind, None, doc, check, _like(*_PRECEDENCE.get(name, (name,))), name in _DYNAMIC)


BROKER_CONFIGS: Final[dict[str, ConfigDef]] = {
    definition.name: definition
    for definition in (
        # identity and place
        _broker("node.id", _INT, "The number of this node, unlike every other node's."),
        _broker("listeners", _LIST, "Where the broker listens: PLAINTEXT://HOST:PORT."),
        _broker("advertised.listeners", _LIST, "What clients are told to connect to, if that is not `listeners`."),
        _broker("log.dirs", _LIST, "The folder of all logs."),
        _broker(
            "broker.rack", _STRING, "Where this broker stands; told to clients that fetch from the nearest replica."
        ),
        # topics
        _broker("num.partitions", _INT, "Partitions of a topic that is created without a number of its own."),
        _broker("default.replication.factor", _INT, "Replicas of a topic that is created without a number of its own."),
        _broker(
            "auto.create.topics.enable", _BOOLEAN, "Whether asking for the metadata of an unknown topic creates it."
        ),
        _broker("delete.topic.enable", _BOOLEAN, "Whether topics can be deleted."),
        _broker("min.insync.replicas", _INT, "Default of the topics' min.insync.replicas.", "min.insync.replicas"),
        _broker("message.max.bytes", _INT, "Default of the topics' max.message.bytes.", "max.message.bytes"),
        _broker("compression.type", _STRING, "Default of the topics' compression.type.", "compression.type"),
        _broker("unclean.leader.election.enable", _BOOLEAN, "Default of the topics' unclean.leader.election.enable."),
        _broker("replica.lag.time.max.ms", _LONG, "A follower that has not caught up for so long leaves the ISR."),
        # logs
        _broker("log.segment.bytes", _INT, "Default of the topics' segment.bytes.", "segment.bytes"),
        _broker(
            "log.roll.ms", _LONG, "Default of the topics' segment.ms; if unset, log.roll.hours counts.", "segment.ms"
        ),
        _broker("log.roll.hours", _INT, "Default of the topics' segment.ms, in hours."),
        _broker("log.roll.jitter.ms", _LONG, "Default of the topics' segment.jitter.ms.", "segment.jitter.ms"),
        _broker("log.roll.jitter.hours", _INT, "Default of the topics' segment.jitter.ms, in hours."),
        _broker(
            "log.retention.ms",
            _LONG,
            "Default of the topics' retention.ms; if unset, log.retention.minutes counts.",
            "retention.ms",
        ),
        _broker(
            "log.retention.minutes",
            _INT,
            "Default of the topics' retention.ms, in minutes; if unset, log.retention.hours counts.",
        ),
        _broker("log.retention.hours", _INT, "Default of the topics' retention.ms, in hours."),
        _broker("log.retention.bytes", _LONG, "Default of the topics' retention.bytes."),
        _broker("log.retention.check.interval.ms", _LONG, "Pause between two looks for segments to delete."),
        _broker("log.cleanup.policy", _LIST, "Default of the topics' cleanup.policy.", "cleanup.policy"),
        _broker("log.cleaner.enable", _BOOLEAN, "Whether compacted topics are compacted."),
        _broker("log.cleaner.backoff.ms", _LONG, "Pause of the cleaner when no log needs it."),
        _broker(
            "log.cleaner.delete.retention.ms",
            _LONG,
            "Default of the topics' delete.retention.ms.",
            "delete.retention.ms",
        ),
        _broker(
            "log.cleaner.min.compaction.lag.ms",
            _LONG,
            "Default of the topics' min.compaction.lag.ms.",
            "min.compaction.lag.ms",
        ),
        _broker(
            "log.cleaner.max.compaction.lag.ms",
            _LONG,
            "Default of the topics' max.compaction.lag.ms.",
            "max.compaction.lag.ms",
        ),
        _broker(
            "log.cleaner.min.cleanable.ratio",
            _DOUBLE,
            "Default of the topics' min.cleanable.dirty.ratio.",
            "min.cleanable.dirty.ratio",
        ),
        _broker(
            "log.index.interval.bytes", _INT, "Default of the topics' index.interval.bytes.", "index.interval.bytes"
        ),
        _broker("log.index.size.max.bytes", _INT, "Default of the topics' segment.index.bytes.", "segment.index.bytes"),
        _broker("log.flush.interval.messages", _LONG, "Default of the topics' flush.messages.", "flush.messages"),
        _broker(
            "log.flush.interval.ms",
            _LONG,
            "Default of the topics' flush.ms; if unset, log.flush.scheduler.interval.ms counts.",
            "flush.ms",
        ),
        _broker("log.flush.scheduler.interval.ms", _LONG, "How often it is looked whether a log must be flushed."),
        _broker("log.flush.offset.checkpoint.interval.ms", _INT, "How often recovery points are written."),
        _broker("log.flush.start.offset.checkpoint.interval.ms", _INT, "How often log start offsets are written."),
        _broker("log.preallocate", _BOOLEAN, "Default of the topics' preallocate."),
        _broker(
            "log.message.timestamp.type",
            _STRING,
            "Default of the topics' message.timestamp.type.",
            "message.timestamp.type",
        ),
        _broker(
            "log.message.timestamp.before.max.ms",
            _LONG,
            "Default of the topics' message.timestamp.before.max.ms.",
            "message.timestamp.before.max.ms",
        ),
        _broker(
            "log.message.timestamp.after.max.ms",
            _LONG,
            "Default of the topics' message.timestamp.after.max.ms.",
            "message.timestamp.after.max.ms",
        ),
        _broker(
            "log.segment.delete.delay.ms", _LONG, "Default of the topics' file.delete.delay.ms.", "file.delete.delay.ms"
        ),
        _broker("replica.high.watermark.checkpoint.interval.ms", _LONG, "How often high watermarks are written."),
        # producers and transactions
        _broker("producer.id.expiration.ms", _INT, "How long a partition remembers a producer id that writes nothing."),
        _broker("producer.id.expiration.check.interval.ms", _INT, "How often forgotten producer ids are looked for."),
        _broker("transactional.id.expiration.ms", _INT, "How long an unused transactional id is remembered."),
        _broker("transaction.max.timeout.ms", _INT, "The longest transaction timeout a producer may ask for."),
        _broker(
            "transaction.abort.timed.out.transaction.cleanup.interval.ms",
            _INT,
            "How often transactions that have been open for too long are looked for.",
        ),
        _broker(
            "transaction.remove.expired.transaction.cleanup.interval.ms",
            _INT,
            "How often transactional ids that are not used any more are looked for.",
        ),
        _broker(
            "transaction.partition.verification.enable",
            _BOOLEAN,
            "Whether writes of transactions before KIP-890 are checked with the coordinator.",
        ),
        _broker(
            "add.partitions.to.txn.retry.backoff.ms",
            _INT,
            "How long a write waits before it asks again for a transaction whose predecessor is still being ended.",
        ),
        _broker(
            "add.partitions.to.txn.retry.backoff.max.ms",
            _INT,
            "How long a write waits at most for a transaction whose predecessor is still being ended.",
        ),
        _broker(
            "transaction.state.log.num.partitions",
            _INT,
            "Partitions of __transaction_state; not to be changed once it exists.",
        ),
        _broker("transaction.state.log.replication.factor", ConfigType.SHORT, "Replicas of __transaction_state."),
        _broker("transaction.state.log.min.isr", _INT, "min.insync.replicas of __transaction_state."),
        _broker("transaction.state.log.segment.bytes", _INT, "segment.bytes of __transaction_state."),
        # groups
        _broker(
            "offsets.topic.num.partitions", _INT, "Partitions of __consumer_offsets; not to be changed once it exists."
        ),
        _broker("offsets.topic.replication.factor", ConfigType.SHORT, "Replicas of __consumer_offsets."),
        _broker("offsets.topic.segment.bytes", _INT, "segment.bytes of __consumer_offsets."),
        _broker("offsets.topic.compression.codec", _INT, "The codec of batches in __consumer_offsets, by number."),
        _broker("offsets.retention.minutes", _INT, "How long the offsets of an empty group are kept."),
        _broker("offsets.retention.check.interval.ms", _LONG, "How often expired offsets are looked for."),
        _broker("offset.metadata.max.bytes", _INT, "The longest metadata text of a committed offset."),
        _broker(
            "group.initial.rebalance.delay.ms",
            _INT,
            "How long the first rebalance of a new classic group waits for more members.",
        ),
        _broker("group.min.session.timeout.ms", _INT, "The shortest session timeout of a classic member."),
        _broker("group.max.session.timeout.ms", _INT, "The longest session timeout of a classic member."),
        _broker("group.max.size", _INT, "Members a classic group can have."),
        _broker(
            "group.coordinator.append.linger.ms",
            _INT,
            "How long coordinator writes are gathered into one batch; -1 adapts to the load.",
        ),
        _broker("group.consumer.session.timeout.ms", _INT, "Session timeout of consumer groups (KIP-848)."),
        _broker(
            "group.consumer.min.session.timeout.ms",
            _INT,
            "The shortest session timeout that can be set on a consumer group.",
        ),
        _broker(
            "group.consumer.max.session.timeout.ms",
            _INT,
            "The longest session timeout that can be set on a consumer group.",
        ),
        _broker("group.consumer.heartbeat.interval.ms", _INT, "Heartbeat interval told to members of consumer groups."),
        _broker(
            "group.consumer.min.heartbeat.interval.ms",
            _INT,
            "The shortest heartbeat interval that can be set on a consumer group.",
        ),
        _broker(
            "group.consumer.max.heartbeat.interval.ms",
            _INT,
            "The longest heartbeat interval that can be set on a consumer group.",
        ),
        _broker("group.consumer.max.size", _INT, "Members a consumer group can have."),
        _broker("group.consumer.assignors", _LIST, "Assignors of consumer groups; the first is the default."),
        # requests and connections
        _broker(
            "request.timeout.ms", _INT, "How long a broker waits for the answer of another one, or of its replicas."
        ),
        _broker("fetch.max.bytes", _INT, "The largest answer to a fetch, whatever the client asks for."),
        _broker("max.incremental.fetch.session.cache.slots", _INT, "Fetch sessions that are remembered."),
        _broker("max.request.partition.size.limit", _INT, "Partitions in one answer to DescribeTopicPartitions."),
        _broker("socket.request.max.bytes", _INT, "The largest request that is read."),
        _broker("socket.listen.backlog.size", _INT, "Connections that wait to be accepted."),
        _broker("connections.max.idle.ms", _LONG, "Idle connections are closed after so long."),
        _broker("max.connections", _INT, "Connections at one time."),
        _broker("max.connections.per.ip", _INT, "Connections at one time from one address."),
    )
}

__all__ = ["BROKER_CONFIGS", "INT_MAX", "LISTED_TOPIC_CONFIGS", "LONG_MAX", "TOPIC_CONFIGS"]
