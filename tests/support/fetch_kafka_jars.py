"""Gets the kafka-clients jars that the wire tests compare with, through Maven: python tests/support/fetch_kafka_jars.py

They land in `~/.cache/ottla/kafka/clients` (`OTTLA_KAFKA_CACHE` moves the cache). A jar that is there already is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SLF4J = "1.7.36"  # what kafka-clients needs to run at all
VERSIONS = ("3.9.1", "4.0.1", "4.3.1", "4.4.0")
TIMEOUT_SECONDS = 300


def fetch(group: str, name: str, version: str, folder: Path) -> Path:
    """Copy one jar into the folder; RuntimeError with Maven's words if it cannot be had."""
    jar = folder / f"{name}-{version}.jar"
    if jar.exists():
        return jar
    if shutil.which("mvn") is None:
        raise RuntimeError("Maven (mvn) is not on the PATH")
    artifact = f"{group}:{name}:{version}"
    command = ["mvn", "-B", "-q", "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if done.returncode or not jar.exists():
        raise RuntimeError(f"Maven could not get {artifact}: {(done.stdout + done.stderr)[-400:]}")
    return jar


def main() -> int:
    folder = Path(os.environ.get("OTTLA_KAFKA_CACHE", "~/.cache/ottla/kafka")).expanduser() / "clients"
    folder.mkdir(parents=True, exist_ok=True)
    failures = 0
    wanted = [("org.apache.kafka", "kafka-clients", version) for version in sys.argv[1:] or VERSIONS]
    for artifact in [*wanted, ("org.slf4j", "slf4j-api", SLF4J)]:
        try:
            print(fetch(*artifact, folder))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failures += 1
            print(error, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
