import json

import pytest
import torch
from conftest import tiny_model
from datasets import Dataset
from tokenizers import processors

from bidir_seq2seq.data import PairEncoder, encode_pairs, load_pairs
from bidir_seq2seq.tables import open_table
from bidir_seq2seq.tokenization import as_fast_tokenizer, build_char_tokenizer, char_backend, number_of_ids
from bidir_seq2seq.training import ModelArguments, load_or_build_model

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


def save(path, content):
    path.write_bytes(content.encode("utf-8"))
    return str(path)


def load(path, **columns):
    return load_pairs({"train": path}, cache_dir=str(path) + ".cache", **columns)["train"].to_list()


def test_quotation_marks_in_tab_separated_text_are_text(tmp_path):
    content = 'source\ttarget\nfirst a\tone\n"second b\ttwo\nthird c\tthree\nfourth d" e\tfour\nfifth\tfive\n'
    assert load(save(tmp_path / "train.tsv", content)) == [
        {"source": "first a", "target": "one"},
        {"source": '"second b', "target": "two"},
        {"source": "third c", "target": "three"},
        {"source": 'fourth d" e', "target": "four"},
        {"source": "fifth", "target": "five"},
    ]


@pytest.mark.parametrize(("extension", "separator"), [("csv", ","), ("tsv", "\t")])
def test_every_cell_is_text_and_only_an_empty_one_is_empty(extension, separator, tmp_path):
    cells = [("source", "target"), ("NA", "null"), ("None", "nan"), ("007", "1.50"), ("", "true")]
    path = save(tmp_path / f"train.{extension}", "".join(f"{a}{separator}{b}\n" for a, b in cells))
    assert [tuple(row.values()) for row in load(path)] == cells[1:]


@pytest.mark.parametrize("extension", ["csv", "tsv"])
def test_empty_rows_of_one_column_keep_their_place(extension, tmp_path):
    path = save(tmp_path / f"texts.{extension}", "text\nabc\n\n\ndef\n\n")
    assert [row.values["text"] for row in open_table(path)] == ["abc", "", "", "def", ""]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("extension", "separator"), [("csv", ","), ("tsv", "\t")])
def test_rows_end_as_the_lines_of_their_file(line_end, extension, separator, tmp_path):
    lines = [f"source{separator}target", f"a{separator}b", "", f"c{separator}d", ""]
    path = save(tmp_path / f"train.{extension}", line_end.join(lines))
    assert load(path) == [{"source": "a", "target": "b"}, {"source": "c", "target": "d"}]
    lone = save(tmp_path / f"lone.{extension}", f"source{separator}target\na\rb{separator}c\n")
    assert load(lone) == [{"source": "a\rb", "target": "c"}]


def test_a_pattern_of_names_is_still_read(tmp_path):
    for number in (1, 2):
        save(tmp_path / f"part{number}.tsv", f'source\ttarget\n"a{number}\tNA\n')
    rows = load_pairs({"train": str(tmp_path / "part*.tsv")}, cache_dir=str(tmp_path / "cache"))["train"].to_list()
    assert rows == [{"source": '"a1', "target": "NA"}, {"source": '"a2', "target": "NA"}]


def test_a_line_ends_at_a_line_feed_only(tmp_path):
    path = save(tmp_path / "texts.txt", "\ufeffa\u2028b\r\nc\x85d\x0ce\n\nf")
    texts = open_table(path, shape="texts")
    assert [row.values for row in texts] == [{"text": text} for text in ("a\u2028b", "c\x85d\x0ce", "", "f")]
    (tmp_path / "latin.txt").write_bytes(b"abc\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"latin.txt: not UTF-8: byte 0xe9 at position 7 \(line 2\).*iconv"):
        open_table(str(tmp_path / "latin.txt"), shape="texts")


@pytest.fixture
def warned(monkeypatch):
    messages = []
    for module in ("data", "files", "tables"):
        monkeypatch.setattr(f"bidir_seq2seq.{module}.logger.warning_once", messages.append, raising=False)
    return messages


def test_columns_are_taken_by_name_before_place(tmp_path, warned):
    rows = [{"id": 1, "highlights": "abc", "article": "abcdef"}]
    path = write(tmp_path / "train.jsonl", rows)
    assert load(path) == [{"source": "abcdef", "target": "abc"}]
    assert "'article' is taken as the source and 'highlights' as the target" in warned[0]
    warned.clear()
    assert load(path, source_column="highlights", target_column="article")[0]["source"] == "abc"
    assert not warned
    assert load(save(tmp_path / "train.csv", "id,article,highlights\n1,abcdef,abc\n")) == load(path)


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "id,body,head\n17,ab,a\n"), ("a.jsonl", '{"id":17,"body":"ab"}')]
)
def test_numbers_are_not_taken_for_the_source_by_place(name, content, tmp_path):
    with pytest.raises(ValueError, match="train: column 'id' does not hold text, but .?17.?; .*--source_column"):
        load(save(tmp_path / name, content))


