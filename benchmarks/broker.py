"""The brokers under the Java client's own kafka-producer-perf-test: 1 KB records, acks=1 and acks=all.

The measured client is the same for both brokers, so the script is only a wrapper: it runs the Java tool, and prints
what the tool says. The clock is the tool's; CPU covers the whole run, the start of the tool's virtual machine included.
"""

from __future__ import annotations

import re
import resource
import subprocess

from benchmarks.brokers import java
from benchmarks.measuring import BATCH_BYTES, LINGER_MS, PATIENCE_SECONDS, Job, Meter, cpu_seconds_of, report, run

_TOOL = "org.apache.kafka.tools.ProducerPerformance"
_TOTALS = re.compile(r"(\d+) records sent, ([\d.]+) records/sec .* ([\d.]+) ms avg latency.* (\d+) ms 99th", re.ASCII)


def _acks_one(job: Job, _: Meter) -> None:
    _measure(job, "1")


def _acks_all(job: Job, _: Meter) -> None:
    _measure(job, "all")


def _measure(job: Job, acks: str) -> None:
    apache_kafka = java()
    version = apache_kafka.VERSIONS["4.3"]
    command = apache_kafka.java_command(version, _TOOL, "--topic", job.topic, "--num-records", str(job.records))
    command += ["--record-size", str(job.value_bytes), "--throughput", "-1", "--producer-props"]
    command += [f"bootstrap.servers={job.bootstrap_servers}", f"acks={acks}"]
    command += [f"linger.ms={LINGER_MS}", f"batch.size={BATCH_BYTES}"]
    before = cpu_seconds_of(job.broker_pid)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    tool = resource.getrusage(resource.RUSAGE_CHILDREN)
    totals = _TOTALS.findall(done.stdout)
    if done.returncode or not totals:
        raise SystemExit(f"the Java tool failed: {(done.stdout + done.stderr)[-1000:]}")
    records, per_second, average_ms, worst_ms = totals[-1]
    if int(records) != job.records:
        raise SystemExit(f"the Java tool sent {records} of {job.records} records")
    report(
        records=job.records,
        seconds=job.records / float(per_second),
        java_cpu_seconds=tool.ru_utime + tool.ru_stime,
        broker_cpu_seconds=cpu_seconds_of(job.broker_pid) - before,
        latency_ms=float(average_ms),
        latency_99_ms=float(worst_ms),
    )


CLIENTS = {"acks=1": _acks_one, "acks=all": _acks_all}

if __name__ == "__main__":
    run(CLIENTS)
