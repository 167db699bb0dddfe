import json

import pytest
from datasets import Dataset

from bidir_seq2seq.data import encode_pairs, load_pairs
from bidir_seq2seq.tokenization import build_char_tokenizer

ROWS = [{"article": "abcdef", "title": "abc", "id": "1"}, {"article": "fedcba", "title": "fed", "id": "2"}]


@pytest.fixture(scope="module")
def tokenizer():
    return build_char_tokenizer(["abcdefgh"], min_frequency=1)


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("extension", ["jsonl", "csv", "tsv"])
def test_files_are_loaded_by_extension_and_column(extension, tmp_path):
    path = write(tmp_path / f"train.{extension}", ROWS)
    pairs = load_pairs({"train": path, "validation": None}, cache_dir=str(tmp_path))
    assert list(pairs) == ["train"]
    assert pairs["train"].to_list() == [
        {"source": "abcdef", "target": "abc"},
        {"source": "fedcba", "target": "fed"},
    ]
    swapped = load_pairs({"train": path}, source_column="title", target_column="article", cache_dir=str(tmp_path))
    assert swapped["train"][0] == {"source": "abc", "target": "abcdef"}


def test_a_local_dataset_folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder / "train.jsonl", ROWS)
    write(folder / "test.jsonl", ROWS[:1])
    pairs = load_pairs(dataset_name=str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in pairs.items()} == {"train": 2, "test": 1}


def test_a_missing_column_is_answered_with_what_there_is(tmp_path):
    path = write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"target_column='titel' is not among its columns .* did you mean 'title'\?"):
        load_pairs({"train": path}, target_column="titel", cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="both 'title'"):
        load_pairs({"train": path}, source_column="title", target_column="title", cache_dir=str(tmp_path))
    one = write(tmp_path / "one.jsonl", [{"text": "abc"}])
    with pytest.raises(ValueError, match="only \\['text'\\]"):
        load_pairs({"train": one}, cache_dir=str(tmp_path))


def test_files_that_cannot_be_loaded(tmp_path):
    with pytest.raises(ValueError, match="unknown file type .xlsx"):
        load_pairs({"train": "pairs.xlsx"})
    with pytest.raises(ValueError, match="either data files"):
        load_pairs({})
    with pytest.raises(FileNotFoundError):
        load_pairs({"train": str(tmp_path / "absent.jsonl")})


def encode(tokenizer, sources, targets, max_source_length=8, max_target_length=5):
    pairs = Dataset.from_dict({"source": sources, "target": targets})
    return encode_pairs(pairs, tokenizer, max_source_length, max_target_length)


def test_encoding_ends_sources_and_targets(tokenizer):
    encoded, report = encode(tokenizer, ["abc"], ["ab"])
    assert encoded[0]["input_ids"][-1] == 3 and len(encoded[0]["input_ids"]) == 4
    assert encoded[0]["labels"] == [*encoded[0]["input_ids"][:2], 3]
    assert encoded[0]["attention_mask"] == [1] * 4 and encoded[0]["length"] == 4
    assert str(report) == "pairs 1"


def test_rows_with_an_empty_side_are_dropped_and_counted(tokenizer):
    encoded, report = encode(tokenizer, ["abc", "", " \n", None, "abc", "xyz"], ["ab", "a", "a", "a", "", "a"])
    assert len(encoded) == report.pairs == 2
    assert (report.empty_source, report.empty_target) == (3, 1)
    assert report.unknown_rate > 0
    assert "empty source 3" in str(report)


def test_long_sides_are_cut_before_the_end(tokenizer):
    encoded, report = encode(tokenizer, ["abcdefgh" * 3], ["abcdefgh"])
    whole = tokenizer("abcdefgh").input_ids
    assert encoded[0]["input_ids"] == [*whole[:7], 3]
    assert encoded[0]["labels"] == [*whole[:4], 3]
    assert (report.cut_source, report.cut_target) == (1, 1)
    fits, report = encode(tokenizer, ["abcdefg"], ["abcd"])
    assert len(fits[0]["input_ids"]) == 8 and len(fits[0]["labels"]) == 5
    assert (report.cut_source, report.cut_target) == (0, 0)


def test_a_tokenizer_that_adds_no_end_gets_one_on_targets(tokenizer):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.backend_tokenizer.__class__.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    bare = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", bos_token="[START]", eos_token="[END]"
    )
    encoded, _ = encode(bare, ["abc"], ["abcdefgh"])
    assert 3 not in encoded[0]["input_ids"] and encoded[0]["labels"][-1] == 3 and len(encoded[0]["labels"]) == 5


def test_a_literal_end_token_does_not_end_a_target(tokenizer):
    encoded, _ = encode(tokenizer, ["abc"], ["a[END]b"], max_target_length=20)
    assert encoded[0]["labels"].count(3) == 1


def test_what_is_not_text_is_named():
    tokenizer = build_char_tokenizer(["123abc"], min_frequency=1)
    with pytest.raises(ValueError, match="row 1: target is 5"):
        encode_pairs(Dataset.from_dict({"source": ["a", "b"], "target": [None, 5]}), tokenizer, 8, 8)


def test_nothing_left_and_no_room(tokenizer):
    with pytest.raises(ValueError, match="no pair with text on both sides is left of 2: .*empty source 2"):
        encode(tokenizer, ["", ""], ["a", "b"])
    with pytest.raises(ValueError, match="max_target_length=1"):
        encode(tokenizer, ["a"], ["b"], max_target_length=1)
