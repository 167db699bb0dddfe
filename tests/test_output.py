"""Scores of next tokens beside plain ways to compute the same."""

import pytest
import torch
from torch import nn

from bidir_seq2seq.output_bidir_seq2seq import NextTokens, Shortlist, Words

B, K, E = 3, 2, 8
# With and without columns that fill the words up, few to choose from and many.
VOCABULARIES = [24, 1000, 1001, 4800, 5003]


def assert_best(found, log_probs: torch.Tensor, scores: torch.Tensor) -> None:
    """`found` is the best of log-probabilities `[B, D * K, V]` beside the hypotheses' `scores` `[B, D, K]`."""
    sums, parents, ids = found
    plain = log_probs.unflatten(1, scores.shape[1:]) + scores[..., None]
    torch.testing.assert_close(sums, plain.flatten(2).topk(sums.shape[-1]).values)
    places = parents * log_probs.shape[-1] + ids
    torch.testing.assert_close(plain.flatten(2).gather(-1, places), sums)
    assert all(len(set(row)) == len(row) for row in places.flatten(0, 1).tolist())


@pytest.fixture(params=VOCABULARIES)
def layer(request):
    torch.manual_seed(request.param)
    return torch.randn(request.param, E), torch.randn(B, request.param)


def layer_of(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(*reversed(weight.shape), bias=False)
    layer.weight.data = weight
    return layer


def next_tokens_of(weight: torch.Tensor, base: torch.Tensor, shortlist: Shortlist | None = None) -> NextTokens:
    """Of logits `features @ weight.T / 2 + base`."""
    return Words(layer_of(weight), 2 * base).next_tokens(shortlist)


def shortlist_of(allowed: torch.BoolTensor) -> Shortlist:
    """From `[B, V]`; every other word that all documents share is among the documents' own too."""
    shared = allowed.all(0).nonzero().squeeze(1)
    own = allowed.clone()
    own[:, shared[::2]] = False
    return Shortlist(shared, own)


@pytest.mark.parametrize(("num_documents", "documents_alike"), [(B, False), (B, True), (1, True)])
@pytest.mark.parametrize("pairs", [False, True])
def test_probabilities_are_those_of_the_plain_layer(layer, pairs, num_documents, documents_alike):
    weight, base = layer
    base = base[:1] if documents_alike else base
    features = torch.randn(num_documents, 2 * K, *[K] * pairs, E)
    plain = (0.5 * features @ weight.T + base.view(len(base), *[1] * (features.dim() - 2), -1)).log_softmax(-1)
    partners = None
    if pairs:
        partners = torch.rand(num_documents, 2 * K, K).softmax(-1)
        plain = torch.einsum("bqp,bqpv->bqv", partners, plain.exp()).log()
    next_tokens = next_tokens_of(weight, base)
    torch.testing.assert_close(next_tokens.log_probs(features, partners), plain)

    forbidden = [torch.tensor([0, 3]), torch.tensor([0, 5])]
    for rows, ids in zip((slice(0, K), slice(K, 2 * K)), forbidden):
        plain[:, rows, ids] = float("-inf")
    scores = torch.randn(num_documents, 2, K)
    assert_best(next_tokens.best(features, scores, 5, forbidden, partners), plain, scores)
    # A hypothesis that does not exist has no continuations.
    scores[:, :, 1:] = float("-inf")
    assert_best(next_tokens.best(features, scores, 5, forbidden, partners), plain, scores)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("shortlist", [False, True])
def test_where_too_few_words_are_possible_the_rest_are_words_too(pairs, shortlist):
    allowed = shortlist_of(torch.arange(13).expand(B, 13) < 9) if shortlist else None
    next_tokens = next_tokens_of(torch.randn(13, E), torch.randn(B, 13), allowed)
    features = torch.randn(B, 2 * K, *[K] * pairs, E)
    partners = torch.full((B, 2 * K, K), 1 / K) if pairs else None
    forbidden = torch.tensor([0, 2, 3, 5, 6, 7])
    values, _, ids = next_tokens.best(features, torch.zeros(B, 1, 2 * K), 30, [forbidden], partners)
    possible = 2 * K * (3 if shortlist else 7)
    assert (values[..., :possible] > float("-inf")).all() and (values[..., possible:] == float("-inf")).all()
    assert int(ids.max()) < 13


@pytest.mark.parametrize("num_documents", [1, B])
@pytest.mark.parametrize("copies", [1, 2])
def test_words_that_are_not_allowed_are_not_written(layer, num_documents, copies):
    weight, base = layer
    base = base[:num_documents]
    allowed = torch.rand_like(base) < 0.5
    allowed[:, :6] = True
    next_tokens = next_tokens_of(weight, base, shortlist_of(allowed))
    # Each document may be there several times, as in sampling.
    base, allowed = (x.repeat_interleave(copies, dim=0) for x in (base, allowed))
    features = torch.randn(len(base), K, E)
    plain = (0.5 * features @ weight.T + base[:, None]).masked_fill(~allowed[:, None], float("-inf")).log_softmax(-1)
    torch.testing.assert_close(next_tokens.log_probs(features), plain)
    plain[..., [0, 3]] = float("-inf")
    scores = torch.randn(len(base), 1, K)
    assert_best(next_tokens.best(features, scores, 5, [torch.tensor([0, 3])]), plain, scores)


@pytest.mark.parametrize("pairs", [False, True])
def test_stand_ins_stand_for_words_that_are_not_listed(layer, pairs):
    weight, base = layer
    vocab_size, ratio = len(weight), 2.5
    shared = torch.randperm(vocab_size)[: vocab_size // 2]
    own = torch.rand_like(base) < 0.1
    next_tokens = next_tokens_of(weight, base, Shortlist(shared, own, num_stand_ins=7, ratio=ratio))
    features = torch.randn(B, 2 * K, *[K] * pairs, E)
    logits = torch.einsum("b...e,ve->b...v", features / 2, weight) + base.view(B, *[1] * (features.dim() - 2), -1)
    probs = logits.softmax(-1)
    is_stand_in = torch.zeros_like(own)
    is_stand_in[:, shared[-7:]] = True
    listed = own.clone()
    listed[:, shared] = True
    own, listed, is_stand_in = (x.view(B, *[1] * (features.dim() - 2), -1) for x in (own, listed, is_stand_in))
    others = ratio * (probs * (is_stand_in & ~own)).sum(-1, keepdim=True)
    wanted = probs * listed / ((probs * listed).sum(-1, keepdim=True) + others)
    partners = None
    if pairs:
        partners = torch.rand(B, 2 * K, K).softmax(-1)
        wanted = torch.einsum("bqp,bqpv->bqv", partners, wanted)
    found = next_tokens.log_probs(features, partners)
    torch.testing.assert_close(found.exp(), wanted)
    scores = torch.randn(B, 1, 2 * K)
    nothing = torch.tensor([], dtype=torch.long)
    assert_best(next_tokens.best(features, scores, 5, [nothing], partners), wanted.log(), scores)


def test_half_precision_products_have_float_probabilities(layer):
    weight, base = layer
    features = torch.randn(B, K, E)
    next_tokens = next_tokens_of(weight.bfloat16(), base.bfloat16())
    found = next_tokens.log_probs(features.bfloat16())
    assert found.dtype == torch.float32
    plain = (0.5 * features @ weight.T + base[:, None]).log_softmax(-1)
    torch.testing.assert_close(found, plain, rtol=0.02, atol=0.1)
    found[..., 3] = float("-inf")
    scores = torch.randn(B, 1, K)
    assert_best(next_tokens.best(features.bfloat16(), scores, 5, [torch.tensor([3])]), found, scores)


def test_autocast_rounds_products_only(layer):
    weight, base = layer
    features = torch.randn(B, K, E)
    plain = (0.5 * features @ weight.T + base[:, None]).log_softmax(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = next_tokens_of(weight, base).log_probs(features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain, rtol=0.02, atol=0.1)
