"""Titles drawn at random, beside the probabilities that they were drawn by."""

from collections import Counter

import pytest
import torch
from conftest import random_pairs, tiny_model
from test_search import END, LONGEST, PAD, SIZE, START, Table, all_titles

from bidir_seq2seq import samples_bidir_seq2seq
from bidir_seq2seq.directions_bidir_seq2seq import Direction, RightToLeft
from bidir_seq2seq.ranking_bidir_seq2seq import consensus, joint
from bidir_seq2seq.samples_bidir_seq2seq import EPSILON, draw_titles


def drawn_of(table, direction: Direction, num_samples: int = 4000, limits=(LONGEST + 1,)) -> torch.LongTensor:
    never_written = torch.tensor([PAD, direction.start_id])
    return draw_titles(Table(table), Table(table), direction, num_samples, torch.tensor(limits), never_written)


def titles_of(rows: torch.LongTensor) -> list[tuple[int, ...]]:
    return [tuple(token for token in row if token != PAD) for row in rows.tolist()]


def test_titles_come_as_often_as_they_are_likely():
    table = torch.randn(SIZE, SIZE).log_softmax(-1)
    table[:, [PAD, START]] = float("-inf")
    table = table.log_softmax(-1)
    # Of all titles one is left that has an unlikely word in it.
    table[3] = torch.tensor([0, 0, 1 - EPSILON * 0.9, EPSILON * 0.9, 0, 0]).log()
    drawn = titles_of(drawn_of(table, Direction("l2r", START, END, PAD))[0])
    kept = table.exp().where(table.exp() >= EPSILON, 0)
    expected = {
        (START, *words): probability
        for log_probability, words in all_titles((kept / kept.sum(-1, keepdim=True)).log())
        if (probability := 2.718281828**log_probability) > 0
    }
    found = Counter(drawn)
    assert set(found) <= set(expected)
    assert not any(words[place : place + 2] == (3, 3) for words in found for place in range(len(words)))
    for title, probability in expected.items():
        assert found[title] / len(drawn) == pytest.approx(probability, abs=0.02)


def test_what_is_written_from_the_right_is_given_from_the_left():
    # 3 is always followed by 4, 4 by 5, and 5 by the end.
    table = torch.full((SIZE, SIZE), float("-inf"))
    for word, following in ((START, 3), (3, 4), (4, 5), (5, END)):
        table[word, following] = 0
    drawn = drawn_of(table, Direction("l2r", START, END, PAD), 3, (5, 3, 1))
    # The second document's are cut, and the third's have no room.
    assert [titles_of(rows) for rows in drawn] == [3 * [(1, 3, 4, 5, 2)], 3 * [(1, 3, 4)], 3 * [(1,)]]
    # The ends change places, as from the right.
    drawn = drawn_of(table, RightToLeft("r2l", START, END, PAD), 3, (5, 3))
    assert [titles_of(rows) for rows in drawn] == [3 * [(END, 5, 4, 3, START)], 3 * [(END, 4, 3)]]


def test_where_no_word_is_likely_the_likeliest_is_drawn():
    # More words than can all have a probability of epsilon.
    probs = torch.full((1, 5, 200), 0.005)
    probs[0, :, 100] = 0.006
    assert (samples_bidir_seq2seq._drawn(probs.log(), torch.linspace(0, 0.999, 5)) == 100).all()


def test_chances_fall_into_each_part_once():
    chances = samples_bidir_seq2seq._chances(8, 5)
    assert chances.shape == (5, 8) and torch.equal(chances, samples_bidir_seq2seq._chances(8, 5))
    assert (chances.mul(8).long().sort(1).values == torch.arange(8)).all()
    assert not torch.equal(chances[0], chances[1])
    # A longer title beside a document changes nothing of it.
    assert torch.equal(chances, samples_bidir_seq2seq._chances(8, 9)[:5])


