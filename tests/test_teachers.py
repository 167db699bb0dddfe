"""Word-level distillation: the loss beside its definition, and trainings by it."""

import pytest
import torch
from conftest import random_pairs, tiny_model

from bidir_seq2seq import consistency, teachers
from bidir_seq2seq.kernels_bidir_seq2seq import plain_kernels
from bidir_seq2seq.teachers import TeacherInputs

VARIANTS = [
    {"twin_partner": "none"},
    {"twin_partner": "gold", "twin_dropout": 1.0},
    {"decoder_directions": "l2r", "use_prior": False},
    {"decoder_directions": "r2l"},
    {"use_copy": True, "twin_partner": "none"},
]


def teachers_of(number: int = 2, **settings):
    models = []
    for seed in range(number):
        torch.manual_seed(100 + seed)
        models.append(tiny_model(spread=0.3, **{**settings, "hidden_size": 8 + 4 * seed}))
    return models


def by_definition(model, models, inputs, share):
    """The mean over all targets, from all logits at once."""
    output = model(**inputs, skip_logits=False)
    total = 0
    for number, direction in enumerate(model.directions):
        targets = direction.targets(inputs["labels"])
        is_target = targets != -100
        probs = 0
        for teacher in models:
            with torch.no_grad():
                read = teacher(**inputs, decoding_direction=direction.name, use_twin=False, skip_logits=False)
            probs = probs + read.logits.softmax(-1) / len(models)
        logits = (output.logits, output.r2l_logits)[number]
        total = total - (probs * logits.log_softmax(-1)).sum(-1)[is_target].mean()
    return (1 - share) * output.loss + share * total / len(model.directions)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kernels", ["fast", "plain"])
@pytest.mark.parametrize(("steps", "number"), [(1, 1), (3, 2), (100, 2)])
def test_the_loss_is_as_defined_and_so_is_its_gradient(variant, kernels, steps, number, monkeypatch):
    for module in (consistency, teachers):
        monkeypatch.setattr(module, "STEPS", steps)
    model = tiny_model(spread=0.3, dropout=0.0, label_smoothing=0.1, **variant).train()
    models = teachers_of(number, **variant)
    input_ids, labels = random_pairs(4)
    inputs = {"input_ids": input_ids, "labels": labels}
    parameters = [x for name, x in model.named_parameters() if "twin_attention" not in name]
    expected = by_definition(model, models, inputs, 0.7)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)

    def found():
        loss = model(**TeacherInputs(models, 0.7)(model, inputs)).loss
        return loss, torch.autograd.grad(loss, parameters, allow_unused=True)

    if kernels == "plain":
        with plain_kernels():
            loss, gradients = found()
    else:
        loss, gradients = found()
    assert (loss - model(**inputs).loss).abs() > 1e-3
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for own, right in zip(gradients, wanted):
        own, right = (torch.zeros(()) if x is None else x for x in (own, right))
        torch.testing.assert_close(*torch.broadcast_tensors(own, right), rtol=1e-4, atol=1e-5)


def test_one_direction_learns_of_twins():
    student = tiny_model(decoder_directions="l2r", dropout=0.0).train()
    (twins,) = teachers_of(1)
    input_ids, labels = random_pairs(4)
    inputs = {"input_ids": input_ids, "labels": labels}
    loss = student(**TeacherInputs([twins], 1.0)(student, inputs)).loss
    torch.testing.assert_close(loss, by_definition(student, [twins], inputs, 1.0))
    assert not twins.training and not any(x.requires_grad for x in twins.parameters())


def test_who_is_taught_by_itself_has_nothing_to_learn():
    """Cross-entropy under a distribution is least where both are the same: no gradient is left."""
    model = tiny_model(twin_partner="none", dropout=0.0).train()
    (itself,) = [tiny_model(twin_partner="none", dropout=0.0)]
    itself.load_state_dict(model.state_dict())
    input_ids, labels = random_pairs(4)
    model(**TeacherInputs([itself], 1.0)(model, {"input_ids": input_ids, "labels": labels})).loss.backward()
    assert max(float(x.grad.abs().max()) for x in model.parameters() if x.grad is not None) < 1e-6


def test_updates_bring_a_student_near_its_teachers():
    student, models = tiny_model(twin_partner="none", dropout=0.0).train(), teachers_of(2, twin_partner="none")
    input_ids, labels = random_pairs(8)
    inputs = TeacherInputs(models, 1.0)
    batch = {"input_ids": input_ids, "labels": labels}
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = student(**inputs(student, batch)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    probs = [teacher(**batch, use_twin=False).logits.softmax(-1) for teacher in models]
    floor = float(-(torch.stack(probs).mean(0) * torch.stack(probs).mean(0).log()).sum(-1)[labels != -100].mean())
    assert floor - 0.05 < losses[-1] < losses[0] and losses[-1] - floor < 0.5 * (losses[0] - floor)


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match="soft_share=.* above 0 and at most 1"):
        TeacherInputs(teachers_of(1), share)
