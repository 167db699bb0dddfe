"""What a diagnosis says of twins."""

import json

import pytest
import torch
from conftest import random_pairs, tiny_model
from datasets import Dataset

from bidir_seq2seq.commands.diagnose import main
from bidir_seq2seq.diagnosis import PARTNERS, answer_leaks, by_part, twin_log_probs
from bidir_seq2seq.tokenization import build_char_tokenizer

END = 3


def full_batch(use_copy: bool = False):
    input_ids, _ = random_pairs()
    labels = torch.randint(4, 24, (4, 7)).index_fill(1, torch.tensor([6]), END)
    labels[2, 4:] = torch.tensor([END, -100, -100])
    return {"input_ids": input_ids, "labels": labels}


@pytest.mark.parametrize("use_copy", [False, True])
@pytest.mark.parametrize("partner", ["none", "gold"])
def test_log_probabilities_are_the_loss_of_forward(partner, use_copy):
    model, batch = tiny_model(use_copy=use_copy).eval(), full_batch()
    found = twin_log_probs(model, batch, partner)
    loss = model(**batch, use_twin=partner == "gold").loss
    number = 2 * (batch["labels"] != -100).sum()
    torch.testing.assert_close(-sum(values.sum() for values in found.values()) / number, loss)


@pytest.mark.parametrize("use_copy", [False, True])
def test_an_answer_leaks_from_the_middle_on_and_only_through_true_words(use_copy):
    model, batch = tiny_model(use_copy=use_copy).eval(), full_batch()
    for values in answer_leaks(model, batch, "none").values():
        assert (values == 0).all()
    for values in answer_leaks(model, batch, "own").values():
        assert (values == 0).all()
    for name, values in answer_leaks(model, batch).items():
        # A title of n words: step t sees its twin's words n - t to n - 1, its own answer among them from n / 2 on.
        for row, size in enumerate([6, 6, 4, 6]):
            half = size // 2
            assert (values[row, :half] == 0).all(), name
            assert (values[row, half:size] != 0).all(), name
            assert (values[row, size:] == 0).all(), name


def test_parts_are_tenths_of_each_row():
    values = torch.tensor([[1.0, 2.0, 9.0], [5.0, 9.0, 9.0]])
    exists = torch.tensor([[True, True, False], [True, False, False]])
    found = by_part([values], [exists])
    assert found[0] == 3.0 and found[5] == 2.0 and found[1] is None


def test_special_ids_may_stand_anywhere():
    model = tiny_model(pad_token_id=20, unk_token_id=21, bos_token_id=22, eos_token_id=23, decoder_start_token_id=22)
    labels = torch.randint(0, 20, (4, 7)).index_fill(1, torch.tensor([6]), 23)
    batch = {"input_ids": torch.randint(0, 20, (4, 5)), "labels": labels}
    assert any(bool(leaks.any()) for leaks in answer_leaks(model.eval(), batch).values())
    with pytest.raises(ValueError, match="a vocabulary of 1 words has no other one"):
        answer_leaks(
            tiny_model(vocab_size=5).eval(),
            {**batch, "labels": torch.tensor([[4, 3]]), "input_ids": torch.tensor([[4]])},
        )


def test_the_command_says_and_draws_it(tmp_path, capsys):
    texts = ["abcdef", "fedcba", "abba", "cafe"]
    tokenizer = build_char_tokenizer(texts, min_frequency=1)
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.max_length = 9
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_dict({"source": texts, "target": [["abc", "a"], ["fed"], ["ab"], ["ca"]]}).to_json(
        tmp_path / "test.jsonl"
    )
    main([str(tmp_path / "model"), "--test_file", str(tmp_path / "test.jsonl"), "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "left to right" in said and "With the twins muted" in said
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert set(found["log_probs"]["l2r"]) == set(PARTNERS) and list(found["scores"]) == ["l2r", "r2l", "both", "joint"]
    assert (tmp_path / "out" / "diagnosis.png").stat().st_size > 20_000
    assert 0 <= found["muted"]["changed"] <= 100


def test_one_direction_has_no_twin():
    with pytest.raises(ValueError, match="decoder_directions='l2r': one direction has no twin"):
        twin_log_probs(tiny_model(decoder_directions="l2r"), full_batch())
    with pytest.raises(ValueError, match="partner='mine' must be one of none, gold, own"):
        twin_log_probs(tiny_model(), full_batch(), "mine")
