"""The console script, the wheel that brings it, and what is imported when."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
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


@pytest.mark.e2e
def test_a_users_error_is_told_in_a_line():
    command = ("-m", "bidir_seq2seq", "check", "--train_file", "nowhere.jsonl")
    told = python(*command)
    assert (told.returncode, told.stdout) == (1, "")
    assert "Traceback" not in told.stderr
    assert told.stderr.splitlines()[-1] == "bidir-seq2seq check: error: there is no file nowhere.jsonl"
    traced = python("-c", f"import os; os.environ[{cli.TRACEBACK!r}] = '1'; from bidir_seq2seq.commands import cli; "
                    f"cli.main({command[2:]!r})")  # fmt: skip
    assert traced.returncode == 1 and "Traceback" in traced.stderr and "nowhere" in traced.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("num_beams=0"), "error: num_beams=0"),
        (PermissionError(13, "Permission denied", "a.txt"), "error: .*Permission denied: 'a.txt'"),
        (ImportError("jiwer is not installed"), "error: jiwer is not installed"),
        (KeyboardInterrupt(), "130"),
    ],
)
def test_what_a_user_can_mend_has_no_traceback(error, told):
    with pytest.raises(SystemExit, match=told) as stopped, cli.errors_in_a_line():
        raise error
    assert stopped.value.__suppress_context__


@pytest.mark.parametrize("error", [TypeError, AssertionError, RuntimeError])
def test_an_error_of_ours_keeps_its_traceback(error):
    with pytest.raises(error), cli.errors_in_a_line():
        raise error("a bug")


@pytest.mark.e2e
def test_nobody_complains_of_a_reader_that_has_gone(checkpoint, tmp_path):
    (tmp_path / "many.txt").write_text("abcdef\n" * 3000)
    command = f"{sys.executable} -m bidir_seq2seq generate --model_name_or_path {checkpoint} --input_file many.txt"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    told = subprocess.run(f"{command} | head -n 1", shell=True, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert len(told.stdout.splitlines()) == 1
    assert "Traceback" not in told.stderr and "BrokenPipe" not in told.stderr


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


@pytest.mark.e2e
def test_the_wheel_holds_everything(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    package = ROOT / "src" / "bidir_seq2seq"
    files = {f"bidir_seq2seq/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    others = [path for kind in ("*.html", "*.md") for path in package.rglob(kind)]
    files |= {"bidir_seq2seq/py.typed", *(f"bidir_seq2seq/{path.relative_to(package).as_posix()}" for path in others)}
    assert {name for name in names if name.startswith("bidir_seq2seq/")} == files


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The programs of a new environment that has the wheel and, beside it, the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    asks = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = _output(programs / "python", "-c", asks).strip()
    # Not the checkout, even if it is installed here: such a file's own .pth files are not read.
    libraries = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    Path(place, "libraries.pth").write_text("\n".join(libraries))
    pip = ["-m", "pip", "--python", programs / "python", "install", "--no-deps", "--no-index", "--force-reinstall"]
    _output(sys.executable, *pip, wheel)
    return programs


def _output(*command, cwd: Path | None = None) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(list(map(str, command)), env=env, cwd=cwd, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.e2e
def test_the_wheel_alone_trains_and_writes_titles(installed, tmp_path):
    where = _output(installed / "python", "-c", "import bidir_seq2seq; print(bidir_seq2seq.__file__)", cwd=tmp_path)
    assert installed.parent in Path(where.strip()).parents
    command = installed / "bidir-seq2seq"
    help_page = _output(command, "--help", cwd=tmp_path)
    assert all(name in help_page for name in cli.COMMANDS)
    pairs = [{"document": f"{word} {word[::-1]}", "title": word} for word in ("abc", "bcd", "cde", "dab") * 5]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    _output(
        command, "train", "--train_file", "pairs.jsonl", "--output_dir", "model", "--min_frequency", "1",
        "--embedding_size", "8", "--hidden_size", "8", "--max_steps", "2", "--use_cpu", cwd=tmp_path,
    )  # fmt: skip
    flags = ["--model_name_or_path", "model", "--text", "abc", "--min_new_tokens", "2"]
    assert _output(command, "generate", *flags, cwd=tmp_path).strip()


@pytest.mark.e2e
def test_torch_and_transformers_are_enough_to_write_titles(installed, checkpoint, tmp_path):
    # As if nothing that the extras install were there.
    program = f"""
import sys
sys.modules.update(dict.fromkeys({(*HEAVY, "accelerate", "h5py", "jinja2", "pandas", "peft")}))
from bidir_seq2seq.commands.generate import main
main(["--model_name_or_path", {str(checkpoint)!r}, "--text", "abcdef"])
"""
    assert _output(installed / "python", "-c", program, cwd=tmp_path).strip()


@pytest.mark.e2e
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


@pytest.mark.e2e
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
