import pytest
import torch
from conftest import random_pairs, tiny_model
from torch.nn import functional as F

from bidir_seq2seq import kernels_bidir_seq2seq
from bidir_seq2seq.kernels_bidir_seq2seq import MANY_ROWS
from bidir_seq2seq.loss_bidir_seq2seq import projected_cross_entropy


def random_inputs(num_targets: int = 23, num_documents: int = 4, vocab_size: int = 30, size: int = 7):
    features = torch.randn(num_targets, size, requires_grad=True)
    weight = torch.randn(vocab_size, size, requires_grad=True)
    base = (3 * torch.randn(num_documents, vocab_size)).requires_grad_()
    documents = torch.randint(num_documents, (num_targets,))
    return (features, weight, base), documents, torch.randint(vocab_size, (num_targets,))


@pytest.mark.parametrize("block_rows", [1, 5, 23, 100])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_it_is_the_cross_entropy_of_the_logits(block_rows, label_smoothing, monkeypatch):
    monkeypatch.setitem(kernels_bidir_seq2seq.BLOCK_ROWS, "cpu", block_rows)
    assert_cross_entropy(*random_inputs(), label_smoothing)


@pytest.mark.parametrize("num_targets", [300, MANY_ROWS + 1])
def test_large_products_give_it_too(num_targets):
    # Sums of so many terms differ more with their order.
    assert_cross_entropy(*random_inputs(num_targets, vocab_size=100, size=40), label_smoothing=0.1, atol=1e-4)


def assert_cross_entropy(inputs, documents, targets, label_smoothing, atol=1e-5):
    ours = projected_cross_entropy(*inputs, documents, targets, label_smoothing)
    features, weight, base = inputs
    logits = features @ weight.T + base[documents]
    plain = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    torch.testing.assert_close(ours, plain)
    for ours_grad, plain_grad in zip(torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * plain, inputs)):
        torch.testing.assert_close(ours_grad, plain_grad, rtol=1e-4, atol=atol)
    with torch.no_grad():
        torch.testing.assert_close(
            projected_cross_entropy(*inputs, documents, targets, label_smoothing), plain.detach()
        )


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_a_mixture_is_smoothed_by_the_share_of_the_vocabulary(label_smoothing, weighed):
    inputs, documents, targets = random_inputs()
    targets[::4] = 31  # Outside the vocabulary: to be copied, or not at all.
    copied, rest = (torch.rand(len(targets)) / 2 for _ in range(2))
    mixture = [copied.requires_grad_(), (1 - copied.detach() - rest).requires_grad_()]
    weights = torch.randn(len(targets)) if weighed else None
    ours = projected_cross_entropy(*inputs, documents, targets, label_smoothing, *mixture, weights)
    features, weight, base = inputs
    log_probs = (features @ weight.T + base[documents]).log_softmax(-1)
    of_vocabulary = mixture[1] * log_probs.exp().gather(1, targets.clamp(max=29)[:, None]).squeeze(1) * (targets < 30)
    total = mixture[0] + of_vocabulary
    smoothed = label_smoothing * (of_vocabulary / total).detach()
    plain = -(1 - smoothed) * total.log() - smoothed * log_probs.mean(-1)
    plain = (plain if weights is None else plain * weights).sum()
    torch.testing.assert_close(ours, plain)
    wanted = [*inputs, *mixture]
    for ours_grad, plain_grad in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(plain, wanted)):
        torch.testing.assert_close(ours_grad, plain_grad, rtol=1e-4, atol=1e-5)


def test_extreme_logits_stay_finite():
    inputs, documents, targets = random_inputs()
    scaled = [1e4 * x.detach() for x in inputs]
    scaled = [x.requires_grad_() for x in scaled]
    loss = projected_cross_entropy(*scaled, documents, targets)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(loss, scaled))


def test_no_target_is_no_loss():
    inputs, documents, targets = random_inputs()
    loss = projected_cross_entropy(inputs[0][:0], *inputs[1:], documents[:0], targets[:0])
    assert loss == 0
    assert all((grad == 0).all() for grad in torch.autograd.grad(loss, inputs))


def test_autocast_rounds_products_only():
    inputs, documents, targets = random_inputs()
    exact = projected_cross_entropy(*inputs, documents, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = projected_cross_entropy(*inputs, documents, targets)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
    for ours, exact_grad in zip(torch.autograd.grad(rounded, inputs), torch.autograd.grad(exact, inputs)):
        assert ours.dtype == torch.float32
        assert (ours - exact_grad).norm() < 0.03 * exact_grad.norm()


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"decoder_directions": "l2r"},
        {"decoder_directions": "r2l"},
        {"use_prior": False},
        {"tie_word_embeddings": True, "label_smoothing": 0.1},
        {"use_copy": True},
        {"use_copy": True, "label_smoothing": 0.1, "decoder_directions": "r2l"},
        {"use_copy": True, "use_prior": False, "copy_context": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_items", [None, 17])
def test_skipping_logits_changes_no_loss_and_no_gradient(variant, num_items):
    model = tiny_model(spread=0.4, **{"twin_dropout": 0.0, **variant}).train()
    input_ids, labels = random_pairs()
    results = []
    for skip_logits in (True, False):
        model.zero_grad()
        outputs = model(input_ids=input_ids, labels=labels, num_items_in_batch=num_items, skip_logits=skip_logits)
        assert (outputs.logits is None) == skip_logits
        outputs.loss.backward()
        results.append((outputs.loss, {name: p.grad.clone() for name, p in model.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, grad in results[0][1].items():
        torch.testing.assert_close(grad, results[1][1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_logits_come_back_outside_training_and_on_request():
    input_ids, labels = random_pairs()
    model = tiny_model()
    assert model(input_ids=input_ids, labels=labels).logits.shape == (4, 6, 24)
    assert model.train()(input_ids=input_ids, labels=labels).logits is None
    assert model(input_ids=input_ids, labels=labels, skip_logits=False).r2l_logits.shape == (4, 6, 24)
