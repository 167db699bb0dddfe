"""Similar pairs: found as BM25 says, never a document's own, and put behind it."""

import json
import math
import random
from collections import Counter

import pytest

from bidir_seq2seq.commands import retrieve
from bidir_seq2seq.extras import extra
from bidir_seq2seq.pair_memory import PairMemory
from bidir_seq2seq.tables import cell, with_cell

PAIRS = [
    ("the black cat sleeps", "die schwarze Katze schläft"),
    ("the black dog barks", "der schwarze Hund bellt"),
    ("a green parrot", "ein grüner Papagei"),
]


def ngrams(text: str, unit: str, sizes) -> list[tuple[str, ...]]:
    units = text.lower().split() if unit == "word" else list("".join(text.lower().split()))
    rows = {size: ["", *units, ""] if size > 1 else units for size in sizes}
    return [tuple(row[i : i + size]) for size, row in rows.items() for i in range(len(row) - size + 1)]


def bm25(text: str, documents: list[str], unit: str, sizes, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """By the definition, with the idf of Lucene (that of bm25s, if nothing is said)."""
    counts = [Counter(ngrams(document, unit, sizes)) for document in documents]
    mean = sum(count.total() for count in counts) / len(counts)
    scores = []
    for count in counts:
        score = 0.0
        for term in ngrams(text, unit, sizes):
            having = sum(term in other for other in counts)
            idf = math.log(1 + (len(counts) - having + 0.5) / (having + 0.5))
            score += idf * count[term] / (count[term] + k1 * (1 - b + b * count.total() / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("unit", "sizes"), [("word", (1,)), ("word", (1, 2)), ("char", (2, 3))])
def test_neighbors_are_those_of_the_definition(unit, sizes):
    draw = random.Random(0)
    documents = list(
        dict.fromkeys(
            " ".join(draw.choices(["aa", "ab", "b", "ca", "dd", "e"], k=draw.randint(1, 9))) for _ in range(60)
        )
    )
    memory = PairMemory([(text, text.upper()) for text in documents], unit, sizes)
    for text in [*documents[:10], "aa zz b", "E  e\te"]:
        expected = bm25(text, documents, unit, sizes)
        expected = [
            -math.inf if " ".join(text.split()) == other else score for other, score in zip(documents, expected)
        ]
        found = memory.neighbors(text, 5)
        assert [target for _, target in found] == [source.upper() for source, _ in found]
        # Which of two as like it comes first is open.
        scores = [expected[documents.index(source)] for source, _ in found]
        assert scores == pytest.approx(sorted(expected, reverse=True)[:5], abs=1e-5)


def test_a_document_never_finds_its_own_title():
    # A second title of it, blanks that are other ones, and more documents like it than are asked for.
    memory = PairMemory([*PAIRS, ("the black cat  sleeps", "Katzenschlaf"), ("the black cat", "")])
    assert len(memory) == 3
    assert memory.neighbors(" the black\tcat sleeps") == [PAIRS[1]]
    # What has no title is not remembered.
    assert memory.neighbors("the black cat", 5) == [PAIRS[0], PAIRS[1]]


@pytest.mark.parametrize("text", ["", "  ", "quite different words", "中文"])
@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 9)])
def test_what_is_like_nothing_stays_as_it_is(text, sizes):
    memory = PairMemory(PAIRS, ngram_sizes=sizes)
    assert memory.neighbors(text) == [] and memory.extend(text) == text


def test_the_template_says_what_is_read():
    memory = PairMemory(PAIRS, template=" {{{target}}} of {source}")
    assert memory.extend("a green bird") == "a green bird {ein grüner Papagei} of a green parrot"
    assert PairMemory(PAIRS).extend("the black bird", 2).count(" | ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "letter"}, "unit='letter' must be one of word, char"),
        ({"ngram_sizes": ()}, "name at least one"),
        ({"ngram_sizes": (0, 1)}, "name at least one"),
        ({"ngram_sizes": (9,)}, "no document is that long"),
        ({"template": "{source}"}, "one line with {target}"),
        ({"template": "{target} {title}"}, "one line with {target}"),
        ({"template": "{target"}, "a brace of its own is written twice"),
        ({"template": "\n{target}"}, "one line with {target}"),
        ({"pairs": [("a", ""), ("", "b")]}, "no pair with a document and a title"),
    ],
)
def test_what_cannot_be_remembered_is_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        PairMemory(**{"pairs": PAIRS, **arguments})
    assert message in str(error.value)


@pytest.mark.parametrize("number", [0, -1])
def test_no_neighbors_are_no_number(number):
    with pytest.raises(ValueError, match=f"num_neighbors={number}: ask for at least 1"):
        PairMemory(PAIRS).extend("the black bird", number)


