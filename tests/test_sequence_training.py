"""Minimum risk training: the loss beside its definition, its candidates, and a training by it."""

import pytest
import torch
from conftest import random_pairs, tiny_model

from bidir_seq2seq.kernels_bidir_seq2seq import plain_kernels
from bidir_seq2seq.loss_bidir_seq2seq import projected_cross_entropy
from bidir_seq2seq.sequence_training import COSTS, BeamInputs, Risk, RiskInputs, rivals
from bidir_seq2seq.tokenization import build_word_tokenizer

VARIANTS = [
    {},
    {"decoder_directions": "l2r"},
    {"decoder_directions": "r2l", "use_prior": False},
    {"use_copy": True},
]


def of_candidates(model, num_documents: int = 3, num_titles: int = 4):
    """A batch of documents with `num_titles` each, and what those are worth; the first are the true ones."""
    torch.manual_seed(1)
    input_ids, _ = random_pairs(num_documents)
    _, labels = random_pairs(num_documents * num_titles)
    costs = torch.rand(num_documents, num_titles)
    costs[:, 0] = costs[1, 2] = float("inf")
    return {"input_ids": input_ids, "labels": labels, "use_twin": False}, costs


def by_definition(model, inputs, risk):
    """The loss from the logits of each title by itself, by autograd alone."""
    num_documents, num_titles = risk.costs.shape
    total = 0
    log_probs = {"logits": [], "r2l_logits": []}
    for row, labels in enumerate(inputs["labels"]):
        document = inputs["input_ids"][row // num_titles][None]
        labels = labels[labels != -100][None]
        output = model(input_ids=document, labels=labels, use_twin=False, skip_logits=False)
        for direction, name in zip(model.directions, log_probs):
            of_words = output[name].log_softmax(-1).gather(2, direction.targets(labels)[..., None])
            log_probs[name].append(of_words.sum())
    for scores in list(log_probs.values())[: len(model.directions)]:
        of_documents = inputs["labels"].view(num_documents, num_titles, -1)
        for costs, own, labels in zip(risk.costs, torch.stack(scores).view(num_documents, -1), of_documents):
            is_counted = costs.isfinite()
            shares = (risk.sharpness * own[is_counted]).softmax(0)
            length = (labels[0] != -100).sum()
            total = total + (1 - risk.true_share) * length * (shares * costs[is_counted]).sum()
            total = total - risk.true_share * own[0]
    number = (inputs["labels"][::num_titles] != -100).sum()
    return total / number / len(model.directions)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kernels", ["fast", "plain"])
@pytest.mark.parametrize("true_share, sharpness", [(0.3, 1.0), (0.0, 0.5)])
def test_the_risk_is_the_mean_cost_of_candidates_and_so_is_its_gradient(variant, kernels, true_share, sharpness):
    model = tiny_model(spread=0.3, **variant)
    inputs, costs = of_candidates(model)
    risk = Risk(costs, sharpness, true_share)
    parameters = [x for name, x in model.named_parameters() if "twin_attention" not in name]
    expected = by_definition(model, inputs, risk)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    if kernels == "plain":
        with plain_kernels():
            loss = model(**inputs, objective=risk).loss
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
    else:
        loss = model(**inputs, objective=risk).loss
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for own, right in zip(found, wanted):
        own, right = (torch.zeros(()) if x is None else x for x in (own, right))
        torch.testing.assert_close(*torch.broadcast_tensors(own, right), rtol=1e-4, atol=1e-5)


def test_a_document_without_candidates_learns_its_true_title():
    model = tiny_model()
    inputs, costs = of_candidates(model)
    nothing = Risk(torch.full_like(costs, float("inf")), 1.0, 0.25)
    alone = {**inputs, "labels": inputs["labels"][:: costs.shape[1]]}
    torch.testing.assert_close(model(**inputs, objective=nothing).loss, 0.25 * model(**alone).loss)


def test_weights_count_tokens():
    features, weight, base = torch.randn(9, 5), torch.randn(12, 5), torch.randn(2, 12)
    documents, targets = torch.randint(2, (9,)), torch.randint(12, (9,))
    weights = torch.randn(9)
    one_by_one = [
        projected_cross_entropy(features[i : i + 1], weight, base, documents[i : i + 1], targets[i : i + 1], 0.1)
        for i in range(9)
    ]
    found = projected_cross_entropy(features, weight, base, documents, targets, 0.1, weights=weights)
    torch.testing.assert_close(found, (torch.stack(one_by_one) * weights).sum())


@pytest.fixture
def words():
    return build_word_tokenizer([" ".join(f"w{index}" for index in range(20))], vocab_size=24, min_frequency=1)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_candidates_are_what_each_direction_writes_and_none_counts_twice(variant, words):
    model = tiny_model(**variant).train()
    input_ids, labels = random_pairs(3)
    inputs = {"input_ids": input_ids, "labels": labels, "decoder_input_ids": labels}
    made = RiskInputs(words, "rougeL", num_candidates=3)(model, inputs)
    assert model.training and not made["use_twin"]
    titles = made["labels"].view(3, 1 + 3 * len(model.directions), -1)
    assert torch.equal(titles[:, 0, : labels.shape[1]], labels) and (titles[:, 0, labels.shape[1] :] == -100).all()
    costs = made["objective"].costs
    assert (costs[:, 0] == float("inf")).all()
    counted = costs.isfinite()
    assert counted.any(1).all()
    model.eval()
    best = {
        direction.name: model.generate(
            input_ids, decoding_direction=direction.name, num_beams=3, max_new_tokens=labels.shape[1]
        )
        for direction in model.directions
    }
    for document in range(3):
        rows = [tuple(row.tolist()) for row, counts in zip(titles[document], counted[document]) if counts]
        assert len(set(rows)) == len(rows)
        assert all(3 in row and set(row[row.index(3) + 1 :]) <= {-100} for row in rows)
        contents = [[x for x in row if x > 3] for row in rows]
        for sequences in best.values():
            assert [x for x in sequences[document].tolist() if x > 3] in contents


@pytest.mark.parametrize("metric", COSTS)
def test_costs_are_least_for_the_true_title_and_between_0_and_1(metric):
    titles = ["a b c d", "a b x d", "", "q"]
    costs = COSTS[metric](titles, ["a b c d"] * 4)
    assert costs[0] == pytest.approx(0, abs=1e-9) and costs[0] < costs[1] < costs[3] <= 1 and costs[2] == 1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"metric": "bleu"}, "sequence_metric='bleu' must be one of rougeL, chrf, per"),
        ({"num_candidates": 1}, "sequence_num_beams=1 must be at least 2"),
        ({"sharpness": 0}, "sequence_sharpness=0 must be above 0"),
        ({"true_share": 1}, "sequence_true_share=1 must be at least 0 and below 1"),
    ],
)
def test_what_means_nothing_is_refused(settings, message, words):
    with pytest.raises(ValueError, match=message):
        RiskInputs(words, **{"metric": "per", **settings})


