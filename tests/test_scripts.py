"""The scripts as a user runs them, on a tiny model."""

import io
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from transformers import AutoModelForSeq2SeqLM

from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.commands.generate import Documents, GenerateArguments, as_lines
from bidir_seq2seq.titles import Title
from bidir_seq2seq.tokenization import build_char_tokenizer
from bidir_seq2seq.training import DataArguments, ModelArguments, TrainingArguments

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs a script in this process, which has the slow imports behind it, and returns what it printed."""

    def run(name: str, *args, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = build_char_tokenizer(["abcdefgh"], min_frequency=1)
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.max_length = 8
    model.generation_config.num_beams = 2
    model.generation_config.min_length = 4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_generate_reads_lines_and_keeps_them_in_place(script, checkpoint, tmp_path):
    (tmp_path / "documents.txt").write_text("abc\n\nfedcba\n", encoding="utf-8")
    script(
        "generate", "--model_name_or_path", checkpoint, "--input_file", tmp_path / "documents.txt",
        "--output_file", tmp_path / "titles.txt",
    )  # fmt: skip
    titles = (tmp_path / "titles.txt").read_text(encoding="utf-8").split("\n")
    assert len(titles) == 4 and titles[0] and titles[1] == "" and titles[2]
    from_stdin = script("generate", "--model_name_or_path", checkpoint, stdin="abc\n\nfedcba\n")
    assert from_stdin.split("\n") == titles
    rows = [{"id": 1, "text": "abc"}, {"id": 2, "text": ""}, {"id": 3, "text": "fedcba"}]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ["--input_file", tmp_path / "documents.jsonl", "--source_column", "text"]
    assert script("generate", "--model_name_or_path", checkpoint, *columns).split("\n") == titles


def test_generate_shows_candidates(script, checkpoint):
    result = script(
        "generate", "--model_name_or_path", checkpoint, "--text", "abc", "--num_beams", 3,
        "--num_return_sequences", 2, "--decoding_direction", "r2l", "--show_details",
    )  # fmt: skip
    candidates = json.loads(result)
    assert len(candidates) == 2
    assert {"text", "score", "direction", "truncated"} == set(candidates[0]) and candidates[0]["direction"] == "r2l"
    assert candidates[0]["score"] >= candidates[1]["score"]


def test_generate_ends_lines_at_line_feeds_only(script, checkpoint, tmp_path):
    content = "\ufeffabc\u2028def\r\nfed\x85cba\x0cabc\n\nfgh\n"
    (tmp_path / "documents.txt").write_bytes(content.encode("utf-8"))
    model = ["--model_name_or_path", checkpoint]
    from_file = script("generate", *model, "--input_file", tmp_path / "documents.txt").split("\n")
    assert len(from_file) == 5 and from_file[2] == "" and from_file[4] == ""
    assert script("generate", *model, stdin=content).split("\n") == from_file
    assert script("generate", *model, "--text", "abc\u2028def").split("\n")[0] == from_file[0]


def test_standard_input_of_a_process_ends_lines_likewise(monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO("\ufeffa\rb\u2028c\r\n\nd".encode()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert list(Documents(GenerateArguments("model")).texts()) == ["a\rb\u2028c", "", "d"]


def test_generate_writes_as_many_lines_for_every_document(script, checkpoint, tmp_path):
    (tmp_path / "documents.txt").write_text("abc\n\nfed\n", encoding="utf-8")
    command = ["--model_name_or_path", checkpoint, "--input_file", tmp_path / "documents.txt"]
    command += ["--num_beams", 3, "--num_return_sequences", 3]
    lines = script("generate", *command).split("\n")
    assert len(lines) == 10 and lines[3:6] == ["", "", ""] and all(lines[:3]) and all(lines[6:9])
    details = [json.loads(line) for line in script("generate", *command, "--show_details").splitlines()]
    assert len(details) == 3
    assert [candidate["text"] for candidate in details[0]] == lines[:3]
    assert as_lines([Title("a\u2028b\nc")], 3) == ["a b c", "", ""]


def test_generate_chooses_the_column_by_name(script, checkpoint, tmp_path):
    model = ["--model_name_or_path", checkpoint]
    expected = script("generate", *model, "--text", "abc", "007")
    for name, header in (("pairs", "id,highlights,article"), ("documents", "id,note,article")):
        (tmp_path / f"{name}.csv").write_text(f"{header}\n1,x,abc\n2,y,007\n")
        assert script("generate", *model, "--input_file", tmp_path / f"{name}.csv") == expected
    (tmp_path / "numbers.jsonl").write_text('{"id": 17, "words": "abc"}\n')
    with pytest.raises(SystemExit, match="numbers.jsonl: column 'id' does not hold text, but 17; .*--source_column"):
        script("generate", *model, "--input_file", tmp_path / "numbers.jsonl")


def foreign_checkpoint(folder: Path) -> Path:
    """A folder whose configuration names code of its own, which leaves a file behind when it runs."""
    names = {"AutoConfig": "foreign.Config", "AutoModelForSeq2SeqLM": "foreign.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "foreign", "auto_map": names}))
    ran = folder / "ran"
    (folder / "foreign.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n")
    return ran


@pytest.mark.parametrize("name", ["generate", "score"])
def test_code_in_a_checkpoint_is_never_run(script, name, tmp_path):
    ran = foreign_checkpoint(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"source": "abcdef", "target": "abc"}\n')
    flags = ["--test_file", tmp_path / "test.jsonl"] if name == "score" else []
    with pytest.raises(SystemExit, match="trust_remote_code"):
        script(name, "--model_name_or_path", tmp_path, *flags, stdin="y\ny\ny\n")
    assert sys.stdin.tell() == 0, "standard input was read as an answer"
    assert not ran.exists()


def test_scripts_load_the_model_in_the_precision_asked_for(script, checkpoint, tmp_path, monkeypatch):
    loaded = []
    load = AutoModelForSeq2SeqLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForSeq2SeqLM, "from_pretrained", lambda *args, **kw: loaded.append(load(*args, **kw)) or loaded[-1]
    )
    (tmp_path / "test.jsonl").write_text(json.dumps({"document": "abcdef", "title": "abc"}) + "\n")
    for flags in ([], ["--dtype", "bfloat16"]):
        assert script("generate", "--model_name_or_path", checkpoint, "--text", "abcdef", *flags).strip()
        script("score", "--model_name_or_path", checkpoint, "--test_file", tmp_path / "test.jsonl", *flags)
    assert [model.dtype for model, _ in loaded] == [torch.float32] * 2 + [torch.bfloat16] * 2


def test_score_compares_directions_and_files(script, checkpoint, tmp_path):
    rows = [{"document": "abcdef", "title": "abc"}, {"document": "fedcba", "title": "fed"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = script(
        "score", "--model_name_or_path", checkpoint, "--test_file", tmp_path / "test.jsonl",
        "--output_dir", tmp_path / "scores", "--tokenization", "char", "--num_examples", 1,
    )  # fmt: skip
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert list(scores) == ["lead", "l2r", "r2l", "both", "joint"]
    assert scores["lead"]["rougeL"] == 100
    assert "reference  abc" in result
    script(
        "score", "--predictions_file", tmp_path / "scores" / "lead.txt", tmp_path / "scores" / "l2r.txt",
        "--test_file", tmp_path / "test.jsonl", "--tokenization", "char", "--output_dir", tmp_path / "again",
    )  # fmt: skip
    rescored = json.loads((tmp_path / "again" / "scores.json").read_text())
    assert rescored["l2r"]["rougeL"] == pytest.approx(scores["l2r"]["rougeL"])


def test_predictions_must_be_as_many_as_references(script, tmp_path):
    rows = [{"source": "abc", "target": "a b"}, {"source": "abc", "target": "c d"}, {"source": "abc", "target": "e f"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = tmp_path / "mine.txt"

    def rouge(content: str, *flags) -> float:
        mine.write_bytes(content.encode("utf-8"))
        script(
            "score", "--predictions_file", mine, "--test_file", tmp_path / "test.jsonl", "--tokenization", "word",
            "--output_dir", tmp_path / "scores", *flags,
        )  # fmt: skip
        return json.loads((tmp_path / "scores" / "scores.json").read_text())["mine"]["rouge1"]

    assert rouge("a b\nc d\ne f\n") == rouge("a b\r\nc d\r\ne f") == rouge("a\u2028b\nc\x0cd\ne f\n") == 100
    assert rouge("a b\nx\nx\n", "--max_samples", 1) == rouge("a b\n", "--max_samples", 1) == 100
    for content, number in (("a b\nc d\n", 2), ("a b\nc d\ne f\n\n", 4), ("", 0)):
        with pytest.raises(SystemExit, match=f"mine.txt: {number} lines for 3 references"):
            rouge(content)
    with pytest.raises(SystemExit, match=r"mine.txt: 2 lines for 1 \(max_samples\) or all 3 references"):
        rouge("a b\nc d\n", "--max_samples", 1)


@pytest.mark.parametrize("name", ["train", "generate", "score", "check_data", "push_to_hub"])
def test_help_explains(script, name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        script(name, "--help")
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    command = {
        "push_to_hub": "bidir-seq2seq push",
        "check_data": "bidir-seq2seq check",
    }
    assert command.get(name, f"bidir-seq2seq {name}") in text and "(default: " in text


def test_settings_may_stand_in_a_file(tmp_path):
    (tmp_path / "run.yaml").write_text("train_file: a.jsonl\nhidden_size: 64\nlearning_rate: 0.002\nuse_cpu: true\n")
    types = (ModelArguments, DataArguments, TrainingArguments)
    model, data, training = parse_arguments(*types, description="", args=[str(tmp_path / "run.yaml")])
    assert (model.hidden_size, data.train_file, training.learning_rate) == (64, ["a.jsonl"], 0.002)
    (tmp_path / "run.json").write_text('{"hidden_sise": 64}')
    with pytest.raises(ValueError, match="hidden_sise"):
        parse_arguments(*types, description="", args=[str(tmp_path / "run.json")])
