"""The flagship with random weights on the twin: all of its programs must say the same. Waived without PyTorch."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="waived: no PyTorch")
HERE = pathlib.Path(__file__).resolve()
# In the repository, and in the bundle.
FOLDERS = [HERE.parents[3] / "examples/python/flagship", HERE.parents[1] / "flagship"]


def run(*options, **environment):
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    return subprocess.run(
        [sys.executable, str(folder), *options], capture_output=True, text=True, timeout=280, env={**os.environ, **environment}
    )


def test_all_programs_say_the_same(tmp_path):
    told = run("--tiny", "--device", "cpu", "--turns", "4", "--rounds", "2", "--json", str(tmp_path / "rows"), OMP_NUM_THREADS="1")
    assert told.returncode == 0, told.stderr
    assert "token by token" in told.stdout and "Ada:" in told.stdout and "memory:" in told.stdout
    rows = {row["id"]: row for row in json.loads((tmp_path / "rows").read_text())}
    assert rows["flagship.pointer_bytes.device"]["value"] == rows["flagship.pointer_bytes.cpu"]["value"] > 0
    assert rows["flagship.steps.device"]["value"] == rows["flagship.steps.cpu"]["value"] > 40


def test_on_a_gpu_all_say_the_same_and_nothing_goes_through_the_host(tmp_path):
    if not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("waived: no GPU for PyTorch")
    told = run("--tiny", "--device", "cuda", "--turns", "4", "--rounds", "6", "--json", str(tmp_path / "rows"))
    assert told.returncode == 0, told.stderr
    rows = {row["id"]: row for row in json.loads((tmp_path / "rows").read_text())}
    assert rows["flagship.host_bytes"]["value"] == 0 < rows["flagship.host_bytes.plain"]["value"]
    ratio = rows["flagship.tokens_ratio"]
    assert 0 < ratio["within"][0] <= ratio["value"] <= ratio["within"][1]


def test_missing_weights_are_named(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['gguf'] = None\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    told = run("--device", "cpu", PYTHONPATH=path)
    assert told.returncode != 0 and "pip install" in told.stderr and "--tiny" in told.stderr


def test_an_interval_holds_the_median_as_often_as_it_says():
    code = """
import random
from report import interval
random.seed(3)
for n in (6, 9, 16, 40):
    missed = 0
    for _ in range(4000):
        middle, low, high = interval([random.expovariate(1) for _ in range(n)])
        assert low <= middle <= high
        missed += not low <= 0.6931 <= high  # ln 2
    assert missed <= 0.05 * 4000 + 60, (n, missed)
assert interval([3, 1, 2]) == (2, 1, 3)
"""
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=folder)
    assert told.returncode == 0, told.stderr


def test_the_reasoner_solves_what_it_never_saw():
    code = "import train, torch; from weights import trained_hrm; print(train.accuracy(trained_hrm('cpu'), 1500)[0])"
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, cwd=folder)
    assert told.returncode == 0 and float(told.stdout) > 0.99, told
