"""What the CPU computes, on a GPU: the same losses, gradients and titles."""

import pytest
import torch
from conftest import random_pairs, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.mark.parametrize("variant", [{}, {"use_copy": True}, {"rnn_type": "gru"}], ids=str)
def test_it_learns_the_same(variant):
    model, (input_ids, labels) = tiny_model(spread=0.3, twin_dropout=0.0, **variant).train(), random_pairs()
    results = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        loss = model(input_ids=input_ids.to(device), labels=labels.to(device)).loss
        loss.backward()
        grads = {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach().cpu(), grads))
    torch.testing.assert_close(*results, **CLOSE)


@pytest.mark.parametrize("variant", [{}, {"use_copy": True}, {"twin_memory": "features"}], ids=str)
@pytest.mark.parametrize("settings", [{}, {"ranking": "joint"}, {"vocabulary_shortlist": 5}], ids=str)
@pytest.mark.parametrize("direction", ["l2r", "both"])
def test_it_writes_the_same(variant, settings, direction):
    if direction == "l2r" and "ranking" in settings:
        pytest.skip("one direction has nothing to rank")
    model, (input_ids, _) = tiny_model(**variant), random_pairs()
    settings = {**settings, "num_beams": 3, "max_new_tokens": 7, "decoding_direction": direction}
    outputs = [
        model.to(device).generate(input_ids.to(device), **settings, return_dict_in_generate=True)
        for device in ("cpu", "cuda")
    ]
    assert torch.equal(outputs[0].sequences, outputs[1].sequences.cpu())
    torch.testing.assert_close(outputs[0].sequences_scores, outputs[1].sequences_scores.cpu(), **CLOSE)
