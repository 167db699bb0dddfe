"""Splices, beside all beginnings and ends that fit together."""

import pytest
import torch
from conftest import random_pairs, tiny_model
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from bidir_seq2seq import generation_bidir_seq2seq, splices_bidir_seq2seq
from bidir_seq2seq.output_bidir_seq2seq import IMPOSSIBLE
from bidir_seq2seq.ranking_bidir_seq2seq import consensus
from bidir_seq2seq.splices_bidir_seq2seq import LENDERS, SPLICES, may_be_written, splices_of, with_splices

PAD, START, END = 0, 2, 3
ASKED = {"num_beams": 3, "max_length": 8, "consensus_samples": 12, "return_dict_in_generate": True}
PROPOSALS = "l2r+r2l+drawn"


def short_writer(**settings):
    """A random model whose titles come to their end: only such lend their parts."""
    model = tiny_model(vocab_size=12, spread=0.3, **settings)
    with torch.no_grad():
        model.lm_head.bias[[START, END]] += 1.5
    return model


def as_words(sequences) -> list[tuple[int, ...]]:
    return [tuple(word for word in row[1:] if word != PAD) for row in sequences.tolist()]


def random_titles(documents=4, number=5, length=9):
    sequences = torch.randint(4, 7, (documents, number, length))
    sequences[:, :, 0] = START
    for row in sequences.flatten(0, 1):
        size = int(torch.randint(2, length, (1,)))
        row[size] = END
        row[size + 1 :] = PAD
    return sequences


def all_splices(heads, tails, known, longest) -> set[tuple[int, ...]]:
    """By the definition: of every pair, at every two words that both have."""
    found = set()
    for head in heads:
        for tail in tails:
            for kept in range(len(head) - 1):
                for skipped in range(len(tail) - 1):
                    if head[kept : kept + 2] == tail[skipped : skipped + 2]:
                        found.add(head[:kept] + tail[skipped:])
    return {title for title in found if len(title) <= longest} - set(known)


def test_all_that_fits_together_is_found_once():
    sequences = random_titles(number=8)
    exists = torch.rand(4, 8) < 0.8
    exists[0], exists[1] = True, False
    heads, tails = torch.tensor([[0, 1, 5, 6, -1]] * 4), torch.tensor([[4, 2, 7]] * 4)
    found = splices_of(sequences, exists, heads, tails, PAD)
    written = found.sequences(sequences, PAD)
    number = 0
    for document in range(4):
        words = as_words(sequences[document])
        titles = [title for title, there in zip(words, exists[document].tolist()) if there]
        lenders = [[words[place] for place in side if exists[document, place]] for side in ((0, 1, 5, 6), (4, 2, 7))]
        expected = all_splices(*lenders, titles, max(map(len, titles), default=0))
        mine = [title for title, there in zip(as_words(written[document]), found.exists[document]) if there]
        assert set(mine) == expected and len(mine) == len(expected)
        number += len(mine)
    assert number > 10 and found.exists.any(0).all()
    assert (written[found.exists][:, 0] == START).all()


def test_documents_may_be_compared_one_by_one(monkeypatch):
    sequences, exists = random_titles(), torch.ones(4, 5, dtype=torch.bool)
    lenders = torch.tensor([[0, 1]] * 4), torch.tensor([[2, 3, 4]] * 4)
    together = splices_of(sequences, exists, *lenders, PAD)
    monkeypatch.setattr(splices_bidir_seq2seq, "COMPARED_TOGETHER", 1)
    alone = splices_of(sequences, exists, *lenders, PAD)
    assert together.exists.any() and all(
        torch.equal(a, b) for a, b in zip(vars(together).values(), vars(alone).values())
    )


