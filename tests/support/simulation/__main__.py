"""`python -m simulation`: run seeds, say what came of them."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import time
import traceback
from collections import Counter

from simulation.transactions import simulate


def main() -> None:
    """Run the seeds that the arguments name; exit status 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description="Transactions under virtual trouble.")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--seeds", default="0-99", help="FROM-TO, both included (%(default)s)")
    parser.add_argument("--trace", action="store_true", help="say what happens")
    given = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets is part of what happens; only with this a seed is the same every time.
        os.execve(
            sys.executable, [sys.executable, "-m", "simulation", *sys.argv[1:]], os.environ | {"PYTHONHASHSEED": "0"}
        )
    logging.basicConfig(level=logging.CRITICAL, format="%(message)s")
    if given.trace:
        logging.getLogger("simulation").setLevel(logging.DEBUG)
        for name in ("ottla", "ottla_broker"):
            logging.getLogger(name).setLevel(logging.INFO)
    gc.freeze()  # what is there now lives for ever; the rest is collected after each seed
    gc.disable()
    first, _, last = given.seeds.partition("-")
    seeds = [given.seed] if given.seed is not None else range(int(first), int(last or first) + 1)
    began, virtual, broken = time.perf_counter(), 0.0, []
    totals: Counter[str] = Counter()
    for seed in seeds:
        try:
            report = simulate(seed)
        except Exception:  # noqa: BLE001 - every seed is told about
            broken.append(seed)
            print(f"seed {seed}:", traceback.format_exc(limit=-3), flush=True)
            continue
        virtual += report.virtual_seconds
        totals.update({outcome.value: count for outcome, count in report.outcomes.items()})
        totals.update(report.events)
    seconds = time.perf_counter() - began
    print(
        f"{len(seeds)} seeds, {len(broken)} broken {broken[:20]}, {virtual / 3600:.1f} virtual hours in {seconds:.1f} s"
    )
    print(", ".join(f"{name} {count}" for name, count in sorted(totals.items())))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
