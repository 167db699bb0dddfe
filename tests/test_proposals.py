"""What several searches propose, in one pool."""

import pytest
import torch
from conftest import random_pairs, tiny_model
from transformers import LogitsProcessor, LogitsProcessorList

from bidir_seq2seq.proposals_bidir_seq2seq import merged, proposers_of

PAD, START, END = 0, 2, 3
EACH = {"num_beams": 3, "num_return_sequences": 3, "max_length": 8, "return_dict_in_generate": True}


def titles(output, count: int) -> list[set[tuple[int, ...]]]:
    rows = [tuple(token for token in row if token != PAD) for row in output.sequences.tolist()]
    return [set(rows[start : start + count]) for start in range(0, len(rows), count)]


@pytest.mark.parametrize("use_copy", [False, True])
@pytest.mark.parametrize("name", ["l2r", "r2l"])
def test_a_direction_alone_proposes_what_it_writes_alone(name, use_copy):
    model = tiny_model(use_copy=use_copy)
    input_ids, _ = random_pairs()
    alone = model.generate(input_ids, **EACH, decoding_direction=name)
    proposed = model.generate(input_ids, **EACH, proposals=name)
    assert torch.equal(proposed.sequences, alone.sequences)
    torch.testing.assert_close(proposed.sequences_scores, alone.sequences_scores)
    assert set(proposed.directions) == {name}


@pytest.mark.parametrize("ranking", ["own", "joint"])
def test_the_best_of_all_is_the_best_of_each(ranking):
    model = tiny_model()
    input_ids, _ = random_pairs()
    parts = [model.generate(input_ids, **EACH, proposals=name, ranking=ranking) for name in ("l2r", "r2l", "both")]
    union = model.generate(input_ids, **EACH, proposals="both+r2l+l2r", ranking=ranking)
    best = torch.stack([part.sequences_scores.view(-1, 3)[:, 0] for part in parts])
    torch.testing.assert_close(union.sequences_scores.view(-1, 3)[:, 0], best.amax(0))
    for document, found in enumerate(titles(union, 3)):
        assert len(found) == 3
        assert found <= set.union(*(titles(part, 3)[document] for part in parts))
    rows = union.sequences_scores.view(-1, 3)
    assert torch.equal(rows, rows.sort(dim=1, descending=True).values)


def test_what_was_recorded_goes_with_each_title():
    model = tiny_model()
    input_ids, _ = random_pairs()
    asked = {**EACH, "output_scores": True, "output_attentions": True}
    output = model.generate(input_ids, **asked, proposals="l2r+r2l")
    assert output.l2r_scores is output.beam_indices is output.history is None
    assert model.generate(input_ids, **asked, proposals="l2r+both").history is not None
    alone = {name: model.generate(input_ids, **asked, proposals=name) for name in ("l2r", "r2l")}
    for place, (row, direction) in enumerate(zip(output.sequences, output.directions)):
        row = row[row != PAD]
        expected = alone[direction]
        (same,) = [
            other
            for other in range(place // 3 * 3, place // 3 * 3 + 3)
            if expected.sequences[other][expected.sequences[other] != PAD].tolist() == row.tolist()
        ]
        for name, dim in (("token_scores", 0), ("source_attentions", 1)):
            read, known = getattr(output, name)[place], getattr(expected, name)[same]
            torch.testing.assert_close(read.narrow(dim, 0, len(row) - 1), known.narrow(dim, 0, len(row) - 1))


class Forgetful(LogitsProcessor):
    """Forbids a word from the second step on that any of its calls has seen: its memory must be one search's."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        assert input_ids.shape[1] == self.calls + 1
        self.calls += 1
        return scores


def test_each_search_has_processors_of_its_own():
    model = tiny_model()
    input_ids, _ = random_pairs()
    processors = LogitsProcessorList([Forgetful()])
    model.generate(input_ids, **EACH, proposals="l2r+r2l+both", logits_processor=processors)


def test_pools_of_other_lengths_are_padded():
    def pool(length):
        return {
            "sequences": torch.ones(2, 3, length, dtype=torch.long),
            "own_scores": torch.zeros(2, 3),
            "token_scores": torch.ones(2, 3, length - 1),
            "beam_indices": torch.ones(2, 3, length - 1, dtype=torch.long),
            "source_attentions": torch.ones(2, 3, 4, length - 1, 5),
        }

    found = merged([pool(4), pool(6)], pad_id=7)
    assert found["sequences"].tolist()[0][0] == [1, 1, 1, 1, 7, 7]
    assert found["token_scores"].tolist()[1][2] == [1, 1, 1, 0, 0]
    assert found["beam_indices"].tolist()[1][2] == [1, 1, 1, -1, -1]
    assert found["source_attentions"].shape == (2, 6, 4, 5, 5)
    assert found["source_attentions"][0, 0].sum() == 4 * 3 * 5


@pytest.mark.parametrize("proposals", ["", "up", "l2r+l2r", "l2r,r2l", 3])
def test_unknown_proposals_are_refused(proposals):
    with pytest.raises(ValueError, match="must be some of l2r, r2l, both"):
        proposers_of(proposals)


def test_proposals_ask_for_directions_that_write_alone():
    input_ids, _ = random_pairs()
    with pytest.raises(ValueError, match="proposals='l2r' needs directions that have learned to write alone"):
        tiny_model(twin_dropout=0.0).generate(input_ids, proposals="l2r")
    with pytest.raises(ValueError, match="proposals='both' needs decoding_direction='both', not 'l2r'"):
        tiny_model().generate(input_ids, proposals="both", decoding_direction="l2r")
