"""That the search as it is defined, on one page, finds what `generate` finds."""

import pytest
import torch
from conftest import random_pairs, tiny_model

from bidir_seq2seq.tokenization import build_char_tokenizer
from plain_search import main, plain_search


def found_by_generate(model, input_ids, attention_mask, num_beams, **settings):
    """Scores, ids without marks and directions of each document's K best titles."""
    found = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        decoding_direction="both",
        num_beams=num_beams,
        num_return_sequences=num_beams,
        return_dict_in_generate=True,
        **settings,
    )
    contents = [[index for index in row if index > 3] for row in found.sequences.tolist()]
    titles = list(zip(found.sequences_scores.tolist(), contents, found.directions))
    return [titles[start : start + num_beams] for start in range(0, len(titles), num_beams)]


@pytest.mark.parametrize(
    ("num_beams", "settings"),
    [
        (1, {}),
        (2, {}),
        (4, {}),
        (3, {"min_new_tokens": 4}),
        (3, {"min_new_tokens": 7}),
        (3, {"length_penalty": 0.0}),
        (3, {"length_penalty": 2.0}),
    ],
)
@pytest.mark.parametrize("config", [{}, {"twin_memory": "features", "rnn_type": "gru"}, {"use_prior": False}], ids=str)
def test_it_finds_what_generate_finds(config, num_beams, settings):
    model = tiny_model(**config)
    directions = set()
    for _ in range(3):
        input_ids, _ = random_pairs()
        mask = (input_ids != 0).long()
        plain = plain_search(model, input_ids, mask, num_beams, max_new_tokens=7, **settings)
        fast = found_by_generate(model, input_ids, mask, num_beams, max_new_tokens=7, **settings)
        for ours, theirs in zip(plain, fast, strict=True):
            assert [title[1:] for title in ours[:num_beams]] == [title[1:] for title in theirs]
            assert [title.score for title in ours[:num_beams]] == pytest.approx([t[0] for t in theirs], abs=1e-4)
            directions |= {title.direction for title in ours}
    assert directions == {"l2r", "r2l"}


def test_documents_do_not_notice_their_neighbours():
    model = tiny_model()
    input_ids, _ = random_pairs()
    mask = (input_ids != 0).long()
    together = plain_search(model, input_ids, mask, max_new_tokens=7)
    for row, titles in enumerate(together):
        size = int(mask[row].sum())
        (alone,) = plain_search(model, input_ids[row : row + 1, :size], mask[row : row + 1, :size], max_new_tokens=7)
        assert [title.ids for title in alone] == [title.ids for title in titles]


def test_it_runs_on_a_checkpoint(tmp_path, capsys):
    tokenizer = build_char_tokenizer(["abcdefgh"], min_frequency=1)
    tokenizer.save_pretrained(tmp_path)
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    main([str(tmp_path), "abcdef", "--num_beams", "2", "--max_new_tokens", "5"])
    scores, directions = zip(*(line.split()[:2] for line in capsys.readouterr().out.splitlines()))
    assert 2 <= len(scores) <= 4 and list(map(float, scores)) == sorted(map(float, scores), reverse=True)
    assert set(directions) <= {"l2r", "r2l"}
    assert torch.isfinite(torch.tensor([float(score) for score in scores])).all()
