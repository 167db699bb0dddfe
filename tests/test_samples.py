"""Titles drawn at random, beside the probabilities that they were drawn by."""

import copy
from collections import Counter

import pytest
import torch
from conftest import random_pairs, tiny_model
from test_proposals import Forgetful
from test_search import END, LONGEST, PAD, SIZE, START, Table, all_titles
from transformers import EosTokenCriteria, LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor, SuppressTokensLogitsProcessor

from bidir_seq2seq import generation_bidir_seq2seq, samples_bidir_seq2seq
from bidir_seq2seq.directions_bidir_seq2seq import Direction, RightToLeft
from bidir_seq2seq.output_bidir_seq2seq import IMPOSSIBLE
from bidir_seq2seq.proposals_bidir_seq2seq import Found
from bidir_seq2seq.ranking_bidir_seq2seq import Candidates, consensus, joint
from bidir_seq2seq.samples_bidir_seq2seq import EPSILON, draw_titles, in_groups
from bidir_seq2seq.search_bidir_seq2seq import StepRecords


def found_of(
    table, direction: Direction, num_samples: int = 4000, limits=(LONGEST + 1,), more=(), **settings
) -> Found:
    processors = LogitsProcessorList([SuppressTokensLogitsProcessor([PAD, direction.start_id], device="cpu"), *more])
    criteria = StoppingCriteriaList([EosTokenCriteria(direction.end_id), MaxLengthCriteria(LONGEST + 2)])
    asked = (direction, num_samples, torch.tensor(limits), processors, criteria, StepRecords())
    return draw_titles(Table(table), Table(table), *asked, **settings)


def drawn_of(*args, **settings) -> torch.LongTensor:
    (pool,) = found_of(*args, **settings).pools()
    return pool["sequences"]


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


@pytest.mark.parametrize("together", [1, 2, 4, 5, 9])
def test_documents_are_drawn_for_some_at_a_time_as_together(together):
    table = torch.randn(SIZE, SIZE).log_softmax(-1)
    direction, limits = RightToLeft("r2l", START, END, PAD), torch.tensor([3, 6, 1, 4, 6])
    seen = []

    def draw(documents):
        seen.append(documents.tolist())
        return found_of(table, direction, 20, limits[documents].tolist())

    found, whole = in_groups(draw, limits, together), found_of(table, direction, 20, limits.tolist())
    assert torch.equal(found.paths, whole.paths) and torch.equal(found.scores, whole.scores)
    assert max(map(len, seen)) <= together and sorted(index for some in seen for index in some) == list(range(5))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_what_ends_is_a_candidate_with_its_log_probability_and_what_is_cut_is_none(length_penalty):
    table = torch.randn(SIZE, SIZE)
    table[:, [PAD, START]] = float("-inf")
    table = table.log_softmax(-1)
    found = found_of(table, Direction("l2r", START, END, PAD), 300, (4, 2), length_penalty=length_penalty)
    kinds = set()
    for titles, scores in zip(found.paths[..., 0].tolist(), found.scores.tolist()):
        for title, score in zip(titles, scores):
            words = [word for word in title if word != PAD]
            kinds.add((words[-1] == END, len(words)))
            if words[-1] == END:
                total = sum(float(table[one, other]) for one, other in zip(words, words[1:]))
                assert score == pytest.approx(total / (len(words) - 1) ** length_penalty, abs=1e-4)
            else:
                assert score <= IMPOSSIBLE
    assert kinds >= {(True, 2), (True, 3), (True, 4), (False, 4), (False, 2)}
    # What the longest title there may be cuts is a title to a beam, too.
    long = found_of(table, Direction("l2r", START, END, PAD), 300, (LONGEST + 2,), length_penalty=length_penalty)
    assert (long.scores > IMPOSSIBLE).all() and (long.paths[0, :, -1, 0] != PAD).any()


