"""Run the differential fuzzers for a given time, from the folder tests: python -m fuzz --seconds 60.

A failure prints the fuzzer, its seed, and the command that repeats it.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from fuzz.differences import FUZZERS


def main() -> int:
    """Return 1 if any round failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to run")
    parser.add_argument(
        "--only", choices=sorted(FUZZERS), action="append", help="a fuzzer to run; default: all"
    )
    parser.add_argument("--seed", type=int, help="run this seed once, and stop")
    options = parser.parse_args()
    names = options.only or list(FUZZERS)
    if options.seed is not None:
        return sum(not holds(name, options.seed) for name in names) > 0
    start = random.SystemRandom().randrange(10**9)
    rounds, failures, end = dict.fromkeys(names, 0), 0, time.monotonic() + options.seconds
    for seed in itertools.count(start):
        for name in names:
            if time.monotonic() >= end or failures >= 10:
                print(
                    ", ".join(f"{name} {count}" for name, count in rounds.items()),
                    "rounds;",
                    failures,
                    "failed",
                )
                return failures > 0
            rounds[name] += 1
            failures += not holds(name, seed)
    return 0


def holds(name: str, seed: int) -> bool:
    """Run one round; report a difference."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            FUZZERS[name](random.Random(seed), Path(folder))
        except Exception:
            traceback.print_exc()
            print(
                f"{name} fails with seed {seed}; repeat: python -m fuzz --only {name} --seed {seed}",
                file=sys.stderr,
            )
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