BEAM_VARIANTS = [*VARIANTS, {"rnn_type": "gru", "use_attention": False}]


@torch.no_grad()
def prefix_score(model, document, direction, words) -> torch.Tensor:
    """The log-probability of words in a direction's writing order, by the forward pass."""
    inputs = torch.tensor([[direction.start_id, *words[:-1]]])
    logits = model(input_ids=document, decoder_input_ids=inputs, decoding_direction=direction.name).logits
    return logits.log_softmax(-1)[0].gather(1, torch.tensor(words)[:, None]).squeeze(1)


def plain_rivals(model, document, direction, true, num_beams, margin):
    """As `rivals` of one document, by a list of hypotheses and the forward pass."""
    found, first, hypotheses = [], 0, []
    vocab = range(model.config.vocab_size)
    never = {direction.pad_id, direction.start_id, model.config.unk_token_id}
    for place in range(len(true)):
        going_on = [*hypotheses, true[:place]]
        candidates = []
        for words in going_on:
            if words and words[-1] == direction.end_id:
                candidates.append(words)
                continue
            longer = [[*words, word] for word in vocab if word not in never]
            candidates += [words for words in longer if words != true[: place + 1]]
        scored = sorted(
            ((float(prefix_score(model, document, direction, words)[first:].sum()), words) for words in candidates),
            reverse=True,
        )[:num_beams]
        own = float(prefix_score(model, document, direction, true[: place + 1])[first:].sum())
        least, words = scored[0] if place == len(true) - 1 else scored[-1]
        hypotheses = [words for _, words in scored]
        if own < least + margin:
            found.append((first, place + 1, words))
            first, hypotheses = place + 1, []
    return found


