"""`python -m ottla_broker`: run one broker.

Prints `ready HOST:PORT` on standard output once it serves; logs go to standard error. SIGTERM and SIGINT stop it
cleanly. Exit codes: 0 stopped, 1 cannot start or go on (one sentence says why), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from ottla_broker.shell.config import BrokerConfig, BrokerConfigError, parse_config, read_properties
from ottla_broker.shell.loop import loop_factory
from ottla_broker.shell.node import BrokerFailedError, BrokerStartError, Node

logger = logging.getLogger(__name__)

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a broker until it is told to stop; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        config = _config(options)
        topics = [_topic(text) for text in options.topic]
    except (BrokerConfigError, OSError) as error:
        sys.stderr.write(f"ottla broker: {error}\n")
        return USAGE_ERROR
    logging.basicConfig(
        stream=sys.stderr, level=options.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        _run(_serve(config, dict(topics), stop_with_stdin=options.stop_with_stdin))
    except (BrokerStartError, BrokerFailedError) as error:
        sys.stderr.write(f"ottla broker: {error}\n")
        return 1
    finally:
        if options.temporary:
            shutil.rmtree(config.data, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ottla broker", description="Run one Kafka-compatible broker.", allow_abbrev=False
    )
    parser.add_argument("properties", nargs="?", type=Path, help="a server.properties file with Kafka's setting names")
    parser.add_argument("--host", help="address to listen on (default: localhost)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default: 9092)")
    parser.add_argument("--data", help=f"folder of all data (default: {BrokerConfig.log_dirs})")
    parser.add_argument("--node-id", type=int, help="id of this broker (default: 1)")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting under Kafka's name, above those of the file; may be given several times",
    )
    parser.add_argument(
        "--topic",
        action="append",
        default=[],
        metavar="NAME[:PARTITIONS]",
        help="create this topic if it does not exist; may be given several times",
    )
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.add_argument("--temporary", action="store_true", help="remove the data folder at the end (for tests)")
    parser.add_argument(
        "--stop-with-stdin",
        action="store_true",
        help="stop when standard input ends, so that the broker does not outlive the program that started it",
    )
    return parser


def _config(options: argparse.Namespace) -> BrokerConfig:
    settings: dict[str, object] = {}
    if options.properties is not None:
        settings.update(read_properties(options.properties.read_text()))
    for text in options.config:
        name, separator, value = text.partition("=")
        if not separator:
            raise BrokerConfigError(f"--config {text}: write NAME=VALUE")
        settings[name.strip()] = value.strip()
    if options.node_id is not None:
        settings["node.id"] = options.node_id
    if options.data is not None:
        settings["log.dirs"] = options.data
    config = parse_config(settings)
    if options.host is None and options.port is None:
        return config
    host = config.host if options.host is None else options.host
    port = config.port if options.port is None else options.port
    return parse_config(settings | {"listeners": f"PLAINTEXT://{f'[{host}]' if ':' in host else host}:{port}"})


def _topic(text: str) -> tuple[str, int]:
    name, _, partitions = text.partition(":")
    if not name or (partitions and not (partitions.isdecimal() and int(partitions) > 0)):
        raise BrokerConfigError(f"--topic {text}: write NAME or NAME:PARTITIONS")
    return name, int(partitions) if partitions else -1


async def _serve(config: BrokerConfig, topics: dict[str, int], *, stop_with_stdin: bool) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    if stop_with_stdin:
        await _watch_stdin(loop, stopping.set)
        # Ctrl-C reaches every process of the terminal. The program that started this one still wants to finish.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        loop.add_signal_handler(signal.SIGINT, stopping.set)
    _let_open_many_files()
    node = Node(config, topics=topics, on_failure=stopping.set)
    await node.start()
    # What start-up made stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    sys.stdout.write(f"ready {node.host}:{node.port}\n")
    sys.stdout.flush()
    try:
        await stopping.wait()
    finally:
        await node.stop()
    if node.failure is not None:
        raise BrokerFailedError(node.failure)


def _let_open_many_files() -> None:
    """A broker that may open no more files has to stop; the soft limit is often far below what is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            logger.debug("the limit of %d open files stays", soft)


async def _watch_stdin(loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
    class Lifeline(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            ended()

    await loop.connect_read_pipe(Lifeline, os.fdopen(os.dup(sys.stdin.fileno()), "rb"))


def _run(main_coroutine: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main_coroutine)


if __name__ == "__main__":
    sys.exit(main())
