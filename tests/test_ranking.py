"""Ranking rules, beside what they say they are."""

import json
import math

import pytest
import torch
from conftest import random_pairs, tiny_model

from bidir_seq2seq import BidirSeq2SeqForConditionalGeneration
from bidir_seq2seq.ranking_bidir_seq2seq import RANKING_RULES, Candidates, _overlap

PAD, START, END = 0, 2, 3


def common(one, other) -> int:
    """The length of the longest common subsequence, by its definition."""
    best = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for place, known in enumerate(other):
            row.append(best[place] + 1 if word == known else max(best[place + 1], row[place]))
        best = row
    return best[-1]


def f1(one, other) -> float:
    return 2 * common(one, other) / (len(one) + len(other)) if one or other else 1.0


def test_consensus_is_the_expected_overlap_with_what_a_title_might_be():
    sequences = torch.randint(4, 8, (5, 6, 9))
    sequences[:, :, 0] = START
    for row in sequences.flatten(0, 1):
        size = int(torch.randint(1, 9, (1,)))
        row[size] = END
        row[size + 1 :] = PAD
    log_probs = {name: torch.randn(5, 6) * 2 for name in ("l2r", "r2l")}
    # The same title twice counts once.
    sequences[0, 2] = sequences[0, 0]
    for values in log_probs.values():
        values[0, 2] = values[0, 0]
    judged = {name: values.flatten() for name, values in log_probs.items()}
    found = RANKING_RULES["consensus"](Candidates(sequences, torch.zeros(5, 6), PAD, 1.0, lambda labels: judged))
    for document, rows in enumerate(sequences[:, :, 1:].tolist()):
        titles = [tuple(word for word in row if word != PAD) for row in rows]
        weights = [
            math.exp(float(log_probs["l2r"][document, place] + log_probs["r2l"][document, place]) / 2)
            if titles.index(title) == place
            else 0.0
            for place, title in enumerate(titles)
        ]
        for place, title in enumerate(titles):
            overlaps = [f1(title, other) for other in titles]
            expected = sum(w * x for w, x in zip(weights, overlaps)) / sum(weights)
            assert math.isclose(float(found[document, place]), expected, abs_tol=1e-5)


@pytest.mark.parametrize(("length", "other"), [(9, 7), (30, 130), (5, 62), (6, 63), (70, 125), (1, 1)])
def test_what_titles_of_any_length_have_in_common(length, other):
    words, others = torch.randint(0, 4, (3, 4, length)), torch.randint(0, 4, (3, 5, other))
    for titles in (words, others):
        for title in titles.flatten(0, 1):
            title[int(torch.randint(0, len(title) + 1, (1,))) :] = -1
    found = _overlap(words, others)
    for document in range(3):
        one, two = ([[word for word in title if word >= 0] for title in x[document].tolist()] for x in (words, others))
        expected = torch.tensor([[f1(title, own) for own in two] for title in one])
        torch.testing.assert_close(found[document], expected)


def test_consensus_is_the_mean_overlap_with_titles_that_were_drawn():
    def rows(number):
        sequences = torch.randint(4, 7, (4, number, 8))
        sequences[:, :, 0] = START
        for row in sequences.flatten(0, 1):
            size = int(torch.randint(1, 8, (1,)))
            row[size] = END
            row[size + 1 :] = PAD
        return sequences

    proposed, drawn = rows(3), torch.nn.functional.pad(rows(5), (0, 2), value=PAD)
    candidates = Candidates(proposed, torch.zeros(4, 3), PAD, 1.0, judge=None, draw=lambda limits: drawn)
    found = RANKING_RULES["consensus"](candidates)
    for document in range(4):
        one, other = (
            [tuple(word for word in row if word != PAD) for row in x[document, :, 1:].tolist()]
            for x in (proposed, drawn)
        )
        for place, title in enumerate(one):
            expected = sum(f1(title, own) for own in other) / len(other)
            assert math.isclose(float(found[document, place]), expected, abs_tol=1e-5)


def test_a_generation_config_that_knows_only_the_older_flag_is_obeyed(tmp_path):
    model = tiny_model(vocab_size=24)
    input_ids, _ = random_pairs()
    joint, own = (model.generate(input_ids, num_beams=3, max_length=7, ranking=rule) for rule in ("joint", "own"))
    assert not torch.equal(joint, own)
    for flag, expected in ((True, joint), (False, own)):
        model.save_pretrained(tmp_path)
        file = tmp_path / "generation_config.json"
        stored = json.loads(file.read_text())
        for name in ("ranking", "proposals"):
            stored.pop(name, None)
        file.write_text(json.dumps({**stored, "joint_rescoring": flag, "num_beams": 3, "max_length": 7}))
        again = BidirSeq2SeqForConditionalGeneration.from_pretrained(tmp_path).eval()
        assert torch.equal(again.generate(input_ids), expected)
