import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_model
from datasets import Dataset, DatasetDict

from bidir_seq2seq.commands.score import main, read_predictions
from bidir_seq2seq.evaluation import (
    available_systems,
    format_table,
    listed_references,
    load_test_pairs,
    predict,
    score,
)
from bidir_seq2seq.tokenization import build_char_tokenizer

SOURCES = Path(__file__).parents[1] / "src"
PAIRS = Dataset.from_dict({"source": ["abcdef", "fedcba", "abba"], "target": ["abc", "fed", "ab"]})


def test_every_system_is_predicted_and_scored():
    tokenizer = build_char_tokenizer(["abcdef"], min_frequency=1)
    model = tiny_model(vocab_size=len(tokenizer))
    systems = available_systems(model)
    assert systems == ["lead", "l2r", "r2l", "both", "joint"]
    predictions = predict(
        model, tokenizer, PAIRS, systems, tokenization="char", progress=False, num_beams=2, max_new_tokens=4
    )
    # The mean reference has 8/3 characters.
    assert predictions["lead"] == ["abc", "fed", "abb"]
    results = score(predictions, PAIRS["target"], tokenization="char")
    assert results["lead"]["rougeL"] > 90 and "rougeL_p_value" in results["joint"]
    table = format_table(results).splitlines()
    assert [line.split()[0] for line in table[1:]] == systems and "against lead" in table[0]


def test_a_consensus_is_scored_when_it_is_asked_for():
    tokenizer = build_char_tokenizer(["abcdef"], min_frequency=1)
    model = tiny_model(vocab_size=len(tokenizer))
    settings = {"tokenization": "char", "progress": False, "num_beams": 2, "max_new_tokens": 4}
    written = predict(model, tokenizer, PAIRS, ["lead", "consensus"], **settings)
    inputs = tokenizer(list(PAIRS["source"]), padding=True, return_tensors="pt")
    asked = {"num_beams": 2, "max_new_tokens": 4, "proposals": "l2r+r2l+drawn+spliced", "ranking": "consensus"}
    expected = tokenizer.batch_decode(model.generate(**inputs, **asked), skip_special_tokens=True)
    assert written["consensus"] == expected
    # One direction draws by itself.
    model = tiny_model(vocab_size=len(tokenizer), decoder_directions="l2r")
    written = predict(model, tokenizer, PAIRS, ["lead", "consensus"], **settings)
    asked["proposals"] = "l2r+drawn+spliced"
    expected = tokenizer.batch_decode(model.generate(**inputs, **asked), skip_special_tokens=True)
    assert written["consensus"] == expected
    with pytest.raises(ValueError, match="system 'consensus' is not among"):
        predict(tiny_model(twin_dropout=0.0), None, PAIRS, ["consensus"])


