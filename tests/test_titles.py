import pytest
import torch
from conftest import tiny_model

from bidir_seq2seq.titles import Title, write_titles
from bidir_seq2seq.tokenization import build_char_tokenizer

DOCUMENTS = ["abcdef", "", "fed", "  \n", "hgfedcbaabcdefgh", "☃☃☃"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_char_tokenizer(["abcdefgh" * 3], min_frequency=1, model_max_length=12)


@pytest.fixture
def model(tokenizer):
    return tiny_model(vocab_size=len(tokenizer))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_beams": 3, "decoding_direction": "r2l"}], ids=str)
def test_a_document_does_not_depend_on_the_others(model, tokenizer, settings):
    settings |= {"max_new_tokens": 6}
    together = write_titles(model, tokenizer, DOCUMENTS, batch_size=4, **settings)
    for document, titles in zip(DOCUMENTS, together):
        alone = write_titles(model, tokenizer, [document], **settings)[0]
        assert [(t.text, t.direction) for t in alone] == [(t.text, t.direction) for t in titles]
        assert "[" not in titles[0].text
    assert together[1] == together[3] == [Title("")]


def test_candidates_scores_and_directions(model, tokenizer):
    titles = write_titles(model, tokenizer, ["abcdef"], num_beams=3, num_return_sequences=3, max_new_tokens=6)[0]
    assert len(titles) == 3
    scores = [title.score for title in titles]
    assert scores == sorted(scores, reverse=True)
    assert {title.direction for title in titles} <= {"l2r", "r2l"}


def test_a_long_document_is_cut(model, tokenizer):
    first, second = write_titles(model, tokenizer, ["abcdefgh" * 2, "abcdefgh" * 3], max_new_tokens=5)
    assert first[0].text == second[0].text != "" and first[0].truncated and second[0].truncated
    [read_whole] = write_titles(model, tokenizer, ["abcdefgh"], max_new_tokens=5)
    [cut] = write_titles(model, tokenizer, ["abcdefgh"], max_source_length=4, max_new_tokens=5)
    assert cut[0].truncated and not read_whole[0].truncated


def test_bad_arguments(model, tokenizer):
    with pytest.raises(ValueError, match="document 1 is 5, which is not text"):
        write_titles(model, tokenizer, ["a", 5])
    with pytest.raises(ValueError, match="batch_size=0"):
        write_titles(model, tokenizer, ["a"], batch_size=0)
    with pytest.raises(ValueError, match="documents is the single text 'abc'"):
        write_titles(model, tokenizer, "abc")
    assert write_titles(model, tokenizer, []) == []


def test_it_leaves_no_gradient_behind(model, tokenizer):
    write_titles(model.train(), tokenizer, ["abc"], max_new_tokens=3)
    assert not model.training and torch.is_grad_enabled()


def test_progress_is_shown_on_request(model, tokenizer, capsys):
    write_titles(model, tokenizer, DOCUMENTS, max_new_tokens=3)
    assert capsys.readouterr().err == ""
    write_titles(model, tokenizer, DOCUMENTS, max_new_tokens=3, progress=True)
    assert "6/6" in capsys.readouterr().err