@pytest.mark.parametrize("variant", BEAM_VARIANTS, ids=str)
@pytest.mark.parametrize("num_beams, margin", [(1, 0.0), (2, 1.0)])
def test_rivals_are_those_of_a_plain_search(variant, num_beams, margin):
    model = tiny_model(**{"vocab_size": 9, **variant})
    input_ids, labels = random_pairs(3, target_length=5, vocab_size=9)
    encoder_outputs = model.get_encoder()(input_ids, return_dict=True)
    some = 0
    for direction in model.directions:
        targets = direction.targets(labels)
        found = rivals(model, encoder_outputs, direction, targets, num_beams, margin)
        for document in range(3):
            true = [word for word in targets[document].tolist() if word != -100]
            expected = plain_rivals(model, input_ids[document : document + 1], direction, true, num_beams, margin)
            assert [(own.first, own.end, own.words) for own in found if own.document == document] == expected
            some += len(expected)
    assert some > 3


@pytest.mark.parametrize("variant", BEAM_VARIANTS, ids=str)
@pytest.mark.parametrize("true_share", [0.0, 0.3])
def test_the_loss_of_the_beam_is_how_far_rivals_are_ahead(variant, true_share):
    model = tiny_model(**{"vocab_size": 9, **variant})
    input_ids, labels = random_pairs(3, target_length=5, vocab_size=9)
    made = BeamInputs(num_beams=2, margin=0.5, true_share=true_share)(
        model, {"input_ids": input_ids, "labels": labels}
    )
    loss = model(**made).loss
    encoder_outputs = model.get_encoder()(input_ids, return_dict=True)
    total = 0
    for direction in model.directions:
        targets = direction.targets(labels)
        for own in rivals(model, encoder_outputs, direction, targets, 2, 0.5):
            document, true = input_ids[own.document : own.document + 1], targets[own.document].tolist()
            ahead = prefix_score(model, document, direction, own.words)[own.first :].sum()
            ahead -= prefix_score(model, document, direction, true[: own.end])[own.first :].sum()
            assert ahead + 0.5 > -1e-4
            total += (1 - true_share) * (0.5 + ahead)
        for row, true in enumerate(targets.tolist()):
            true = [word for word in true if word != -100]
            total -= true_share * prefix_score(model, input_ids[row : row + 1], direction, true).sum()
    expected = total / (labels != -100).sum() / len(model.directions)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_learning_from_the_beam_puts_the_true_title_ahead():
    model = tiny_model(spread=0.3).train()
    input_ids, labels = random_pairs(3)
    make, inputs = BeamInputs(num_beams=2, true_share=0.0), {"input_ids": input_ids, "labels": labels}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        loss = model(**make(model, inputs)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) == 0:
            break
    assert float(loss.detach()) == 0
    for direction in model.directions:
        written = model.eval().generate(input_ids, decoding_direction=direction.name, num_beams=2, max_new_tokens=8)
        for row, title in zip(written.tolist(), labels.tolist()):
            assert [word for word in row if word > 3] == [word for word in title if word > 3]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_beams": 0}, "sequence_num_beams=0 must be at least 1"),
        ({"margin": -1}, "sequence_margin=-1 must be at least 0"),
        ({"true_share": -0.5}, "sequence_true_share=-0.5 must be at least 0"),
    ],
)
def test_a_beam_that_means_nothing_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BeamInputs(**settings)
