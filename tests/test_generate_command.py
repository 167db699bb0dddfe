"""`generate` on long files: in order, as a stream, through kills, in several processes, from and into any format."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pyarrow
import pytest
import torch
from conftest import tiny_model
from pyarrow import parquet

from bidir_seq2seq.commands import workers
from bidir_seq2seq.commands.generate import main
from bidir_seq2seq.loading import load_model_and_tokenizer
from bidir_seq2seq.ranking_bidir_seq2seq import RANKING_RULES
from bidir_seq2seq.titles import write_titles
from bidir_seq2seq.tokenization import build_char_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = build_char_tokenizer(["abcdefgh"], min_frequency=1, model_max_length=20)
    torch.manual_seed(0)
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.update(max_length=8, min_length=4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("abcdefgh", k=draw.randint(0, 30))) for _ in range(200)]


@pytest.fixture
def generate(checkpoint, tmp_path, capsys):
    def run(documents, output="titles.txt", *flags) -> list[str]:
        path = documents
        if isinstance(documents, list):
            path = tmp_path / "documents.txt"
            path.write_text("".join(f"{document}\n" for document in documents), encoding="utf-8")
        output = str(tmp_path / output)
        # Windows of 64 documents.
        main(command(checkpoint, path, output, *flags))
        return Path(output).read_text(encoding="utf-8").split("\n")[:-1]

    return run


def command(checkpoint, path, output, *flags) -> list[str]:
    flags = ["--model_name_or_path", checkpoint, "--input_file", path, "--output_file", output, *flags]
    return [str(flag) for flag in ("--batch_size", 2, "--device", "cpu", *flags)]


@pytest.mark.e2e
@pytest.mark.parametrize("flags", [[], ["--num_beams", 3], ["--decoding_direction", "r2l"]], ids=str)
def test_batches_and_windows_change_nothing(generate, documents, flags):
    alone = [generate([document], "one.txt", *flags, "--batch_size", 1) for document in documents[:6]]
    together = generate(documents, "titles.txt", *flags)
    assert [[title] for title in together[:6]] == alone
    assert together == generate(documents, "others.txt", *flags, "--batch_size", 7)
    assert len(together) == 200 and len(set(together)) > 3
    assert [not title for title in together] == [not document for document in documents]


@pytest.mark.e2e
@pytest.mark.parametrize("sampled", [[], ["--do_sample", "--decoding_direction", "l2r"]], ids=["search", "sample"])
def test_it_goes_on_after_a_kill_to_the_same_file(generate, documents, tmp_path, monkeypatch, sampled):
    whole = generate(documents, "whole.txt", *sampled)
    read = []

    def dies(*args, original=json.dumps, **kwargs):
        read.append(1)
        if len(read) == 150:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    flags = ["--show_details", *sampled]
    details = generate(documents, "details.txt", *flags)
    with monkeypatch.context() as patch:
        patch.setattr("bidir_seq2seq.commands.generate.json.dumps", dies)
        with pytest.raises(KeyboardInterrupt):
            generate(documents, "titles.txt", *flags)
    partial = tmp_path / "titles.txt.partial"
    assert partial.read_text().count("\n") == 128
    with open(partial, "ab") as file:
        file.write(b'[{"text": "to')
    assert generate(documents, "titles.txt", *flags, "--resume") == details
    assert [json.loads(line)[0]["text"] for line in details] == whole
    assert generate(documents, "titles.txt", *flags, "--resume") == details


def test_resume_refuses_other_settings_and_another_input(generate, documents, tmp_path):
    generate(documents[:70])
    os.rename(tmp_path / "titles.txt", tmp_path / "titles.txt.partial")
    (tmp_path / "titles.txt.partial.json").write_text('{"num_beams": 3}')
    with pytest.raises(ValueError, match="num_beams was 3 and is None"):
        generate(documents, "titles.txt", "--resume")
    with pytest.raises(ValueError, match="input was None and is '"):
        generate(documents[:70], "titles.txt", "--resume")


@pytest.mark.e2e
def test_a_killed_process_leaves_what_it_wrote(checkpoint, documents, generate, tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("".join(f"{document}\n" for document in documents * 4), encoding="utf-8")
    partial = tmp_path / "titles.txt.partial"
    program = ["-m", "bidir_seq2seq", "generate", *command(checkpoint, path, tmp_path / "titles.txt")]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, *program], env=env, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not partial.exists() or partial.stat().st_size == 0):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = partial.read_bytes()
    assert 64 <= before.count(b"\n") < 800
    titles = generate(path, "titles.txt", "--resume")
    assert "\n".join(titles).startswith(before.decode()[:-1]) and len(titles) == 800
    assert titles == generate(path, "whole.txt")


@pytest.mark.e2e
def test_processes_share_the_documents_in_order(generate, documents):
    flags = ["--do_sample", "--decoding_direction", "l2r", "--seed", "3"]
    shared = generate(documents, "shared.txt", *flags, "--num_processes", "2")
    assert shared == generate(documents, "titles.txt", *flags)


def test_a_process_that_cannot_load_says_why(checkpoint, monkeypatch):
    monkeypatch.setattr(workers, "_loaded", {})
    workers._load(checkpoint, "auto", "cuda:99", False, 2, get_context("spawn").Value("i", 0))
    with pytest.raises(ValueError, match="device='cuda:99' cannot be used"):
        workers._write(["abc"], False, None, 2, {})


def test_json_lines_keep_the_rows(generate, tmp_path):
    rows = [{"id": 1, "text": "abc", "title": "x", "more": {"a": [1]}}, {"text": None}, {"id": 3, "text": "fed"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    titles = generate(tmp_path / "a.jsonl", "titles.txt")
    written = [json.loads(line) for line in generate(tmp_path / "a.jsonl", "out.jsonl", "--num_beams", 1)]
    for row, line, title in zip(rows, written, titles):
        candidates = line.pop("generated_candidates")
        assert line.pop("generated_title") == candidates[0]["text"] == title
        assert set(candidates[0]) == {"text", "score", "direction", "truncated"}
        assert line == row
    best = generate(tmp_path / "a.jsonl", "n.jsonl", "--num_beams", 3, "--num_return_sequences", 3)
    assert [len(json.loads(line)["generated_candidates"]) for line in best] == [3, 1, 3]


def test_candidates_are_ranked_by_the_rule_or_the_weights_asked_for(generate, documents, checkpoint):
    flags = ["--num_beams", 3, "--num_return_sequences", 3]
    weights = '{"consensus": 1, "l2r": 0.1, "r2l": -0.2}'
    rows = {
        rule: [json.loads(line) for line in generate(documents[:40], f"{i}.jsonl", *flags, "--ranking", rule)]
        for i, rule in enumerate([*RANKING_RULES, weights])
    }
    model, tokenizer = load_model_and_tokenizer(checkpoint, device="cpu")
    for rule, written in rows.items():
        ranking = json.loads(rule) if rule == weights else rule
        expected = write_titles(model, tokenizer, documents[:40], num_beams=3, num_return_sequences=3, ranking=ranking)
        for row, titles in zip(written, expected):
            candidates = row["generated_candidates"]
            assert [candidate["text"] for candidate in candidates] == [title.text for title in titles]
            assert [c["score"] for c in candidates] == [t.score and pytest.approx(t.score, abs=1e-5) for t in titles]
    assert rows["own"] != rows["joint"] and rows[weights] not in [rows[rule] for rule in RANKING_RULES]
    by_flag = generate(documents[:40], "flag.jsonl", *flags, "--joint_rescoring", "true")
    assert [json.loads(line) for line in by_flag] == rows["joint"]
    with pytest.raises(ValueError, match="ranking='own' disagrees with joint_rescoring=True"):
        generate(documents[:2], "both.jsonl", "--ranking", "own", "--joint_rescoring", "true")


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ("fair", "ranking='fair' must be one of own, joint, consensus, or weights of features"),
        ('{"l2r": 1, "fair": 1}', "'fair' must be one of own, l2r, r2l, consensus, length"),
        ('{"l2r": "much"}', "the weight of 'l2r' must be a number"),
        ("{'l2r': 1}", r"ranking=\"\{'l2r': 1\}\" is no JSON .*: write weights as '\{\"consensus\": 1, "),
    ],
)
def test_a_ranking_that_is_none_is_refused_before_anything_is_loaded(ranking, message, monkeypatch):
    monkeypatch.setattr("bidir_seq2seq.commands.generate.load_model_and_tokenizer", None)
    with pytest.raises(ValueError, match=message):
        main(["--model_name_or_path", "none", "--text", "abc", "--ranking", ranking])


def test_any_format_may_be_read(generate, tmp_path):
    texts = ["abc", "007", "fed"]
    expected = generate(texts)
    (tmp_path / "a.csv").write_bytes(
        "id;Text;Remarque\n1;abc;été\n2;007;déjà là, là où ça a été\n3;fed;très gênés\n".encode("cp1252")
    )
    assert generate(tmp_path / "a.csv") == expected
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": texts}), tmp_path / "a.parquet")
    assert generate(tmp_path / "a.parquet") == expected
    for number, text in enumerate(texts):
        (tmp_path / f"part{number}.txt").write_text(text)
    assert generate(tmp_path / "part*.txt") == expected


def test_a_row_that_cannot_be_read_keeps_its_place(generate, tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n{"text": 5}\n{"te\n{"text": "fed"}\n')
    with pytest.raises(ValueError, match="a.jsonl: line 2 column 'text' does not hold text, but 5"):
        generate(tmp_path / "a.jsonl")
    titles = generate(tmp_path / "a.jsonl", "titles.txt", "--on_bad_rows", "skip")
    assert titles[1:3] == ["", ""] and [titles[0], titles[3]] == generate(["abc", "fed"])
    kept = [json.loads(line) for line in generate(tmp_path / "a.jsonl", "out.jsonl", "--on_bad_rows", "skip")]
    assert "does not hold text" in kept[1]["problem"] and "line 3 is not JSON" in kept[2]["problem"]
    assert kept[3]["text"] == "fed"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes", 0], "num_processes=0"),
        (["--num_return_sequences", 0], "num_return_sequences=0"),
        (["--batch_size", 0], "batch_size=0"),
        (["--device", "cuda:99"], "device='cuda:99' cannot be used: .*--device cpu"),
        (["--text", "abc"], "either text or input_file"),
        (["--source_column", "absent"], "source_column='absent' is not among"),
    ],
)
def test_what_cannot_be_done_is_refused(generate, flags, message):
    with pytest.raises(ValueError, match=message):
        generate(["abc"], "titles.txt", *flags)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.json", "t.parquet", "t.jsonl.gz", "t.txt.zst"])
def test_a_name_that_others_would_read_as_something_else_is_refused(generate, name):
    with pytest.raises(ValueError, match=f"output_file='.*{name}': titles are written as lines, or as rows of .jsonl"):
        generate(["abc"], name)


def test_outputs_without_a_folder_resume_without_a_file_and_torchrun(generate, checkpoint, monkeypatch):
    with pytest.raises(ValueError, match="there is no folder"):
        generate(["abc"], "absent/titles.txt")
    with pytest.raises(ValueError, match="resume goes on with an output_file"):
        main(["--model_name_or_path", checkpoint, "--text", "abc", "--resume"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--num_processes N"):
        generate(["abc"])