def test_where_nothing_fits_there_are_none():
    sequences = torch.tensor([[[START, 4, 5, 6, END, PAD], [START, 6, 7, 5, 8, END]]])
    exists, lenders = torch.ones(1, 2, dtype=torch.bool), (torch.tensor([[0]]), torch.tensor([[1]]))
    # They have words in common, and their end, but no two in a row.
    assert splices_of(sequences, exists, *lenders, PAD).exists.shape == (1, 0)
    none = torch.tensor([[-1]])
    assert splices_of(sequences, exists, none, none, PAD).exists.shape == (1, 0)


@pytest.mark.parametrize("is_both", [False, True])
def test_the_best_of_the_best_are_added_with_what_is_known_of_each_token(is_both):
    sequences = random_titles(documents=3, number=30)
    from_right = torch.zeros(3, 30, dtype=torch.bool)
    from_right[:, 15:] = is_both
    pool = {"sequences": sequences, "own_scores": torch.randn(3, 30), "from_right": from_right}
    pool["own_scores"][:, ::7] = IMPOSSIBLE
    # What is recorded of a token tells which one it is.
    marks = torch.arange(3 * 30 * 8).view(3, 30, 8) * (sequences[:, :, 1:] != PAD)
    pool |= {
        "token_scores": marks.float(),
        "source_attentions": marks.float()[:, :, None, :, None].repeat(1, 1, 2, 1, 3),
    }
    worth = torch.rand(9, dtype=torch.double)

    def shared(titles):
        # Of a title always the same, and of no other.
        return ((titles * worth).sum(2) * 100).sin()

    def obeys(titles):
        return titles[:, :, 1] != 4

    found = with_splices(pool, shared, obeys, PAD, torch.tensor([END]))
    number = found["sequences"].shape[1]
    assert number <= 30 + SPLICES
    for document in range(3):
        exists = (pool["own_scores"][document] > IMPOSSIBLE).tolist()
        words, order = as_words(sequences[document]), shared(sequences)[document].argsort(descending=True).tolist()
        first = [place for place in order if exists[place]]
        sides = [
            [place for place in first if not is_both or bool(from_right[document, place]) is side]
            for side in (False, True)
        ]
        distinct = [list({words[place]: None for place in side})[:LENDERS] for side in sides]
        known = [title for title, there in zip(words, exists) if there]
        longest = max(map(len, known))
        fits = [title for title in all_splices(*distinct, known, longest) if title[0] != 4]
        rows = torch.tensor([[[START, *title, *[PAD] * (8 - len(title))] for title in fits]])
        ranks = shared(rows)[0].argsort(descending=True)[:SPLICES]
        mine = found["sequences"][document, 30:][found["own_scores"][document, 30:] > IMPOSSIBLE]
        assert as_words(mine) == [fits[place] for place in ranks.tolist()]
        flat = sequences[document, :, 1:].flatten()
        for place in range(30, number):
            if found["own_scores"][document, place] <= IMPOSSIBLE:
                continue
            title = as_words(found["sequences"][document, place][None])[0]
            marked = found["token_scores"][document, place][: len(title)].long() - document * 240
            assert flat[marked].tolist() == list(title)
            assert (found["token_scores"][document, place][len(title) :] == 0).all()
            read = found["source_attentions"][document, place]
            torch.testing.assert_close(read[1, :, 2], found["token_scores"][document, place])
            head, tail = int(marked[0]) // 8, int(marked[-1]) // 8
            scores = pool["own_scores"][document]
            # One that has all its words of its end is not seen to have a beginning.
            if head != tail:
                torch.testing.assert_close(found["own_scores"][document, place], (scores[head] + scores[tail]) / 2)


def seen_by_ranking(model, input_ids, **asked):
    seen = []

    def ranking(candidates):
        seen.append(candidates)
        return consensus(candidates)

    output = model.generate(input_ids, **{**ASKED, **asked}, ranking=ranking)
    return seen[-1], output


