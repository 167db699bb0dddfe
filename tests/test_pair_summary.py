"""What pairs look like: counted right, shown by `check`, said by training's first lines."""

import json

import pytest
from datasets import Dataset

from bidir_seq2seq.commands.check_data import main
from bidir_seq2seq.pair_summary import log_summaries, shorten, summarize_pairs, taken_share
from bidir_seq2seq.tokenization import build_char_tokenizer

TRAIN = [("abc", "a"), ("abcdef", "ab"), ("abc", "a"), ("abc", "x"), ("", "c"), ("d", None), ("a" * 10, "b")]
TEST = [("abc", "a"), ("abcdef", "other"), ("new", "n")]


def as_dataset(rows) -> Dataset:
    return Dataset.from_dict({"source": [row[0] for row in rows], "target": [row[1] for row in rows]})


@pytest.fixture(scope="module")
def tokenizer():
    return build_char_tokenizer(["abcdef"], min_frequency=1)


def test_pairs_are_counted(monkeypatch):
    whole = summarize_pairs(as_dataset(TRAIN))
    assert (whole.pairs, whole.empty, whole.repeated, whole.unit, whole.unknown) == (7, 2, 1, "characters", None)
    # Of lengths 0, 1, 3, 3, 3, 6, 10 half of the pairs have at most 3.
    assert whole.source_lengths == [3, 10, 10, 10] and whole.target_lengths == [1, 2, 2, 2]
    monkeypatch.setattr("bidir_seq2seq.pair_summary.BATCH", 2)
    assert str(summarize_pairs(as_dataset(TRAIN))) == str(whole)
    assert summarize_pairs(as_dataset(TRAIN)).source_lengths == whole.source_lengths
    with pytest.raises(ValueError, match="no pairs"):
        summarize_pairs(as_dataset([]))


def test_splits_are_compared():
    train, test = (summarize_pairs(as_dataset(rows)) for rows in (TRAIN, TEST))
    assert test.shared_pairs(train) == 1 and test.shared_sources(train) == 2
    # Two texts put together are not one pair of others.
    one, other = (summarize_pairs(as_dataset([pair])) for pair in (("ab", "c"), ("a", "bc")))
    assert one.shared_pairs(other) == 0


def test_a_tokenizer_counts_tokens_cuts_and_unknown_ones(tokenizer):
    summary = summarize_pairs(as_dataset([("abcdef", "ab"), ("xyz", "a")]), tokenizer, 5, 3)
    # With their end tokens: 7 and 4, 3 and 2.
    assert summary.unit == "tokens" and summary.source_lengths[-1] == 7 and summary.target_lengths[-1] == 3
    assert (summary.cut_source, summary.cut_target) == (1, 0)
    assert summary.unknown == 3 / 16


def test_what_is_taken_from_a_source_is_more_than_from_another(tokenizer):
    # Of 4 tokens 3 stand in their own source, and the "a" in the other one, too.
    assert taken_share(["abc", "ade"], ["ab", "ef"], tokenizer) == (3 - 1) / 4
    # Letters that all texts have are taken from none.
    assert taken_share(["ab", "ba"], ["a", "b"], tokenizer) == 0
    # Those outside the vocabulary are told apart.
    assert taken_share(["abx", "abY"], ["x", "y"], tokenizer) == 1
    assert taken_share(["abx", None], ["z", None], tokenizer) == 0
    assert taken_share(["abc", "d"], ["", ""], tokenizer) == 0
    with pytest.raises(ValueError, match="1 pairs have no other one"):
        taken_share(["abc"], ["a"], tokenizer)


def write(path, rows):
    path.write_text("".join(json.dumps({"text": a, "title": b}) + "\n" for a, b in rows), encoding="utf-8")
    return str(path)


def test_check_shows_what_was_understood(tmp_path, capsys, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    train = write(tmp_path / "train.jsonl", TRAIN)
    with open(train, "a", encoding="utf-8") as file:
        file.write('{"text": 5}\n')
    files = ["--train_file", train, "--test_file", write(tmp_path / "test.jsonl", TEST)]
    main([*files, "--tokenizer_name", str(tmp_path / "tokenizer"), "--max_source_length", "5"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 7 pairs, 2 with an empty side, 1 repeated"
    assert lines[1].startswith("  source length in tokens: half up to 4, ") and lines[1].endswith("all 11")
    assert lines[3].startswith("  cut: 28.6% of sources (above 5), 0.0% of targets (above 64); unknown tokens: ")
    assert lines[4:8] == ["  source  abc", "  target  a", "  source  abcdef", "  target  ab"]
    assert lines[-1] == "train and test: 1 pairs and 2 sources in common"
    with pytest.raises(ValueError, match="line 8 column 'text' does not hold text, but 5"):
        main([*files, "--on_bad_rows", "error"])


def test_parallel_files_are_checked_too(tmp_path, capsys):
    (tmp_path / "c.en").write_text("a b\nc\n")
    (tmp_path / "c.de").write_text("x\ny\n")
    main(["--train_file", str(tmp_path / "c.en"), str(tmp_path / "c.de"), "--num_examples", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 2 pairs, 0 with an empty side, 0 repeated"
    assert lines[3:] == ["  source  a b", "  target  x"]


def test_training_says_it_shortly(monkeypatch):
    said = []
    monkeypatch.setattr("bidir_seq2seq.pair_summary.logger.warning_once", said.append, raising=False)
    log_summaries({"train": as_dataset(TRAIN), "validation": as_dataset(TEST)})
    assert said[0] == "train: 7 pairs, 2 with an empty side, 1 repeated; the first: 'abc' -> 'a'"
    assert said[2].startswith("validation: 1 of its pairs are in train too")
    assert shorten("a\n b" + "c" * 200) == "a b" + "c" * 94 + "..." and shorten(None) == ""
