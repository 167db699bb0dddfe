"""From features to words beside plain ways to compute the same."""

import pytest
import torch
from conftest import random_pairs, tiny_model
from torch import nn

from bidir_seq2seq.cache_bidir_seq2seq import CACHE_NAME
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


def brute_force_mixture(model, input_ids, inputs, direction: str, source_ids=None) -> torch.Tensor:
    """Probabilities `[T, V + X]` after each input `[T]` of one document `[S]` without padding, word by word."""
    source = (input_ids if source_ids is None else source_ids).tolist()
    encoded = model.get_encoder()(input_ids[None])
    known = inputs.where(inputs < model.config.vocab_size, model.config.unk_token_id)
    output = model.model(decoder_input_ids=known[None], encoder_outputs=encoded, decoding_direction=direction)
    attention = model.copy_attention[direction]
    scale = model.config.hidden_size**-0.5
    start = {"l2r": 2, "r2l": 3}[direction]
    ordered = source if direction == "l2r" else source[::-1]
    states = encoded.last_hidden_state[0] if direction == "l2r" else encoded.last_hidden_state[0].flip(0)
    written, found = [], []
    for token, feature in zip(inputs.tolist(), output.last_hidden_state[0]):
        written.append(token)
        scores = []
        for place, state in enumerate(states):
            score = attention.query(feature) @ attention.key(state) * scale
            before = [start, *(None if word in (0, 2, 3) else word for word in ordered[:place])]
            for number in range(1, model.config.copy_context + 1):
                if len(before) >= number and len(written) >= number and before[-number:] == written[-number:]:
                    # A title may begin as its document does; before the start there is nothing.
                    score = score + attention.follow(feature)[number - 1]
            scores.append(score if ordered[place] not in (0, 2, 3) else torch.tensor(float("-inf")))
        weights = torch.stack(scores).softmax(0)
        share = attention.share(feature).sigmoid()
        logits = model.lm_head(feature)
        if model.prior is not None:
            logits = (logits + model.prior(encoded.source_words)[0]) / 2
        probs = torch.zeros(max(24, max(source) + 1))
        probs[:24] = logits.softmax(0) * (1 - share)
        for place, word in enumerate(ordered):
            probs[word] += float(share * weights[place])
        found.append(probs)
    return torch.stack(found)