@pytest.mark.parametrize("use_copy", [False, True])
@pytest.mark.parametrize("settings", [{}, {"decoding_direction": "l2r"}, {"decoding_direction": "r2l"}])
def test_candidates_of_generate_are_those_proposed_and_their_splices(use_copy, settings):
    model = short_writer(use_copy=use_copy)
    input_ids, _ = random_pairs(batch_size=8, vocab_size=12)
    direction = settings.get("decoding_direction")
    plain = f"{direction}+drawn" if direction else PROPOSALS
    if direction:
        # A function ranks what both directions propose.
        by_name = {"ranking": "consensus", "num_return_sequences": 3}
        alone = model.generate(input_ids, **ASKED, **settings, **by_name)
        named = model.generate(input_ids, **ASKED, **settings, **by_name, proposals=f"{plain}+spliced")
        without = model.generate(input_ids, **ASKED, **settings, **by_name, proposals=plain)
        assert torch.equal(alone.sequences, named.sequences)
        assert (named.sequences_scores >= without.sequences_scores - 1e-6).all()
        assert (named.sequences_scores > without.sequences_scores + 1e-6).any()
        return
    before, _ = seen_by_ranking(model, input_ids, proposals=plain)
    after, output = seen_by_ranking(model, input_ids, proposals=f"{plain}+spliced")
    number = before.sequences.shape[1]
    assert torch.equal(after.sequences[:, :number], before.sequences) and after.sequences.shape[1] > number
    for document in range(len(input_ids)):
        titles = as_words(before.sequences[document][before.scores[document] > IMPOSSIBLE])
        spliced = after.sequences[document, number:][after.scores[document, number:] > IMPOSSIBLE]
        assert set(as_words(spliced)) <= all_splices(titles, titles, titles, max(map(len, titles)))
    assert set(output.directions) <= {"l2r", "r2l"}


def test_a_document_has_the_same_splices_whatever_stands_beside_it():
    model = short_writer()
    input_ids, _ = random_pairs(vocab_size=12)
    settings = {**ASKED, "proposals": f"{PROPOSALS}+spliced", "ranking": "consensus", "num_return_sequences": 3}
    together = model.generate(input_ids, **settings)
    for row, ids in enumerate(input_ids):
        alone = model.generate(ids[None], **settings)
        mine = slice(3 * row, 3 * row + 3)
        assert as_words(alone.sequences) == as_words(together.sequences[mine])
        torch.testing.assert_close(alone.sequences_scores, together.sequences_scores[mine])


def test_splices_go_with_any_ranking_and_what_was_recorded():
    model = short_writer()
    input_ids, _ = random_pairs(vocab_size=12)
    details = {"output_scores": True, "output_attentions": True, "num_return_sequences": 3}
    for ranking in ("own", "joint", {"consensus": 1, "l2r": 0.1}):
        output = model.generate(input_ids, **ASKED, **details, proposals=f"{PROPOSALS}+spliced", ranking=ranking)
        lengths = (output.sequences != PAD).sum(1) - 1
        for read, length in zip(output.source_attentions.sum(-1), lengths.tolist()):
            torch.testing.assert_close(read[:, :length], torch.ones_like(read[:, :length]))
        assert output.beam_indices is None


def test_splices_obey_processors(monkeypatch):
    model = short_writer()
    input_ids, _ = random_pairs(vocab_size=12)
    settings = {"proposals": f"{PROPOSALS}+spliced", "no_repeat_ngram_size": 1, "min_length": 4}
    candidates, _ = seen_by_ranking(model, input_ids, **settings)
    exists = candidates.scores > IMPOSSIBLE
    for title in as_words(candidates.sequences[exists]):
        assert len(set(title)) == len(title) >= 3
    # Without a look at them some would not have.
    monkeypatch.setattr(
        generation_bidir_seq2seq, "may_be_written", lambda titles, *_: torch.ones(len(titles), dtype=torch.bool)
    )
    careless, _ = seen_by_ranking(model, input_ids, **settings)
    titles = as_words(careless.sequences[careless.scores > IMPOSSIBLE])
    assert any(len(set(title)) < len(title) for title in titles)


