"""The benchmarks still run: what they print is for people, but a benchmark that broke in silence is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(
    (os.cpu_count() or 1) < 2 or shutil.which("taskset") is None,
    reason="server and load need a CPU each, and taskset to keep to it",
)
@pytest.mark.parametrize(
    ("script", "options", "row"),
    [
        ("bench.py", ["--runs", "1", "--seconds", "0.5", "--sizes", "10"], "| relay | 10 |"),
        ("flat.py", ["--depths", "1000"], "| 1,000 |"),
        ("micro.py", [], "| decode the body |"),
    ],
)
def test_a_benchmark_runs_and_prints_its_table(script: str, options: list[str], row: str, tmp_path: Path):
    argv = [sys.executable, str(HERE / script), *options]
    ran = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert row in ran.stdout