def test_processors_are_obeyed():
    table = torch.zeros(SIZE, SIZE).log_softmax(-1)
    free = titles_of(drawn_of(table, Direction("l2r", START, END, PAD), 200)[0])
    # Where several words may follow, one that repeats is drawn from what is left.
    distinct = titles_of(
        drawn_of(table, Direction("l2r", START, END, PAD), 200, more=[NoRepeatNGramLogitsProcessor(1)])[0]
    )
    assert any(len(set(title)) < len(title) for title in free)
    assert all(len(set(title)) == len(title) for title in distinct) and max(map(len, distinct)) == LONGEST + 1


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
    asked = {"num_beams": 3, "max_length": 7, "proposals": "both+drawn", "consensus_samples": 5}
    chosen = model.generate(**inputs, **asked, ranking=ranking)
    return seen[0], chosen


@pytest.mark.parametrize("use_copy", [False, True])
@pytest.mark.parametrize("shortlist", [None, 12])
def test_a_document_has_the_same_titles_each_time_and_whatever_stands_beside_it(use_copy, shortlist, monkeypatch):
    monkeypatch.setattr(generation_bidir_seq2seq, "DRAWN_TOGETHER", 2)
    model = tiny_model(vocab_size=24, use_copy=use_copy)
    model.generation_config.vocabulary_shortlist = shortlist
    input_ids, _ = random_pairs()
    drawn, chosen = drawn_by(model, input_ids=input_ids)
    # Those of both directions, which do not end alike.
    assert drawn.shape[:2] == (len(input_ids), 10) and not torch.equal(drawn[:, :5], drawn[:, 5:])
    again, _ = drawn_by(model, input_ids=input_ids)
    assert torch.equal(drawn, again)
    by_name = model.generate(
        input_ids, num_beams=3, max_length=7, ranking="consensus", consensus_samples=5, proposals="both+drawn"
    )
    assert torch.equal(by_name, chosen)
    for row, own, title in zip(input_ids, drawn, chosen):
        alone, alone_chosen = drawn_by(model, input_ids=row[None])
        assert titles_of(alone[0]) == titles_of(own)
        assert titles_of(alone_chosen) == titles_of(title[None])


def pool_of(model, input_ids, **asked):
    """The candidates that a ranking sees."""
    seen = []

    def ranking(candidates):
        seen.append(candidates)
        return consensus(candidates)

    settings = {"num_beams": 3, "max_length": 7, "consensus_samples": 5, **asked}
    output = model.generate(input_ids, **settings, ranking=ranking, return_dict_in_generate=True)
    return seen[0], output


@pytest.mark.parametrize("use_copy", [False, True])
def test_what_is_drawn_stands_beside_what_searches_find(use_copy):
    model = tiny_model(vocab_size=24, use_copy=use_copy)
    input_ids, _ = random_pairs()
    searched, _ = pool_of(model, input_ids, proposals="both")
    candidates, output = pool_of(model, input_ids, proposals="drawn+both")
    number = searched.sequences.shape[1]
    assert candidates.sequences.shape[1] == number + 10
    length = min(searched.sequences.shape[2], candidates.sequences.shape[2])
    assert torch.equal(candidates.sequences[:, :number, :length], searched.sequences[:, :, :length])
    # They are compared with the same ones, of which those that were cut are no candidates.
    compared = candidates.draw(candidates.lengths.amax(1) + 1)
    length = min(compared.shape[2], candidates.sequences.shape[2])
    assert torch.equal(candidates.sequences[:, number:, :length], compared[:, :, :length])
    # One's score is what the direction that drew it says of it.
    for place, name in ((slice(number, number + 5), "l2r"), (slice(number + 5, None), "r2l")):
        scores, exists = candidates.scores[:, place], candidates.scores[:, place] > IMPOSSIBLE
        assert exists.any()
        alone = (candidates.log_probs[name] / candidates.lengths)[:, place]
        # A title that is as long as any may be has no end, of which a direction alone knows nothing.
        whole = exists & (candidates.lengths[:, place] < 6)
        torch.testing.assert_close(scores[whole], alone[whole], rtol=1e-4, atol=1e-5)
    assert set(output.directions) <= {"l2r", "r2l"}