def drawn_by(model, **inputs) -> tuple[torch.LongTensor, torch.LongTensor]:
    """What consensus compares with, and what it chooses."""
    seen = []

    def ranking(candidates):
        seen.append(candidates.draw(torch.full_like(candidates.lengths[:, 0], 7)))
        return consensus(candidates)

    torch.rand(3)
    chosen = model.generate(**inputs, num_beams=3, max_length=7, ranking=ranking, consensus_samples=5)
    return seen[0], chosen


@pytest.mark.parametrize("use_copy", [False, True])
@pytest.mark.parametrize("shortlist", [None, 12])
def test_a_document_has_the_same_titles_drawn_each_time_and_whatever_stands_beside_it(use_copy, shortlist):
    model = tiny_model(vocab_size=24, use_copy=use_copy)
    model.generation_config.vocabulary_shortlist = shortlist
    input_ids, _ = random_pairs()
    drawn, chosen = drawn_by(model, input_ids=input_ids)
    # Those of both directions, which do not end alike.
    assert drawn.shape[:2] == (len(input_ids), 10) and not torch.equal(drawn[:, :5], drawn[:, 5:])
    again, _ = drawn_by(model, input_ids=input_ids)
    assert torch.equal(drawn, again)
    by_name = model.generate(input_ids, num_beams=3, max_length=7, ranking="consensus", consensus_samples=5)
    assert torch.equal(by_name, chosen)
    for row, own, title in zip(input_ids, drawn, chosen):
        alone, alone_chosen = drawn_by(model, input_ids=row[None])
        assert titles_of(alone[0]) == titles_of(own)
        assert titles_of(alone_chosen) == titles_of(title[None])


def test_words_outside_the_vocabulary_are_drawn():
    model = tiny_model(vocab_size=24, use_copy=True)
    # All is copied, next to nothing left to the vocabulary.
    for attention in model.copy_attention.values():
        torch.nn.init.zeros_(attention.share.weight)
        torch.nn.init.constant_(attention.share.bias, 50.0)
    input_ids = torch.tensor([[5, 1, 6, 1, 3]])
    extended = torch.tensor([[5, 24, 6, 25, 3]])
    drawn, _ = drawn_by(model, input_ids=input_ids, extended_input_ids=extended)
    assert {24, 25} <= set(drawn.flatten().tolist()) <= {0, 2, 3, 5, 6, 24, 25}


def test_without_samples_candidates_are_compared_with_each_other():
    model = tiny_model(vocab_size=24)
    input_ids, _ = random_pairs()
    seen = []

    def ranking(candidates):
        seen.append(candidates.draw)
        return joint(candidates)

    model.generate(input_ids, num_beams=3, max_length=7, ranking=ranking, consensus_samples=0)
    assert seen == [None]


@pytest.mark.parametrize("number", [-1, 2.5, True, "many", None])
def test_numbers_of_samples_that_are_none_are_refused(number):
    input_ids, _ = random_pairs()
    with pytest.raises(ValueError, match="consensus_samples"):
        tiny_model().generate(input_ids, ranking="consensus", consensus_samples=number)


@pytest.mark.parametrize("asked", [{"ranking": "joint"}, {"decoding_direction": "l2r"}, {"ranking": {"length": 1.0}}])
def test_samples_that_nothing_is_compared_with_are_refused(asked):
    input_ids, _ = random_pairs()
    with pytest.raises(ValueError, match="consensus_samples is for ranking='consensus'"):
        tiny_model().generate(input_ids, **asked, consensus_samples=4)
    # Those of the model's own config say nothing of this call.
    tiny_model().generate(input_ids, max_length=5, **asked)


def test_returned_sequences_that_have_rows_of_their_own_are_compared_with_their_documents_titles():
    model = tiny_model(vocab_size=24)
    input_ids, _ = random_pairs()
    asked = {"ranking": "consensus", "consensus_samples": 4, "max_length": 7, "do_sample": True, "num_beams": 1}
    output = model.generate(input_ids, **asked, num_return_sequences=3, return_dict_in_generate=True)
    assert output.sequences.shape[0] == 3 * len(input_ids)
    assert ((output.sequences_scores >= 0) & (output.sequences_scores <= 1)).all()
