"""R-Drop: the loss beside its definition, and a training by it."""

import pytest
import torch
from conftest import random_pairs, tiny_model
from torch.nn import functional as F

from bidir_seq2seq import consistency
from bidir_seq2seq.consistency import Consistency, read_twice
from bidir_seq2seq.kernels_bidir_seq2seq import plain_kernels

VARIANTS = [
    {"twin_partner": "none"},
    {"decoder_directions": "l2r", "use_prior": False},
    {"decoder_directions": "r2l"},
    {"use_copy": True, "twin_partner": "none"},
]


def read_otherwise(num_pairs: int = 4):
    """Pairs, and the same titles of other documents, which stand for what dropout does to the same ones."""
    torch.manual_seed(1)
    input_ids, labels = random_pairs(num_pairs)
    other, _ = random_pairs(num_pairs)
    length = max(input_ids.shape[1], other.shape[1])
    input_ids = torch.cat([F.pad(x, (0, length - x.shape[1])) for x in (input_ids, other)])
    return {"input_ids": input_ids, "labels": torch.cat([labels, labels])}


def by_definition(model, inputs, weight):
    """Half of the loss of Liang et al. (eq. 4), from all logits at once."""
    output = model(**inputs, skip_logits=False)
    total = 0
    for direction, logits in zip(model.directions, (output.logits, output.r2l_logits)):
        (first, second), targets = logits.log_softmax(-1).chunk(2), direction.targets(inputs["labels"])
        is_target = targets.chunk(2)[0] != -100
        p, q = first[is_target], second[is_target]
        one = F.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        other = F.kl_div(p, q, log_target=True, reduction="none").sum(-1)
        total = total + weight * 0.5 * (one + other).mean() / 2
    return output.loss + total / len(model.directions)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kernels", ["fast", "plain"])
@pytest.mark.parametrize("steps", [1, 3, 100])
def test_the_loss_is_as_defined_and_so_is_its_gradient(variant, kernels, steps, monkeypatch):
    monkeypatch.setattr(consistency, "STEPS", steps)
    model = tiny_model(spread=0.3, dropout=0.0, label_smoothing=0.1, **variant).train()
    inputs = read_otherwise()
    parameters = [x for name, x in model.named_parameters() if "twin_attention" not in name]
    expected = by_definition(model, inputs, 300.0)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)

    def found():
        loss = model(**inputs, objective=Consistency(300.0, 0.1)).loss
        return loss, torch.autograd.grad(loss, parameters, allow_unused=True)

    if kernels == "plain":
        with plain_kernels():
            loss, gradients = found()
    else:
        loss, gradients = found()
    assert loss > model(**inputs).loss + 1e-3
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for own, right in zip(gradients, wanted):
        own, right = (torch.zeros(()) if x is None else x for x in (own, right))
        torch.testing.assert_close(*torch.broadcast_tensors(own, right), rtol=1e-4, atol=1e-5)


def test_without_dropout_reading_twice_is_reading_once():
    model = tiny_model(dropout=0.0, twin_partner="none", label_smoothing=0.1).train()
    input_ids, labels = random_pairs(5)
    batch = {"input_ids": input_ids, "labels": labels, "num_items_in_batch": (labels != -100).sum() * 2}
    twice = read_twice(batch, 5.0, 0.1)
    assert twice["labels"].shape[0] == 10 and twice["num_items_in_batch"] is batch["num_items_in_batch"]
    torch.testing.assert_close(model(**twice).loss, model(**batch).loss)
    model.config.dropout = 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    torch.manual_seed(0)
    compared = model(**twice).loss
    torch.manual_seed(0)
    assert compared > model(**read_twice(batch, 0.0, 0.1)).loss