def test_consensus_by_name_or_weight_chooses_among_what_is_drawn():
    model = tiny_model(vocab_size=24)
    input_ids, _ = random_pairs()
    asked = {"num_beams": 2, "max_length": 7, "consensus_samples": 6}
    for ranking in ("consensus", {"consensus": 1.0, "l2r": 0.05}):
        by_default = model.generate(input_ids, **asked, ranking=ranking)
        assert torch.equal(
            by_default, model.generate(input_ids, **asked, ranking=ranking, proposals="both+drawn+spliced")
        )
        assert not torch.equal(by_default, model.generate(input_ids, **asked, ranking=ranking, proposals="both"))
    others = {"num_beams": 2, "max_length": 7}
    for ranking in ("joint", {"l2r": 1.0, "consensus": 0}):
        by_default = model.generate(input_ids, **others, ranking=ranking)
        assert torch.equal(by_default, model.generate(input_ids, **others, ranking=ranking, proposals="both"))


def test_what_was_recorded_goes_with_each_title_that_is_drawn():
    model = tiny_model(vocab_size=24)
    input_ids, _ = random_pairs()
    asked = {"num_beams": 2, "num_return_sequences": 2, "max_length": 7, "consensus_samples": 6, "ranking": "own"}
    details = {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True}
    output = model.generate(input_ids, **asked, **details, proposals="drawn")
    lengths = (output.sequences != PAD).sum(1) - 1
    torch.testing.assert_close(output.token_scores.sum(1) / lengths, output.sequences_scores)
    read = output.source_attentions.sum(-1)
    for row, length in zip(read, lengths.tolist()):
        torch.testing.assert_close(row[:, :length], torch.ones_like(row[:, :length]))
        assert (row[:, length:] == 0).all()
    assert output.l2r_scores is output.beam_indices is output.history is None


def test_what_is_drawn_has_processors_of_its_own_and_obeys_them():
    model = tiny_model(vocab_size=24)
    input_ids, _ = random_pairs()
    drawn, _ = pool_of(model, input_ids, proposals="drawn")
    words, counts = drawn.labels[drawn.labels > 3].unique(return_counts=True)
    banned = int(words[counts.argmax()])
    settings = {"bad_words_ids": [[banned]], "min_length": 5, "logits_processor": LogitsProcessorList([Forgetful()])}
    candidates, _ = pool_of(model, input_ids, proposals="l2r+drawn", **settings)
    assert not (candidates.labels == banned).any()
    assert (candidates.lengths[candidates.scores > IMPOSSIBLE] >= 4).all()


@pytest.mark.parametrize("settings", [{"consensus_samples": 0}, {"do_sample": True}])
def test_where_nothing_is_drawn_there_is_nothing_to_propose(settings):
    model = tiny_model()
    input_ids, _ = random_pairs()
    with pytest.raises(ValueError, match="proposals='l2r\\+drawn'.*leave 'drawn' out"):
        model.generate(input_ids, proposals="l2r+drawn", **settings)
    model.generate(input_ids, ranking="consensus", max_length=5, **settings)
    # What is stored for searching gives way: a model that was tuned may be sampled from.
    for stored, rest in (("l2r+r2l+drawn", "l2r+r2l"), ("drawn", "both")):
        tuned = copy.deepcopy(model)
        tuned.generation_config.update(proposals=stored, ranking={"consensus": 1.0, "l2r": 0.2})
        found, expected = [], []
        for each, texts, more in ((tuned, found, {}), (model, expected, {"proposals": rest})):
            torch.manual_seed(0)
            ranking = tuned.generation_config.ranking
            texts.extend(each.generate(input_ids, max_length=7, ranking=ranking, **settings, **more).tolist())
        assert found == expected


