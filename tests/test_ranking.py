"""Ranking rules, beside what they say they are."""

import json
import math
from collections import Counter

import torch
from conftest import random_pairs, tiny_model

from bidir_seq2seq import BidirSeq2SeqForConditionalGeneration
from bidir_seq2seq.ranking_bidir_seq2seq import RANKING_RULES, Candidates

PAD, START, END = 0, 2, 3


def ngrams(words, size):
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def f1(one, other, size):
    left, right = ngrams(one, size), ngrams(other, size)
    total = sum(left.values()) + sum(right.values())
    return 2 * sum((left & right).values()) / total if total else 1.0


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
            overlaps = [(f1(title, other, 1) + f1(title, other, 2)) / 2 for other in titles]
            expected = sum(w * x for w, x in zip(weights, overlaps)) / sum(weights)
            assert math.isclose(float(found[document, place]), expected, abs_tol=1e-5)


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
            expected = sum((f1(title, own, 1) + f1(title, own, 2)) / 2 for own in other) / len(other)
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
