"""What is installed for some uses only: who needs it is told the command."""

import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from bidir_seq2seq import training
from bidir_seq2seq.data import load_pairs

ROOT = Path(__file__).parents[1]
TRAIN = r"is not installed, which this needs: pip install 'bidir_seq2seq\[train\]'"


def test_lower_bounds_are_what_the_oldest_run_has():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    users = [extras[name] for name in extras if name != "test"]
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = [line.replace("==", ">=") for line in lines if not line.startswith("#")]
    bounds = [*project["dependencies"], *chain.from_iterable(users)]
    assert sorted(oldest) == sorted({bound.partition(",")[0] for bound in bounds})


def test_reading_pairs_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "pairs.jsonl").write_text('{"source": "a", "target": "b"}\n')
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=f"datasets {TRAIN}"):
        load_pairs({"train": str(tmp_path / "pairs.jsonl")})


@pytest.mark.e2e
def test_training_and_scoring_name_the_extra():
    program = f"""
import importlib, re, sys
for missing in ("evaluate", "rouge_score", "sacrebleu", "accelerate"):
    sys.modules[missing] = None
    for module in ("bidir_seq2seq.metrics", "bidir_seq2seq.training"):
        for loaded in ("bidir_seq2seq.metrics", "bidir_seq2seq.trainer", "bidir_seq2seq.training"):
            sys.modules.pop(loaded, None)
        try:
            importlib.import_module(module)
        except ImportError as error:
            assert re.match(missing + {" " + TRAIN!r}, str(error)), error
            print(missing, module)
    del sys.modules[missing]
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "src", capture_output=True, text=True)
    named = [line.split() for line in run.stdout.splitlines()]
    assert run.returncode == 0, run.stderr
    assert {missing for missing, _ in named} == {"evaluate", "rouge_score", "sacrebleu", "accelerate"}
    assert ["accelerate", "bidir_seq2seq.metrics"] not in named


def test_a_training_without_matplotlib_ends_well(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(training.logger, "warning_once", said.append)
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    history = [{"eval_loss": 1.0, "elapsed_seconds": 1.0}, {"eval_loss": 0.5, "elapsed_seconds": 2.0}]
    training._report(history, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(said) == 1 and "pip install 'bidir_seq2seq[plots]'" in said[0]
