"""The long form: see the package.

python -m tests.fault.torture --minutes 5 [--seed 7] [--jobs 2000] [--seconds 20]
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
import time

from geventq.cancel_secret import VARIABLE
from tests.fault.torture.app import LOCK, Plan
from tests.fault.torture.round import play


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=20.0, help="in which much happens")
    given = parser.parse_args()
    found, seed = 0, given.seed
    deadline = time.monotonic() + 60 * given.minutes
    while True:
        began = time.monotonic()
        # In every second round requests are signed.
        os.environ[VARIABLE] = "seven horses in a row" if seed % 2 else ""
        # In every third round locks are lost as well.
        plan = Plan(seed, given.jobs, given.seconds, outage=LOCK + 1 if seed % 3 == 0 else 2.0)
        with tempfile.TemporaryDirectory(prefix="geventq-torture-") as folder:
            verdict = play(pathlib.Path(folder), plan)
        print(f"{plan}, {time.monotonic() - began:.1f} s\n{verdict.table()}", flush=True)
        for violation in verdict.violations:
            print(f"VIOLATION {violation}", flush=True)
        found += len(verdict.violations)
        seed += 1
        if time.monotonic() > deadline:
            break
    print(f"{found} violations")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