def test_without_bm25s_the_command_is_named():
    with pytest.raises(ImportError, match=r"pip install 'bidir_seq2seq\[retrieval\]'"), extra("retrieval"):
        raise ModuleNotFoundError(name="bm25s")


@pytest.fixture
def run(tmp_path):
    """Runs the command on files of the folder, and returns what it wrote."""
    rows = [{"en": source, "de": target, "id": number} for number, (source, target) in enumerate(PAIRS)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def written(*names: str, **settings):
        settings = {"train_file": [str(tmp_path / "train.jsonl")], "source_column": "en", **settings}
        settings |= {"input_file": [str(tmp_path / name) for name in names]}
        args = retrieve.RetrieveArguments(**{"output_dir": str(tmp_path / "similar"), **settings})
        return [path.read_text(encoding="utf-8").split("\n")[:-1] for path in retrieve.retrieve(args)]

    return written


def test_rows_keep_their_columns_and_order(run, tmp_path):
    (tmp_path / "new.csv").write_text("id,en,references\n7,the black bird,x\n8,,y\n9,zz,z\n", encoding="utf-8")
    train, new = ([json.loads(line) for line in lines] for lines in run("train.jsonl", "new.csv", ngram_sizes=[1]))
    assert [row["id"] for row in train] == [0, 1, 2] and [row["de"] for row in train] == [title for _, title in PAIRS]
    assert train[0]["en"] == f"{PAIRS[0][0]} | {PAIRS[1][1]}"
    assert [(row["id"], row["references"]) for row in new] == [("7", "x"), ("8", "y"), ("9", "z")]
    assert new[0]["en"].startswith("the black bird | d") and new[2]["en"] == "zz"
    assert not new[1]["en"]


def test_lines_stay_lines(run, tmp_path):
    (tmp_path / "new.txt").write_text("the black bird\r\n\r\nthe dog\u2028barks\r\n", encoding="utf-8")
    (tmp_path / "train.en").write_text("".join(f"{source}\n" for source, _ in PAIRS), encoding="utf-8")
    (tmp_path / "train.de").write_text("".join(f"{target}\n" for _, target in PAIRS), encoding="utf-8")
    files = [str(tmp_path / name) for name in ("train.en", "train.de")]
    (lines,) = run("new.txt", train_file=files, source_column=None)
    assert len(lines) == 3 and lines[1] == "" and lines[2].startswith("the dog\u2028barks | ")


def test_text_without_spaces_is_compared_by_characters(run, tmp_path):
    rows = [{"text": "国家统计局公布数据", "title": "数据"}, {"text": "南非检方撤销指控", "title": "指控"}]
    path = tmp_path / "chinese.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "new.txt").write_text("统计局的新消息\n", encoding="utf-8")
    (lines,) = run("new.txt", train_file=[str(path)], source_column=None)
    assert lines == ["统计局的新消息 | 数据"]
    (lines,) = run("new.txt", train_file=[str(path)], source_column=None, unit="word")
    assert lines == ["统计局的新消息"]


def test_a_bad_row_is_named_or_left_out(run, tmp_path):
    (tmp_path / "new.jsonl").write_text('{"en": "the cat"}\n{"en": 5}\n{"en": "a dog"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        run("new.jsonl")
    assert not [*(tmp_path / "similar").iterdir()]
    (lines,) = run("new.jsonl", on_bad_rows="skip")
    assert len(lines) == 2


def test_no_file_is_written_over(run, tmp_path):
    with pytest.raises(ValueError, match="choose another folder"):
        run("train.jsonl", output_dir=str(tmp_path))
    (tmp_path / "train.csv").write_text("en\nthe cat\n", encoding="utf-8")
    with pytest.raises(ValueError, match="would both become"):
        run("train.jsonl", "train.csv")


def test_a_cell_is_changed_where_it_is_found():
    for row, column in [
        ({"a": 1, "b": {"c": 2, "d": 3}}, "b.c"),
        ({"b.c": 2, "b": {"c": 5}}, "b.c"),
        ({"a.b": {"c": 2}, "d": 1}, "a.b.c"),
        ({"a": 1}, "c"),
    ]:
        before = json.dumps(row)
        changed = with_cell(row, column, "new")
        assert cell(changed, column) == "new" and json.dumps(row) == before
        assert json.dumps(changed).count("new") == 1 and set(row) <= set(changed)


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(dict(zip("ab", pair))) for pair in PAIRS))
    train = str(tmp_path / "train.jsonl")
    retrieve.main(["--train_file", train, "--input_file", train, "--output_dir", str(tmp_path / "out")])
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / "train.jsonl")]
