"""The search over a vocabulary of few words, scored by a table, beside trying everything."""

from itertools import product

import pytest
import torch
from conftest import random_pairs, tiny_model
from transformers import EosTokenCriteria, LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor, SuppressTokensLogitsProcessor

from bidir_seq2seq.search_bidir_seq2seq import Beam, StepRecords, search
from bidir_seq2seq.steps_bidir_seq2seq import Step

PAD, START, END, WORDS, LONGEST = 0, 1, 2, (3, 4, 5), 4
SIZE = 6


class Table:
    """A language of log-probabilities `[SIZE, SIZE]` of the next word after the last one; both steps and scores."""

    reads_written = False

    def __init__(self, log_probs: torch.Tensor):
        self.table = log_probs

    def step(self, ids, need_weights=False):
        return Step(self.table[ids], None)

    def reorder(self, parents):
        """The last word is all there is to remember."""

    def log_probs(self, features, partners=None, written=None):
        return features

    def best(self, features, scores, count, forbidden, partners=None, written=None):
        totals = features.unflatten(1, scores.shape[1:]).clone()
        for direction, ids in enumerate(forbidden):
            totals[:, direction, :, ids] = float("-inf")
        sums, places = (totals + scores[..., None]).flatten(2).topk(count)
        return sums, places // SIZE, places % SIZE


def all_titles(table: torch.Tensor) -> list[tuple[float, list[int]]]:
    """Every title of at most LONGEST words and its log-probability, best first; one cut short has no end."""
    found = []
    for length in range(LONGEST + 1):
        for words in product(WORDS, repeat=length):
            path = [START, *words, END][: LONGEST + 1]
            found.append((float(sum(table[a, b] for a, b in zip(path, path[1:]))), path[1:]))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("num_beams", [1, 2, 81])
@pytest.mark.parametrize("is_plain", [True, False])
def test_a_search_needs_neither_model_nor_config(num_beams, is_plain):
    table = torch.randn(SIZE, SIZE).log_softmax(-1)
    table[:, [PAD, START]] = float("-inf")
    criteria = StoppingCriteriaList([EosTokenCriteria(END), MaxLengthCriteria(LONGEST + 1)])
    never = SuppressTokensLogitsProcessor([PAD, START], device="cpu")
    # Another processor makes the search look at all scores; this one forbids nothing in so short a title.
    processors = LogitsProcessorList([never] if is_plain else [never, NoRepeatNGramLogitsProcessor(LONGEST + 2)])
    starts = torch.full((2,), START)
    beam = Beam(starts, num_beams, [criteria], LONGEST + 1, pad_id=PAD, length_penalty=0.0)
    search(Table(table), Table(table), beam, [processors], [StepRecords()])
    assert not beam.open.any()
    best = all_titles(table)
    for scores, paths in zip(beam.finished_scores, beam.finished_paths[..., 1:, 0]):
        if num_beams == 81:
            count = len([score for score in scores.tolist() if score > float("-inf")])
            torch.testing.assert_close(scores[:count], torch.tensor([score for score, _ in best[:count]]))
        written = [word for word in paths[0].tolist() if word != PAD]
        assert any(words == written and score == pytest.approx(float(scores[0]), abs=1e-5) for score, words in best)


@pytest.mark.parametrize("variant", [{}, {"twin_memory": "features"}, {"use_attention": False}], ids=str)
def test_the_history_tells_how_titles_grew(variant):
    model, (input_ids, _) = tiny_model(**variant), random_pairs(batch_size=2)
    settings = {"num_beams": 3, "max_new_tokens": 6, "return_dict_in_generate": True, "joint_rescoring": False}
    output = model.generate(input_ids, **settings, output_attentions=True)
    plain = model.generate(input_ids, **settings)
    assert torch.equal(output.sequences, plain.sequences) and plain.history is None
    history = output.history
    steps = len(history.tokens)
    assert len(history.parents) == len(history.scores) == len(history.partner_attentions) == steps
    assert len(history.source_attentions) == (0 if "use_attention" in variant else steps)
    for number, read in enumerate(history.partner_attentions, start=1):
        assert read.shape == (2, 2, 3, 3, number)
        torch.testing.assert_close(read.sum(-1), torch.ones(2, 2, 3, 3))
    for read in history.source_attentions:
        torch.testing.assert_close(read.sum(-1), torch.ones(2, 2, 3))
    # Each finished title is found again by going back from hypothesis to hypothesis.
    for direction, document, rank in product(range(2), range(2), range(3)):
        tokens = history.finished_tokens[direction, document, rank]
        parents = history.finished_parents[direction, document, rank]
        length = int((parents >= 0).sum())
        assert length > 0 and tokens.shape[0] == steps
        place = int(parents[length - 1])
        for step in reversed(range(length - 1)):
            assert history.tokens[step][direction, document, place] == tokens[step]
            assert history.parents[step][direction, document, place] == parents[step]
            place = int(parents[step])
    best = output.sequences_scores[0]
    torch.testing.assert_close(history.finished_scores[:, 0].max(), best)
    # What dies is what no hypothesis goes on from, and scores only fall.
    for step in range(1, steps):
        before = history.scores[step - 1].gather(2, history.parents[step])
        alive = history.scores[step] > float("-inf")
        assert (history.scores[step][alive] <= before[alive] + 1e-6).all()
