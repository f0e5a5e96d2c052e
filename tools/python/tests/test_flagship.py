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
    told = run("--tiny", "--device", "cpu", "--turns", "4", "--rounds", "1", "--json", str(tmp_path / "rows"), OMP_NUM_THREADS="1")
    assert told.returncode == 0, told.stderr
    assert "token by token" in told.stdout and "Ada:" in told.stdout and "memory:" in told.stdout
    rows = {row["id"]: row for row in json.loads((tmp_path / "rows").read_text())}
    assert rows["flagship.pointer_bytes.device"]["value"] == rows["flagship.pointer_bytes.cpu"]["value"] > 0
    assert rows["flagship.steps.device"]["value"] == rows["flagship.steps.cpu"]["value"] > 40


def test_missing_weights_are_named(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['gguf'] = None\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    told = run("--device", "cpu", PYTHONPATH=path)
    assert told.returncode != 0 and "pip install" in told.stderr and "--tiny" in told.stderr


def test_the_reasoner_solves_what_it_never_saw():
    code = "import train, torch; from weights import trained_hrm; print(train.accuracy(trained_hrm('cpu'), 1500)[0])"
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, cwd=folder)
    assert told.returncode == 0 and float(told.stdout) > 0.99, told