def test_what_a_model_cannot_run_is_not_offered():
    assert available_systems(tiny_model(decoder_directions="r2l")) == ["lead", "r2l"]
    assert "joint" not in available_systems(tiny_model(twin_dropout=0.0))
    with pytest.raises(ValueError, match="system 'r2l' is not among"):
        predict(tiny_model(decoder_directions="l2r"), None, PAIRS, ["r2l"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = build_char_tokenizer(["abcdefgh"], min_frequency=1)
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.update(max_length=8, num_beams=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_split_that_is_meant_is_read(tmp_path):
    splits = {
        name: Dataset.from_list([{"source": "a", "target": name}] * 2) for name in ("train", "validation", "test")
    }
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    for columns in (None, ["target"]):
        for split, name in ((None, "test"), ("validation", "validation")):
            found = load_test_pairs(str(tmp_path / "saved"), None, columns, **({"split": split} if split else {}))
            assert found["target"] == [name] * 2


def test_titles_are_read_from_the_column_that_holds_them(tmp_path):
    rows = [
        {"text": "a b", "title": "c", "generated_title": name, "generated_candidates": [{"text": name}]}
        for name in "xy"
    ]
    assert read_predictions(write_rows(tmp_path / "rows.jsonl", rows), 2, 2) == ["x", "y"]
    assert read_predictions(write_rows(tmp_path / "row.jsonl", rows[:1]), 2, 1) == ["x"]
    assert read_predictions(write_rows(tmp_path / "only.jsonl", [{"title": "x"}, {"title": None}]), 2, 2) == ["x", ""]
    with pytest.raises(
        ValueError, match="line 2 column 'title' does not hold text, but 3; write it in quotation marks$"
    ):
        read_predictions(write_rows(tmp_path / "number.jsonl", [{"title": "x"}, {"title": 3}]), 2, 2)
    with pytest.raises(ValueError, match=r"which of the columns \['text', 'title'\] holds the titles"):
        read_predictions(write_rows(tmp_path / "other.jsonl", [{"text": "a b", "title": "c"}]), 1, 1)


def test_references_come_from_several_columns_or_from_lists(tmp_path):
    rows = [
        {"letters": "A B", "first": "AE B", "second": "EY B", "all": ["AE B", "EY B"]},
        {"letters": "C", "first": "S", "second": "", "all": ["S"]},
    ]
    path = write_rows(tmp_path / "test.jsonl", rows)
    expected = [["AE B", "EY B"], ["S"]]
    assert listed_references(load_test_pairs(path, "letters", ["first", "second"])) == expected
    assert listed_references(load_test_pairs(path, "letters", ["all"])) == expected
    one = load_test_pairs(path, "letters", ["second"])
    assert listed_references(one) == [["EY B"], [""]] and one["source"] == ["A B", "C"]
    with pytest.raises(ValueError, match="target_column='third' is not among its columns"):
        load_test_pairs(path, "letters", ["first", "third"])
    # Said or not, a list is one of references.
    pairs = [{"source": row["letters"], "target": row["all"]} for row in rows]
    path_of_lists = write_rows(tmp_path / "lists.jsonl", pairs)
    assert listed_references(load_test_pairs(path_of_lists)) == expected
    with pytest.raises(ValueError, match="line 3 column 'source' does not hold text, but 3"):
        load_test_pairs(write_rows(tmp_path / "bad.jsonl", [*pairs, {"source": 3, "target": ["S"]}]))
    (tmp_path / "mine.txt").write_text("EY B\nZ\n")
    flags = ["--test_file", path, "--source_column", "letters", "--predictions_file", str(tmp_path / "mine.txt")]
    flags += ["--target_column", "first", "second", "--metrics", "rougeL", "wer", "per"]
    main([*flags, "--output_dir", str(tmp_path / "scores")])
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())["mine"]
    assert scores["wer"] == 50 and scores["per"] == pytest.approx(100 / 3) and scores["rougeL"] == 50


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match="unknown metric 'meteor'; choose among rouge1"):
        score({"mine": ["a"]}, ["a"], metrics=["meteor"])


def test_a_table_has_the_metrics_asked_for():
    results = score({"mine": ["a b"]}, ["a b"], metrics=["rougeL", "per"])
    assert format_table(results, ["rougeL", "per"]).split()[:3] == ["system", "rougeL", "per"]
    assert results["mine"]["rougeL_interval_low"] == results["mine"]["rougeL_interval_high"] == 100


@pytest.mark.e2e
def test_two_processes_score_what_one_does(checkpoint, tmp_path):
    # Odd numbers, and a process with nothing to do.
    numbers = (5, 1)
    for number in numbers:
        rows = [{"source": "abcdefgh"[index:], "target": "abcdefgh"[index : index + 3]} for index in range(number)]
        write_rows(tmp_path / f"{number}.jsonl", rows)

    def flags(number: int, place: str) -> list[str]:
        files = ["--test_file", str(tmp_path / f"{number}.jsonl"), "--output_dir", str(tmp_path / f"{place}{number}")]
        return ["--model_name_or_path", str(checkpoint), *files]

    program = tmp_path / "program.py"
    calls = [f"main({flags(number, 'two')!r})\n" for number in numbers]
    program.write_text("from bidir_seq2seq.commands.score import main\n" + "".join(calls))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, str(program)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # The table is printed by one of them.
    assert done.stdout.count("rougeL") == len(numbers)
    for number in numbers:
        main(flags(number, "one"))
        one, two = (read_rows(tmp_path / f"{place}{number}" / "pairs.jsonl") for place in ("one", "two"))
        assert [row["id"] for row in two] == list(range(number))
        for row, expected in zip(two, one):
            for name, title in expected.pop("titles").items():
                # Sums differ in their last bits with the documents that share a batch.
                assert row["titles"][name] == pytest.approx(title, abs=1e-4)
            row.pop("titles")
        assert one == two
