"""What suits a set of pairs if nothing is said."""

import pytest
from datasets import Dataset

from bidir_seq2seq.recipe import suitable_dropout, suitable_tokenizer_type, suitable_vocabulary, suitable_warmup


@pytest.mark.parametrize(
    "num_pairs, kind, expected",
    [
        (24, "char", (8000, 2)),
        (6_435, "char", (8000, 3)),
        (6_435, "bpe", (1608, 3)),
        (29_000, "bpe", (7250, 10)),
        (10**9, "bpe", (8000, 10)),
        (0, "word", (8000, 2)),
    ],
)
def test_a_vocabulary_suits_the_number_of_pairs(num_pairs, kind, expected):
    assert suitable_vocabulary(num_pairs, kind) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["A title of words", "ein Titel", "제목입니다"], "bpe"),
        (["中国科学院公众科学日活动举办"], "char"),
        (["これはペンです", "กรุงเทพมหานคร"], "char"),
        (["Hunger is the best sauce.", "饥饿是最好的调味品"], "char"),
        (["A paper about the word 言葉 and what became of it in later centuries"], "bpe"),
        (["12 34", ""], "char"),
        (["𠮷野家𠮷野家"], "char"),
    ],
)
def test_the_script_tells_what_a_token_is(texts, expected):
    rows = {"source": [*texts, None] * 100, "target": [""] * 100 * (len(texts) + 1)}
    assert suitable_tokenizer_type(Dataset.from_dict(rows)) == expected
    few = Dataset.from_dict({name: column[:99] for name, column in rows.items()})
    assert suitable_tokenizer_type(few) == "char"


@pytest.mark.parametrize(("passes", "expected"), [(0.1, 0.0), (4.9, 0.0), (5, 0.2), (10.0, 0.2)])
def test_who_sees_pairs_often_needs_dropout(passes, expected):
    assert suitable_dropout(passes) == expected


def test_a_short_training_rises_in_half_of_its_updates():
    assert [suitable_warmup(updates) for updates in (1, 93, 399, 400, 50_000)] == [0, 46, 199, 200, 200]