@pytest.mark.parametrize("name", ["l2r", "r2l"])
def test_one_direction_can_ask_what_it_draws_itself(name):
    model = tiny_model(vocab_size=24)
    input_ids, _ = random_pairs()
    seen, _ = pool_of(model, input_ids, proposals=f"{name}+drawn")
    # Its own, beside the beam's.
    own = slice(3, 8) if name == "l2r" else slice(8, 13)
    titles = torch.cat([seen.sequences[:, :3], seen.sequences[:, own]], dim=1)
    scores = torch.cat([seen.scores[:, :3], seen.scores[:, own]], dim=1)
    drawn = seen.sequences[:, own]
    alone = Candidates(titles, scores, PAD, 1.0, judge=None, draw=lambda limits: drawn)
    ranked, order = alone.ranked("consensus")
    expected = titles.gather(1, order[:, :1, None].expand(-1, 1, titles.shape[2]))[:, 0]
    asked = {"num_beams": 3, "max_length": 7, "ranking": "consensus", "consensus_samples": 5}
    asked |= {"decoding_direction": name, "proposals": f"{name}+drawn"}
    output = model.generate(input_ids, **asked, return_dict_in_generate=True)
    assert titles_of(output.sequences[None])[0] == titles_of(expected[None])[0]
    torch.testing.assert_close(output.sequences_scores, ranked[:, 0])
    assert set(output.directions) == {name}


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_model_of_one_direction_can_have_consensus_as_its_own(num_beams):
    model = tiny_model(vocab_size=24, decoder_directions="l2r")
    input_ids, _ = random_pairs()
    asked = {"num_beams": num_beams, "max_length": 7}
    searched, chosen = model.generate(input_ids, **asked), model.generate(input_ids, **asked, ranking="consensus")
    assert not torch.equal(searched, chosen)
    model.generation_config.ranking = "consensus"
    assert torch.equal(model.generate(input_ids, **asked), chosen)
    assert torch.equal(model.generate(input_ids, **asked, ranking="own"), searched)
    for settings in ({"use_cache": False}, {"decoder_input_ids": torch.full((3, 2), 5)}):
        with pytest.raises(ValueError, match="leave it out when sampling|given beginning"):
            model.generate(input_ids[:3], **asked, **settings)
    # Nobody has asked for both at once, unless it is said here.
    assert len(model.generate(input_ids, **asked, do_sample=True)) == len(input_ids)
    with pytest.raises(ValueError, match="of one direction, or what is drawn, goes with searching alone"):
        model.generate(input_ids, **asked, do_sample=True, ranking="consensus")
    # What twins have stored is meant for both.
    model = tiny_model(vocab_size=24)
    searched = model.generate(input_ids, **asked, decoding_direction="l2r")
    model.generation_config.ranking = "consensus"
    assert torch.equal(model.generate(input_ids, **asked, decoding_direction="l2r"), searched)


@pytest.mark.parametrize("directions", ["both", "l2r"])
def test_one_direction_that_draws_nothing_compares_its_candidates(directions):
    model = tiny_model(vocab_size=24, decoder_directions=directions)
    input_ids, _ = random_pairs()
    seen = []

    def ranking(candidates):
        # It knows nothing of the other direction, whose titles and thoughts are not asked for.
        assert set(candidates.log_probs) == {"l2r"}
        seen.append(candidates)
        return candidates.scores

    asked = {"num_beams": 3, "max_length": 7, "decoding_direction": "l2r"}
    searched = model.generate(input_ids, **asked)
    asked["consensus_samples"] = 0
    assert torch.equal(model.generate(input_ids, **asked, ranking=ranking), searched)
    sequences, log_probs = seen[0].sequences, seen[0].log_probs["l2r"]
    output = model.generate(input_ids, **asked, ranking="consensus", return_dict_in_generate=True)
    twice = Candidates(sequences, seen[0].scores, PAD, 1.0, judge=lambda labels: {"l2r": log_probs, "r2l": log_probs})
    scores, order = twice.ranked("consensus")
    best = sequences.gather(1, order[:, :1, None].expand(-1, 1, sequences.shape[2]))[:, 0]
    assert titles_of(output.sequences[None])[0] == titles_of(best[None])[0]
    torch.testing.assert_close(output.sequences_scores, scores[:, 0])


