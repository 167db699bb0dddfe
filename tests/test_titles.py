import pytest
import torch
from conftest import tiny_model

from bidir_seq2seq.titles import WINDOW_BATCHES, Title, stream_titles, write_titles
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


def long_stream(number: int) -> list[str]:
    return ["abcdefgh"[: index % 9] * (1 + index % 2) for index in range(number)]


@pytest.mark.e2e
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_a_stream_gives_what_a_list_does(model, tokenizer, settings):
    settings |= {"max_new_tokens": 6, "batch_size": 3}
    documents = long_stream(2 * 3 * WINDOW_BATCHES + 5)
    streamed = list(stream_titles(model, tokenizer, iter(documents), **settings))
    listed = write_titles(model, tokenizer, documents, **settings)
    assert [[(t.text, t.direction) for t in titles] for titles in streamed] == [
        [(t.text, t.direction) for t in titles] for titles in listed
    ]
    assert list(stream_titles(model, tokenizer, [])) == []


def test_a_stream_is_read_a_window_at_a_time(model, tokenizer):
    read = []
    documents = (read.append(1) or text for text in long_stream(1000))
    titles = stream_titles(model, tokenizer, documents, batch_size=2, max_new_tokens=3)
    for number in range(3 * 64):
        next(titles)
        assert len(read) <= (number // 64 + 2) * 64
    assert len(read) < 1000


def test_samples_of_a_window_do_not_depend_on_those_before(model, tokenizer):
    settings = {"batch_size": 2, "max_new_tokens": 6, "do_sample": True, "decoding_direction": "l2r"}
    documents = long_stream(150)
    whole = list(stream_titles(model, tokenizer, documents, seed=1, **settings))
    assert whole[64:] == list(stream_titles(model, tokenizer, documents[64:], seed=1, start=64, **settings))
    assert whole != list(stream_titles(model, tokenizer, documents, seed=2, **settings))


def test_bad_streams(model, tokenizer):
    with pytest.raises(ValueError, match="documents is the single text 'abc'"):
        next(stream_titles(model, tokenizer, "abc"))
    with pytest.raises(ValueError, match="batch_size=0"):
        next(stream_titles(model, tokenizer, ["a"], batch_size=0))
    with pytest.raises(ValueError, match="document 1 is 5, which is not text"):
        list(stream_titles(model, tokenizer, ["a", 5]))
