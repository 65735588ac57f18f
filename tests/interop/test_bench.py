"""The benchmark runs: what it measures can be judged only on a calm machine, with `make bench`."""

from __future__ import annotations

import os
import sys

import pytest
from gevent import subprocess

from tests.bench.scenarios import SCENARIOS
from tests.interop.child import ROOT


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_benchmark_measures_both_sides_in_every_scenario() -> None:
    told = run("tests.bench", "--quick")
    for scenario in SCENARIOS:
        assert f"{scenario.name}: {scenario.title}" in told
    assert "where geventq's time goes" in told


@pytest.mark.slow
def test_the_benchmark_drains_beside_another_checkout() -> None:
    told = run("tests.bench", "--quick", "--against", str(ROOT), "--only", "drain100")
    assert "drain100 rate" in told
    assert "drain1 " not in told


@pytest.mark.slow
def test_the_profiler_names_the_hottest_lines() -> None:
    told = run("tests.bench.profile", "drain", "-c", "10", "-n", "3000")
    assert "geventq/" in told