@pytest.mark.parametrize("header", ["A storm hit the coast,Storm", "source," + "x" * 41, "我国今天发布新规。,新规"])
def test_a_header_that_looks_like_text_is_pointed_out(header, tmp_path, warned):
    load(save(tmp_path / "train.csv", f"{header}\nabc,a\n"))
    assert any("looks like text" in message and "train.csv" in message for message in warned)


def test_a_header_of_names_is_not_pointed_out(tmp_path, warned):
    load(save(tmp_path / "train.csv", ",正文,标题\nx,abc,a\n"))
    assert not any("looks like text" in message for message in warned)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_found_and_said(separator, tmp_path, warned):
    path = save(
        tmp_path / "train.csv", f'text{separator}title\nHello, world{separator}Hello\n"a{separator}b"{separator}c\n'
    )
    assert load(path) == [{"source": "Hello, world", "target": "Hello"}, {"source": f"a{separator}b", "target": "c"}]
    assert f"read as separated by {separator!r}" in warned[0]


def test_a_semicolon_in_the_only_name_separates_nothing(tmp_path):
    rows = open_table(save(tmp_path / "texts.csv", "text; long\nabc\ndef\n"))
    assert [row.values for row in rows] == [{"text; long": "abc"}, {"text; long": "def"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"source,target\ncaf\xe9,b\n", r"a.csv: not UTF-8: byte 0xe9 at position 17 \(line 2\).*UTF-8"),
        ("a.jsonl", b'{"source": "caf\xe9", "target": "b"}\n', r"a.jsonl: not UTF-8: byte 0xe9 at position 15"),
        ("a.jsonl", b'{"source": "a", "target": "b"}\n{"source": "a", \n', "a.jsonl: line 2 is not JSON.*repair"),
        (
            "a.csv",
            b"source,target\na,b\na,b,c\n",
            "line 3 has 3 fields, its header 2 .*quotation marks.*on_bad_rows",
        ),
        ("a.csv", b"source,target\na,b,c\n", "a.csv: line 2 has 3 fields, its header 2"),
        ("a.csv", b"", "a.csv: the file is empty"),
        ("a.jsonl", b"\n", "a.jsonl: the file is empty"),
        ("a.csv", b"source,target\n", "a.csv: no row follows its header"),
        (
            "a.jsonl",
            b'{"source": "a", "target": "b"}\n{"source": 5, "target": "b"}\n',
            "'source' .* not .* text, but 5",
        ),
    ],
)
def test_a_broken_file_is_answered_with_the_place(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / name))


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


def test_a_title_has_no_start_whatever_the_tokenizer_puts_there():
    plain, starting = (build_char_tokenizer(["abcdef"], min_frequency=1) for _ in range(2))
    starting.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[START] $A [END]", special_tokens=[("[START]", 2), ("[END]", 3)]
    )
    pairs = Dataset.from_dict({"source": ["abc", "fx"], "target": ["ab", "x"]})
    expected, found = (encode_pairs(pairs, x, 9, 4, extend=True)[0] for x in (plain, starting))
    assert found["labels"] == expected["labels"] and found["input_ids"][0] == [2, *expected["input_ids"][0]]
    # transformers' own collator knows nothing of that, so the model does not learn it, either.
    model = tiny_model(vocab_size=len(plain))
    labels = starting(["ab", "x"], padding=True, return_tensors="pt").input_ids
    labels = labels.masked_fill(labels == 0, -100)
    for direction, name in (("l2r", "logits"), ("r2l", "r2l_logits")):
        with_start, without = (model(torch.tensor([[4, 5], [6, 0]]), labels=x)[name] for x in (labels, labels[:, 1:]))
        torch.testing.assert_close(with_start[:, : without.shape[1]], without, msg=direction)
    inputs = torch.tensor([[4, 5], [6, 0]])
    torch.testing.assert_close(model(inputs, labels=labels).loss, model(inputs, labels=labels[:, 1:]).loss)


def test_unknown_words_begin_where_the_model_has_no_more_ids():
    tokenizer = build_char_tokenizer(["abcdef"], min_frequency=1)
    batch = {"source": ["axb"], "target": ["x"]}
    assert PairEncoder(tokenizer, 9, 9, extend=True)(batch)["labels"] == [[len(tokenizer), 3]]
    assert PairEncoder(tokenizer, 9, 9, extend=True, vocab_size=64)(batch)["labels"] == [[64, 3]]


def test_ids_with_holes_are_counted_to_the_last():
    backend = char_backend({"[PAD]": 0, "[UNK]": 1, "[START]": 2, "[END]": 3, "a": 9})
    tokenizer = as_fast_tokenizer(backend, 20)
    assert number_of_ids(tokenizer) == 10 > len(tokenizer)
    assert load_or_build_model(ModelArguments(tokenizer_name="mine"), tokenizer).config.vocab_size == 10
