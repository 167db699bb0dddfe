"""Steps of decoders side by side beside the decoders' own forward passes."""

import pytest
import torch
from conftest import random_pairs, tiny_model
from torch import nn

from bidir_seq2seq.steps_bidir_seq2seq import RecurrentStep, TwinMemory

# Sums in another order, over values of some tens.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
VARIANTS = [
    {},
    {"twin_memory": "features"},
    {"rnn_type": "gru", "decoder_layers": 3},
    {"use_attention": False},
    {"use_attention": False, "twin_memory": "features"},
    {"share_encoder": False},
]


@torch.no_grad()
@pytest.mark.parametrize("rnn_class", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("num_rows", [1, 5, 600])
@pytest.mark.parametrize("num_directions", [1, 2])
def test_a_recurrent_step_is_the_layers(rnn_class, num_rows, num_directions):
    layers, x = [rnn_class(6, 7) for _ in range(num_directions)], torch.randn(4, num_directions, num_rows, 6)
    step, state = RecurrentStep(layers), None
    for position, token in enumerate(x):
        state = step(token, state)
        for direction, layer in enumerate(layers):
            outputs, last = layer(x[: position + 1, direction])
            torch.testing.assert_close(state[0][direction], outputs[-1])
            if rnn_class is nn.LSTM:
                torch.testing.assert_close(state[1][direction], last[1][0])


def one_by_one(model, input_ids, attention_mask, l2r_ids, r2l_ids):
    """Features `[B, T, E]` of both directions over given ids `[B, T]`, by the model's forward pass."""
    output = model.model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        decoder_input_ids=l2r_ids,
        r2l_decoder_input_ids=r2l_ids,
        use_twin=True,
    )
    return output.last_hidden_state, output.r2l_last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_pairs_of_hypotheses_are_rows_of_the_forward_pass(variant, num_beams):
    model = tiny_model(**variant)
    input_ids, _ = random_pairs(batch_size=3)
    mask = torch.ones_like(input_ids)
    mask[0, -2:] = 0
    num_documents, length = len(input_ids), 20
    ids = torch.randint(4, model.config.vocab_size, (length, 2, num_documents, num_beams))
    written = ids[:0]
    steps = model.model.start_steps(model.get_encoder()(input_ids, mask), "both")
    for position in range(length):
        written = torch.cat([written, ids[position : position + 1]])
        features = steps.step(ids[position]).features
        for own in range(num_beams):
            for partner in range(num_beams):
                rows = written[:, 0, :, own].T, written[:, 1, :, partner].T
                left, right = one_by_one(model, input_ids, mask, *rows)
                torch.testing.assert_close(features[0, :, own, partner], left[:, -1], **CLOSE)
                torch.testing.assert_close(features[1, :, partner, own], right[:, -1], **CLOSE)
        parents = torch.randint(num_beams, (2, num_documents, num_beams))
        steps.reorder(parents)
        written = written.gather(3, parents.expand(written.shape))


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("direction", ["l2r", "r2l"])
def test_one_direction_is_the_forward_pass_without_twin(variant, direction):
    model = tiny_model(**variant)
    input_ids, _ = random_pairs(batch_size=3)
    ids = torch.randint(4, model.config.vocab_size, (9, 1, 3, 2))
    steps = model.model.start_steps(model.get_encoder()(input_ids), direction)
    for position in range(len(ids)):
        features = steps.step(ids[position]).features
        rows = ids[: position + 1, 0].flatten(1).T
        output = model.model(input_ids=input_ids, decoder_input_ids=rows, decoding_direction=direction)
        torch.testing.assert_close(features[0].flatten(0, 1), output.last_hidden_state[:, -1], **CLOSE)


@torch.no_grad()
def test_attention_weights_are_those_of_the_forward_pass():
    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=3)
    mask = torch.ones_like(input_ids)
    mask[0, -2:] = 0
    ids = torch.randint(4, model.config.vocab_size, (2, 3, 2))
    steps = model.model.start_steps(model.get_encoder()(input_ids, mask), "both")
    plain = steps.step(ids).features
    steps = model.model.start_steps(model.get_encoder()(input_ids, mask), "both")
    asked = steps.step(ids, need_weights=True)
    torch.testing.assert_close(asked.features, plain)
    for index, direction in enumerate(("l2r", "r2l")):
        output = model.model(
            input_ids=input_ids,
            attention_mask=mask,
            decoder_input_ids=ids[index].view(-1, 1),
            decoding_direction=direction,
            output_attentions=True,
        )
        torch.testing.assert_close(asked.weights[index], output.cross_attentions[0].squeeze(2))


def test_twin_memory_has_room_for_any_length_and_follows_parents():
    # 3 hypotheses, 2 heads of size 4, 5 queries each.
    memory, keys, values = TwinMemory(), torch.empty(3, 2, 0, 4), torch.empty(3, 2, 0, 4)
    for step in range(40):
        offers = torch.randn(3, 4, 4)
        memory.append(offers)
        keys, values = (torch.cat([x, new[:, :, None]], 2) for x, new in zip((keys, values), offers.split(2, 1)))
        assert memory.length == step + 1
        queries = torch.randn(3, 2, 5, 4)
        wanted = (queries @ keys.mT).softmax(-1) @ values
        torch.testing.assert_close(memory.attend(queries.flatten(0, 1)), wanted.flatten(0, 1))
        rows = torch.randint(3, (3,))
        memory.reorder(rows)
        keys, values = keys[rows], values[rows]