@torch.no_grad()
@pytest.mark.parametrize("direction", ["l2r", "r2l"])
@pytest.mark.parametrize("variant", [{}, {"use_prior": False}, {"copy_context": 1}, {"copy_context": 3}], ids=str)
def test_copies_are_mixed_with_the_vocabulary(direction, variant):
    model = tiny_model(use_copy=True, **variant)
    # A repeated word, a repeated pair, an end within, and a title that begins as the document does.
    input_ids = torch.tensor([5, 6, 7, 5, 6, 3, 8, 1, 6])
    inputs = torch.tensor([[2, 5, 6, 7, 8], [3, 6, 1, 8, 6]][direction == "r2l"])
    wanted = brute_force_mixture(model, input_ids, inputs, direction)
    found = model(input_ids=input_ids[None], decoder_input_ids=inputs[None], decoding_direction=direction).logits
    torch.testing.assert_close(found[0].exp(), wanted, rtol=1e-4, atol=1e-6)
    # A token at a time, beside padding.
    padded = nn.functional.pad(input_ids, (2, 1))[None]
    past = None
    for place, token in enumerate(inputs):
        step = model(
            input_ids=padded,
            decoder_input_ids=token.view(1, 1),
            decoding_direction=direction,
            past_key_values=past,
            use_cache=True,
        )
        past = step[CACHE_NAME]
        torch.testing.assert_close(step.logits[0, 0].exp(), wanted[place], rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("direction", ["l2r", "r2l"])
def test_words_outside_the_vocabulary_are_copied_by_their_place(direction):
    model = tiny_model(use_copy=True)
    input_ids, extended = torch.tensor([5, 1, 7, 1, 1]), torch.tensor([5, 24, 7, 25, 24])
    inputs = torch.tensor([[2, 24, 7], [3, 24, 25]][direction == "r2l"])
    wanted = brute_force_mixture(model, input_ids, inputs, direction, extended)
    # The bonus of the prior and its features know of them no more than that they are unknown.
    found = model(
        input_ids=input_ids[None],
        extended_input_ids=extended[None],
        decoder_input_ids=inputs[None],
        decoding_direction=direction,
    )
    assert found.logits.shape == (1, 3, 26)
    torch.testing.assert_close(found.logits[0].exp(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", [{"decoding_direction": "l2r"}, {"decoding_direction": "r2l"}, {}])
@pytest.mark.parametrize("settings", [{}, {"vocabulary_shortlist": 4}, {"no_repeat_ngram_size": 2}], ids=str)
def test_searches_write_words_outside_the_vocabulary(way, settings):
    model = tiny_model(use_copy=True)
    with torch.no_grad():
        for attention in model.copy_attention.values():
            attention.share.bias += 9
    input_ids, extended = torch.tensor([[1, 1, 7, 1]] * 2), torch.tensor([[24, 25, 7, 24], [25, 24, 7, 25]])
    settings = {**settings, **way, "num_beams": 3, "max_new_tokens": 6, "return_dict_in_generate": True}
    output = model.generate(input_ids, extended_input_ids=extended, **settings)
    assert int(output.sequences.max()) in (24, 25)
    # The documents differ in the names of their unknown words alone.
    exchanged = torch.where(output.sequences[0] >= 24, 49 - output.sequences[0], output.sequences[0])
    assert torch.equal(exchanged, output.sequences[1])
    torch.testing.assert_close(*output.sequences_scores)
    if not settings.get("vocabulary_shortlist"):
        by_direction = model.sequence_log_probs(
            model.get_encoder()(input_ids, extended_input_ids=extended),
            output.sequences[:, 1:].masked_fill(output.sequences[:, 1:] == 0, -100),
        )
        if way:
            lengths = (output.sequences[:, 1:] != 0).sum(1)
            torch.testing.assert_close(by_direction[way["decoding_direction"]] / lengths, output.sequences_scores)


def test_targets_outside_the_vocabulary_are_learned_by_copies_alone():
    model = tiny_model(spread=0.3, use_copy=True, label_smoothing=0.1).train()
    input_ids, extended = torch.tensor([[5, 1, 7, 1]]), torch.tensor([[5, 24, 7, 25]])
    labels = torch.tensor([[7, 25, 1, 3]])
    losses = [
        model(input_ids=input_ids, extended_input_ids=extended, labels=labels, skip_logits=skip).loss
        for skip in (False, True)
    ]
    torch.testing.assert_close(*losses)
    grads = [torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) for loss in losses]
    for plain, fused in zip(*grads):
        if plain is not None:
            torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="labels holds the id 26"):
        model(input_ids=input_ids, extended_input_ids=extended, labels=labels + (labels == 25))


def test_a_document_without_words_is_nothing_to_copy():
    model = tiny_model(use_copy=True)
    empty = torch.tensor([[0, 0, 0], [5, 6, 7]])
    output = model.generate(empty, num_beams=2, max_new_tokens=5, return_dict_in_generate=True)
    assert output.sequences_scores.isfinite().all()
    input_ids, labels = random_pairs(batch_size=2)
    loss = model.train()(input_ids=input_ids * 0, labels=labels).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_copies_need_to_know_what_was_written():
    model = tiny_model(use_copy=True)
    with pytest.raises(ValueError, match="decoder_inputs_embeds"):
        model(input_ids=torch.tensor([[5]]), decoder_inputs_embeds=torch.zeros(1, 1, 10))
    with pytest.raises(ValueError, match="each token has both"):
        model.generate(torch.tensor([[5, 6]]), extended_input_ids=torch.tensor([[5]]))