@pytest.mark.parametrize("ranking", ["joint", {"own": 1, "r2l": 0.5}])
def test_one_direction_knows_nothing_of_the_other(ranking):
    input_ids, _ = random_pairs()
    for model in (tiny_model(), tiny_model(decoder_directions="l2r")):
        with pytest.raises(ValueError, match=f"ranking={ranking!r} needs decoding_direction='both'"):
            model.generate(input_ids, decoding_direction="l2r", ranking=ranking)
        with pytest.raises(ValueError, match="proposals='r2l\\+drawn' needs decoding_direction='both'"):
            model.generate(input_ids, decoding_direction="l2r", proposals="r2l+drawn")
        with pytest.raises(ValueError, match="'r2' must be one of own, l2r, r2l"):
            model.generate(input_ids, decoding_direction="l2r", ranking={"r2": 1})


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


@pytest.mark.parametrize("direction", ["l2r", "both"])
def test_no_more_titles_are_asked_for_than_are_drawn(direction):
    model = tiny_model(vocab_size=24)
    input_ids, _ = random_pairs()
    asked = {"num_beams": 3, "max_length": 7, "proposals": "drawn", "decoding_direction": direction}
    number = 2 * (1 + (direction == "both"))
    written = model.generate(input_ids, **asked, consensus_samples=2, num_return_sequences=min(number, 3))
    assert len(written) == len(input_ids) * min(number, 3)
    with pytest.raises(ValueError, match="num_return_sequences=3 is more than the . titles that are drawn"):
        model.generate(input_ids, **asked, consensus_samples=1, num_return_sequences=3)


@pytest.mark.parametrize("proposals", ["l2r+drawn", "l2r+r2l+drawn"])
def test_where_no_search_finds_a_title_details_are_still_told(proposals):
    model = tiny_model(vocab_size=24)
    input_ids, _ = random_pairs()
    asked = {"decoding_direction": "l2r"} if proposals == "l2r+drawn" else {}
    asked |= {"proposals": proposals, "max_length": 6, "output_scores": True, "return_dict_in_generate": True}
    output = model.generate(input_ids, **asked, suppress_tokens=list(range(24)))
    assert output.sequences.shape[0] == output.token_scores.shape[0] == len(input_ids)


def test_another_ranking_than_the_stored_one_draws_nothing_for_it(monkeypatch):
    model = tiny_model(vocab_size=24)
    input_ids, _ = random_pairs()
    asked = {"num_beams": 3, "max_length": 7}
    rankings = ({"ranking": "own"}, {"ranking": "joint"}, {"joint_rescoring": True}, {"ranking": {"l2r": 1, "r2l": 1}})
    expected = [model.generate(input_ids, **asked, **other, proposals="l2r+r2l") for other in rankings]
    model.generation_config.update(proposals="l2r+r2l+drawn+spliced", ranking={"consensus": 1, "l2r": 0.05})
    tuned = model.generate(input_ids, **asked)
    assert torch.equal(model.generate(input_ids, **asked, ranking={"consensus": 1, "l2r": 0.05}), tuned)
    monkeypatch.setattr("bidir_seq2seq.generation_bidir_seq2seq.draw_titles", None)
    for other, titles in zip(rankings, expected):
        assert torch.equal(model.generate(input_ids, **asked, **other), titles)
