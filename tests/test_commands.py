"""The console script, the wheel that brings it, and what is imported when."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import tiny_model

from bidir_seq2seq.commands import cli
from bidir_seq2seq.tokenization import build_char_tokenizer

ROOT = Path(__file__).parents[1]
# What only training and scoring need, and takes long to import.
HEAVY = ("datasets", "evaluate", "sacrebleu", "matplotlib", "rouge_score")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = build_char_tokenizer(["abcdefgh"], min_frequency=1)
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.update(max_length=8, min_length=4, num_beams=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def python(*args, path: Path = ROOT / "src", cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Another Python, which finds the package in `path`."""
    env = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the console script in this process, and returns what it printed."""

    def run(*args) -> str:
        monkeypatch.setattr(sys, "argv", ["bidir-seq2seq", *map(str, args)])
        capsys.readouterr()
        cli.main()
        return capsys.readouterr().out

    return run


def test_it_runs_the_command_it_is_given(run, checkpoint, tmp_path):
    title = run("generate", "--model_name_or_path", checkpoint, "--text", "abcdef")
    assert len(title.splitlines()) == 1 and title.strip()
    (tmp_path / "test.jsonl").write_text('{"document": "abcdef", "title": "abc"}\n' * 2)
    assert "joint" in run("score", "--model_name_or_path", checkpoint, "--test_file", tmp_path / "test.jsonl")
    push = run("push", "--model_name_or_path", checkpoint, "--repo_id", "a/b", "--dry_run", "--output_dir", tmp_path)
    assert "nothing was sent" in push


def test_help_lists_the_commands(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "119")
    with pytest.raises(SystemExit) as stopped:
        run("--help")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert stopped.value.code == 0
    for name, (_, help_line) in cli.COMMANDS.items():
        assert [name, *help_line.split()] in lines


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_its_own_help(run, capsys, name):
    with pytest.raises(SystemExit) as stopped:
        run(name, "--help")
    assert stopped.value.code == 0
    assert f"usage: bidir-seq2seq {name} " in capsys.readouterr().out


@pytest.mark.parametrize(("args", "message"), [(["trian"], "'trian' (choose from"), ([], "required: COMMAND")])
def test_an_unknown_command_is_an_error(run, capsys, args, message):
    with pytest.raises(SystemExit) as stopped:
        run(*args)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and "usage: bidir-seq2seq" in error


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    installed = {name: importlib.util.find_spec(name) for name in ("pip", "setuptools")}
    if not all(installed.values()) or int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("building the wheel without a network needs pip and setuptools>=77 in this environment")
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools leaves folders beside what it builds.
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    built = python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_everything_and_runs_alone(wheel, checkpoint, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    package = ROOT / "src" / "bidir_seq2seq"
    files = {f"bidir_seq2seq/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    files |= {"bidir_seq2seq/py.typed", "bidir_seq2seq/model_card_template.md"}
    assert {name for name in names if name.startswith("bidir_seq2seq/")} == files
    entry_points = next(tmp_path.glob("*.dist-info")).joinpath("entry_points.txt").read_text()
    assert "bidir-seq2seq = bidir_seq2seq.commands.cli:main" in entry_points
    # Where the package comes from is part of the test: a checkout may be installed here, too.
    place = python("-c", "import bidir_seq2seq; print(bidir_seq2seq.__file__)", path=tmp_path, cwd=tmp_path)
    assert Path(place.stdout.strip()).parent == tmp_path / "bidir_seq2seq"
    generate = ["-m", "bidir_seq2seq", "generate", "--model_name_or_path", checkpoint, "--text", "abcdef"]
    written = python(*generate, path=tmp_path, cwd=tmp_path)
    assert written.returncode == 0 and written.stdout.strip(), written.stderr


def test_writing_titles_imports_nothing_of_training_and_scoring(checkpoint):
    program = f"""
import sys
heavy = lambda: [name for name in {HEAVY} if name in sys.modules]
import bidir_seq2seq
assert heavy() == [], heavy()
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from bidir_seq2seq.titles import write_titles
model = AutoModelForSeq2SeqLM.from_pretrained({str(checkpoint)!r})
tokenizer = AutoTokenizer.from_pretrained({str(checkpoint)!r})
print(write_titles(model, tokenizer, ["abc", "abcdef"])[0][0].text)
assert heavy() == [], heavy()
"""
    written = python("-c", program)
    assert written.returncode == 0 and written.stdout.strip(), written.stderr


@pytest.mark.parametrize("name", ["text", "stdin", "file"])
def test_generate_imports_nothing_of_training_and_scoring(checkpoint, tmp_path, name):
    (tmp_path / "documents.txt").write_text("abc\n", encoding="utf-8")
    source = {"text": ["--text", "abc"], "stdin": [], "file": ["--input_file", str(tmp_path / "documents.txt")]}[name]
    program = f"""
import io, sys
sys.stdin = io.StringIO("abc\\n")
from bidir_seq2seq.commands.generate import main
main(["--model_name_or_path", {str(checkpoint)!r}, *{source!r}])
heavy = [name for name in {HEAVY} if name in sys.modules]
assert heavy == [], heavy
"""
    written = python("-c", program)
    assert written.returncode == 0 and written.stdout.strip(), written.stderr
