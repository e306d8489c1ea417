"""A real Apache Kafka on this machine: resolved by Maven, one KRaft node, started and stopped by a test session.

Jars are kept under `~/.cache/ottla/kafka/VERSION/libs` (`OTTLA_KAFKA_CACHE` moves it), so that a second run finds them.
As a script, `python tests/support/apache_kafka.py [4.3 ...]` resolves versions ahead of time, all of them if none is
named.
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

# The releases that tests run, by the name that the peers table gives them: `apache-3.9`, ...
VERSIONS = {"3.9": "3.9.1", "4.0": "4.0.1", "4.3": "4.3.1", "4.4": "4.4.0"}
DEFAULT = "4.3"  # whose answers are the contract
START_TIMEOUT_SECONDS = 120
MAVEN_TIMEOUT_SECONDS = 600
METADATA_VERSION = 12  # a version that all of them have

_QUICK = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
_LOG4J_VERSION = "2.25.4"
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>apache-kafka-{name}</artifactId><version>1</version><packaging>pom</packaging>
  {content}
</project>
"""
# Kafka Connect is left out: nothing here runs it, it brings a web server, and 4.0.1 of it is not to be had everywhere.
_DEPENDENCY = """<dependency>
    <groupId>{0}</groupId><artifactId>{1}</artifactId><version>{2}</version>
    <exclusions>
      <exclusion><groupId>org.apache.kafka</groupId><artifactId>connect-runtime</artifactId></exclusion>
    </exclusions>
  </dependency>"""

# Kafka 3.9 comes with reload4j, which is Log4j 1; for 4.x Log4j 2 is added. Both write to standard output.
_LOG4J_1 = """log4j.rootLogger=${kafka.log.level}, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=[%d] %p %m (%c)%n
"""
_LOG4J_2 = """status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = ${sys:kafka.log.level}
rootLogger.appenderRef.out.ref = out
"""


class KafkaNotAvailable(Exception):
    """Apache Kafka cannot be had here; the message says what is missing."""


def cache() -> Path:
    return Path(os.environ.get("OTTLA_KAFKA_CACHE", "~/.cache/ottla/kafka")).expanduser()


def libs(version: str) -> Path:
    return cache() / version / "libs"


def is_installed(version: str) -> bool:
    return (cache() / version / ".complete").exists()


def install(*versions: str) -> None:
    """Resolve the jars of some versions through Maven, as far as they are not there; KafkaNotAvailable if it cannot."""
    wanted = [version for version in versions if not is_installed(version)]
    if not wanted:
        return
    if shutil.which("mvn") is None or shutil.which("java") is None:
        raise KafkaNotAvailable("Apache Kafka is resolved by Maven and run by Java 17; one of them is not on the PATH")
    cache().mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".resolving-", dir=cache()))
    try:
        failure = _resolve(staging, wanted)
        if failure is None:
            for version in wanted:
                _publish(staging / version, cache() / version)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if failure is not None and len(wanted) > 1:  # one that cannot be had does not take the others with it
        _install_each(wanted)
    elif failure is not None:
        raise KafkaNotAvailable(f"Maven could not resolve Apache Kafka {wanted[0]}: {failure}")


def _install_each(versions: list[str]) -> None:
    failures = []
    for version in versions:
        try:
            install(version)
        except KafkaNotAvailable as error:
            failures.append(str(error))
    if failures:
        raise KafkaNotAvailable("; ".join(failures))


