"""The long form: see the package.

python -m tests.fault.ordeal --minutes 10 [--seed 7] [--only memory_full,worker_killed]
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import random
import sys
import tempfile
import time

from tests.fault.ordeal.faults import FAULTS, OF_WORKERS, Fault
from tests.fault.ordeal.growth import growing
from tests.fault.ordeal.rounds import Rounds


def shuffled(chance: random.Random, among: list[Fault]) -> list[tuple[Fault, ...]]:
    """All of them in a random order, some together with one that happens to a worker."""
    order = chance.sample(among, len(among))
    return [
        (fault, chance.choice(OF_WORKERS))
        if fault not in OF_WORKERS and chance.random() < 0.3
        else (fault,)
        for fault in order
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", default="", help="names of faults, by comma")
    given = parser.parse_args()
    known = {fault.__name__: fault for fault in FAULTS}
    among = [known[name] for name in given.only.split(",")] if given.only else list(FAULTS)
    chance = random.Random(given.seed)
    print(f"seed {given.seed}", flush=True)
    samples: dict[str, list[dict[str, int]]] = collections.defaultdict(list)
    deadline = time.monotonic() + 60 * given.minutes
    with (
        tempfile.TemporaryDirectory(prefix="geventq-ordeal-") as folder,
        Rounds(pathlib.Path(folder)) as rounds,
    ):
        while True:
            rounds.go(shuffled(chance, among))
            for name, sample in rounds.sampled().items():
                samples[name].append(sample)
            if time.monotonic() > deadline:
                break
            rounds.begin_anew()
        rounds.close()
    print(rounds.table())
    for name, found in samples.items():
        print(f"{name}: {len(found)} samples, first {found[0]}, last {found[-1]}")
        rounds.violations += [f"{name} grows: {one}" for one in growing(found)]
    for violation in rounds.violations:
        print(f"VIOLATION {violation}")
    print(f"{len(rounds.violations)} violations")
    return 1 if rounds.violations else 0


if __name__ == "__main__":
    sys.exit(main())
