"""A real Apache Kafka on this machine: resolved by Maven, one KRaft node, started and stopped by a test session.

Jars are kept under `~/.cache/ottla/kafka/VERSION/libs` (`OTTLA_KAFKA_CACHE` moves it), so that a second run finds them.
As a script, `python tests/support/apache_kafka.py 4.3.1 ...` resolves versions ahead of time.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

LOG4J_VERSION = "2.25.4"
VERSIONS = {"3.9": "3.9.1", "4.0": "4.0.1", "4.3": "4.3.1", "4.4": "4.4.0"}
START_TIMEOUT_SECONDS = 120

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>apache-kafka-runtime</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    {dependencies}
  </dependencies>
</project>
"""
_DEPENDENCY = "<dependency><groupId>{0}</groupId><artifactId>{1}</artifactId><version>{2}</version></dependency>"

_LOG4J = """status = error
appender.file.type = File
appender.file.name = file
appender.file.fileName = ${sys:kafka.log.file:-/dev/null}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = ${sys:kafka.log.level:-WARN}
rootLogger.appenderRef.out.ref = file
"""


class KafkaNotAvailable(Exception):
    """Apache Kafka cannot be had here; the message says what is missing."""


def cache() -> Path:
    return Path(os.environ.get("OTTLA_KAFKA_CACHE", "~/.cache/ottla/kafka")).expanduser()


def libs(version: str) -> Path:
    return cache() / version / "libs"


def is_installed(version: str) -> bool:
    return (cache() / version / ".complete").exists()


def install(version: str) -> Path:
    """Resolve one version's jars through Maven; returns the folder that holds them."""
    if is_installed(version):
        return libs(version)
    if shutil.which("mvn") is None or shutil.which("java") is None:
        raise KafkaNotAvailable("Apache Kafka is resolved by Maven and run by Java 17; one of them is not on the PATH")
    cache().mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=cache()))
    needed = [
        ("org.apache.kafka", "kafka_2.13", version),
        ("org.apache.kafka", "kafka-tools", version),
        ("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J_VERSION),
        ("org.apache.logging.log4j", "log4j-api", LOG4J_VERSION),
        ("org.apache.logging.log4j", "log4j-core", LOG4J_VERSION),
    ]
    (staging / "pom.xml").write_text(_POM.format(dependencies="\n    ".join(_DEPENDENCY.format(*d) for d in needed)))
    command = ["mvn", "-B", "-q", "-f", str(staging / "pom.xml"), "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={staging / 'libs'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        shutil.rmtree(staging, ignore_errors=True)
        raise KafkaNotAvailable(f"Maven could not resolve Apache Kafka {version}: {(done.stdout + done.stderr)[-400:]}")
    (staging / ".complete").touch()
    try:
        staging.rename(cache() / version)
    except OSError:  # another session was faster
        shutil.rmtree(staging, ignore_errors=True)
    return libs(version)


def java_command(version: str, main_class: str, *arguments: str, heap: str = "512m") -> list[str]:
    """The command line that runs one of Kafka's own Java tools."""
    flags = [f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"]
    return ["java", *flags, "-cp", f"{install(version)}/*", main_class, *arguments]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _kafka_uuid() -> str:
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):  # the command line would take it for an option
            return text


class ApacheKafka:
    """One combined KRaft node on 127.0.0.1, in a temporary folder. `with ApacheKafka("4.3.1") as kafka: ...`"""

    def __init__(
        self, version: str = VERSIONS["4.3"], *, config: dict[str, str] | None = None, heap: str = "768m"
    ) -> None:
        self.version = version
        self.heap = heap
        self.port = free_port()
        self.bootstrap_servers = f"127.0.0.1:{self.port}"
        self._config = config or {}
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ApacheKafka:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        install(self.version)
        self._folder = Path(tempfile.mkdtemp(prefix="apache-kafka-"))
        (self._folder / "log4j2.properties").write_text(_LOG4J)
        properties = self._write_properties(self._folder)
        logging = f"-Dlog4j2.configurationFile={self._folder / 'log4j2.properties'}"
        classpath = f"{libs(self.version)}/*"
        storage = ["java", logging, "-XX:TieredStopAtLevel=1", "-cp", classpath, "kafka.tools.StorageTool", "format"]
        storage += ["--cluster-id", _kafka_uuid(), "--config", str(properties), "--standalone"]
        done = subprocess.run(storage, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise KafkaNotAvailable(f"the storage of Apache Kafka {self.version} cannot be formatted: {done.stderr}")
        log = self._folder / "server.log"
        server = ["java", logging, f"-Dkafka.log.file={log}", "-Dkafka.log.level=INFO", f"-Xmx{self.heap}"]
        server += ["-XX:+UseG1GC", "-cp", classpath, "kafka.Kafka", str(properties)]
        with (self._folder / "server.out").open("wb") as out:
            self._process = subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self._await_ready(log)

    def _write_properties(self, folder: Path) -> Path:
        controller = free_port()
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "log.dirs": str(folder / "data"),
            "num.network.threads": "2",
            "num.io.threads": "4",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "group.initial.rebalance.delay.ms": "0",
            **self._config,
        }
        path = folder / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return path

    def _await_ready(self, log: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise KafkaNotAvailable(f"Apache Kafka {self.version} ended while starting: {_tail(log)}")
            # logged only once the controller has let the broker in
            if log.exists() and "Kafka Server started" in log.read_text(errors="replace"):
                return
            time.sleep(0.1)
        self.stop()
        raise KafkaNotAvailable(
            f"Apache Kafka {self.version} was not ready after {START_TIMEOUT_SECONDS} s: {_tail(log)}"
        )

    @property
    def pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.pid

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(20)
        self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def run_tool(self, main_class: str, *arguments: str, stdin: bytes = b"", timeout: float = 120) -> str:
        """Run a Java tool of this version to its end; returns its standard output."""
        command = java_command(self.version, main_class, *arguments)
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False)
        if done.returncode:
            raise AssertionError(f"{main_class} failed: {done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout.decode()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1000:] if log.exists() else "it wrote no log"


if __name__ == "__main__":
    for wanted in sys.argv[1:] or [VERSIONS["4.3"]]:
        print(install(wanted))