def _resolve(staging: Path, versions: list[str]) -> str | None:
    """Let one Maven resolve them side by side into `VERSION/libs`; returns its words if it fails.

    Several Mavens at once would write to one local repository, which it does not promise to bear.
    """
    for version in versions:
        needed = [("org.apache.kafka", "kafka_2.13", version), ("org.apache.kafka", "kafka-tools", version)]
        if not version.startswith("3."):
            names = ("log4j-slf4j-impl", "log4j-api", "log4j-core")
            needed += [("org.apache.logging.log4j", name, _LOG4J_VERSION) for name in names]
        dependencies = "\n  ".join(_DEPENDENCY.format(*artifact) for artifact in needed)
        content = f"<dependencies>\n  {dependencies}\n  </dependencies>"
        (staging / version).mkdir()
        (staging / version / "pom.xml").write_text(_POM.format(name=version, content=content))
    modules = "".join(f"<module>{version}</module>" for version in versions)
    (staging / "pom.xml").write_text(_POM.format(name="all", content=f"<modules>{modules}</modules>"))
    command = ["mvn", "-B", "-q", f"-T{len(versions)}", "-f", str(staging / "pom.xml")]
    command += ["dependency:copy-dependencies", "-DincludeScope=runtime"]
    command += ["-DoutputDirectory=${project.basedir}/libs"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAVEN_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"it was not done after {MAVEN_TIMEOUT_SECONDS} s"
    if done.returncode == 0:
        return None
    words = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
    return words[0][:600] if words else f"it ended with {done.returncode}"


def _publish(resolved: Path, place: Path) -> None:
    (resolved / ".complete").touch()
    try:
        resolved.rename(place)
    except OSError:
        if not (place / ".complete").exists():  # else another session was faster
            raise


def java_command(version: str, main_class: str, *arguments: str, heap: str = "512m") -> list[str]:
    """The command line that runs one of Kafka's own Java tools."""
    flags = [f"-Xmx{heap}", *_QUICK, "-Djava.awt.headless=true"]
    install(version)
    return ["java", *flags, "-cp", f"{libs(version)}/*", main_class, *arguments]


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
    """One combined KRaft node on 127.0.0.1, in a temporary folder. `with ApacheKafka("4.3.1") as kafka: ...`

    `quick` starts with half of the processor time and is no measure of what Apache Kafka can do.
    """

    def __init__(
        self,
        version: str = VERSIONS[DEFAULT],
        *,
        config: dict[str, str] | None = None,
        heap: str = "768m",
        quick: bool = False,
    ) -> None:
        self.version = version
        self._flags = _QUICK if quick else ["-XX:+UseG1GC"]
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
        properties = self._write_properties(self._folder)
        java = ["java", *self._write_logging(self._folder), "-cp", f"{libs(self.version)}/*"]
        storage = [*java, "-Dkafka.log.level=WARN", *_QUICK, "kafka.tools.StorageTool", "format"]
        storage += ["--cluster-id", _kafka_uuid(), "--config", str(properties), "--standalone"]
        done = subprocess.run(storage, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            self.stop()
            words = (done.stdout + done.stderr)[-1000:]
            raise KafkaNotAvailable(f"the storage of Apache Kafka {self.version} cannot be formatted: {words}")
        server = [*java, "-Dkafka.log.level=INFO", f"-Xmx{self.heap}", *self._flags, "kafka.Kafka", str(properties)]
        with self._output(self._folder).open("wb") as out:
            self._process = subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self._await_ready()

    @staticmethod
    def _output(folder: Path) -> Path:
        return folder / "server.out"

    @staticmethod
    def _write_logging(folder: Path) -> list[str]:
        """Configure both of the logging libraries; returns the flags that name the files."""
        first, second = folder / "log4j.properties", folder / "log4j2.properties"
        first.write_text(_LOG4J_1)
        second.write_text(_LOG4J_2)
        return [f"-Dlog4j.configuration=file:{first}", f"-Dlog4j2.configurationFile={second}"]

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

    def _await_ready(self) -> None:
        assert self._process is not None
        assert self._folder is not None
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not _serves(self.bootstrap_servers):
            ended = self._process.poll() is not None
            if not ended and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            words = self._output(self._folder).read_text(errors="replace")[-1000:]
            self.stop()
            state = "ended while starting" if ended else f"was not ready after {START_TIMEOUT_SECONDS} s"
            raise KafkaNotAvailable(f"Apache Kafka {self.version} {state}: {words or 'it wrote nothing'}")

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


def _serves(address: str) -> bool:
    """Whether the broker lists itself, which it does once the controller has let it in."""
    from ottla_wire.messages.metadata import MetadataRequest  # here, because as a script this file has no ottla_wire
    from support.wire_client import WireClient

    client = None
    try:
        client = WireClient(address)
        return bool(client.ask(MetadataRequest(topics=[]), METADATA_VERSION).brokers)
    except (OSError, AssertionError):  # the client asserts that it is answered
        return False
    finally:
        if client is not None:
            client.close()


if __name__ == "__main__":
    try:
        install(*(VERSIONS.get(name, name) for name in sys.argv[1:] or VERSIONS))
    except KafkaNotAvailable as error:
        sys.exit(str(error))