def test_who_may_be_written_is_said_token_by_token():
    titles = torch.tensor([[START, 4, 5, 6, END], [START, 5, 4, END, PAD], [START, 4, 7, END, PAD]])
    plain = LogitsProcessorList([SuppressTokensLogitsProcessor([7, PAD])])
    assert may_be_written(titles, plain, 9, PAD).tolist() == [True, True, False]
    pairs = LogitsProcessorList([NoBadWordsLogitsProcessor([[4, 5]], eos_token_id=END)])
    assert may_be_written(titles, pairs, 9, PAD).tolist() == [False, True, True]
    # Some go by which document a row is of: here two rows of each.
    own = LogitsProcessorList([EncoderNoRepeatNGramLogitsProcessor(1, torch.tensor([[7, 8], [8, 8]]))])
    rows = titles[[2, 1]].repeat_interleave(2, dim=0)
    assert may_be_written(rows, own, 9, PAD).tolist() == [False, False, True, True]
    assert may_be_written(rows.flip(0), own, 9, PAD).all()


def test_who_goes_by_beams_is_told_that_some_titles_have_none():
    model = tiny_model()
    input_ids, _ = random_pairs()
    asked = {"decoding_direction": "l2r", "prefix_allowed_tokens_fn": lambda row, written: [4 + row, END]}
    written = model.generate(input_ids, **asked, num_beams=3, max_length=6)
    assert all(set(title) <= {4 + row, END} for row, title in enumerate(as_words(written)))
    with pytest.raises(ValueError, match="prefix_allowed_tokens_fn goes with beams.*use ranking='own'"):
        model.generate(input_ids, **asked, num_beams=3, max_length=6, ranking="consensus")


def test_there_must_be_something_to_splice_and_to_compare_with():
    model = tiny_model()
    input_ids, _ = random_pairs()
    with pytest.raises(ValueError, match="proposals='spliced': there must be something to splice"):
        model.generate(input_ids, proposals="spliced")
    with pytest.raises(ValueError, match="proposals='l2r\\+spliced'.*leave 'spliced' out"):
        model.generate(input_ids, proposals="l2r+spliced", consensus_samples=0)
    with pytest.raises(ValueError, match="leave 'drawn' and 'spliced' out"):
        model.generate(input_ids, proposals="l2r+drawn+spliced", do_sample=True)
    # What is spliced need not be drawn.
    model.generate(input_ids, **ASKED, proposals="l2r+r2l+spliced")


@pytest.mark.parametrize("direction", ["both", "l2r", "r2l"])
@pytest.mark.parametrize("ranking", ["consensus", "weights"])
def test_titles_that_were_cut_lend_nothing(direction, ranking):
    searches = "l2r+r2l" if direction == "both" else direction
    weights = {name: 1.0 for name in ("l2r", "r2l") if name in searches}
    asked = {"decoding_direction": direction, "proposals": f"{searches}+drawn+spliced", "num_beams": 4}
    asked |= {"ranking": ranking if ranking == "consensus" else weights, "max_length": 12}
    for seed in range(4):
        torch.manual_seed(seed)
        model, input_ids = tiny_model(vocab_size=12, spread=0.8), torch.randint(4, 12, (6, 7))
        assert all(len(title) == 11 for title in as_words(model.generate(input_ids, **asked, min_length=12)))
        # A title has an end, or there was no room for one.
        assert all(title[-1] == END or len(title) == 11 for title in as_words(model.generate(input_ids, **asked)))


def test_what_processors_forbid_stays_forbidden_where_infinities_are_removed():
    asked = {"num_beams": 3, "max_length": 14, "ranking": "consensus", "no_repeat_ngram_size": 3}
    for seed in range(6):
        torch.manual_seed(seed)
        model, input_ids = tiny_model(vocab_size=12, spread=0.8), torch.randint(4, 12, (6, 7))
        for title in as_words(model.generate(input_ids, **asked, remove_invalid_values=True)):
            grams = [title[place : place + 3] for place in range(len(title) - 2)]
            assert len(set(grams)) == len(grams)
