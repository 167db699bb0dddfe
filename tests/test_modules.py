"""Whatever sits on a module takes part: adapters, hooks, quantized layers; and fast operations may fail or be off."""

import copy
import logging

import peft
import pytest
import torch
from conftest import random_pairs, tiny_model
from torch import nn

from bidir_seq2seq import BidirSeq2SeqForConditionalGeneration, kernels_bidir_seq2seq
from bidir_seq2seq.generation_bidir_seq2seq import logger
from bidir_seq2seq.kernels_bidir_seq2seq import MatmulLinear, is_plain, plain_kernels
from bidir_seq2seq.output_bidir_seq2seq import Words

# peft asks the model by a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

# Names of modules for each place where an adapter may sit.
TARGETS = {
    "attention": ["query", "key", "value"],
    "twin attention": r".*twin_attention\.(query|key|value)",
    "features": ["feature"],
    "output": ["lm_head"],
    "norms": r".*norms\.\d\.(scale|shift)\.[02]",
    "embedding": ["embed_tokens"],
    "everywhere": ["query", "key", "value", "feature", "lm_head", "embed_tokens"],
}
WAYS = {
    "l2r": {"decoding_direction": "l2r"},
    "r2l": {"decoding_direction": "r2l", "num_beams": 1},
    "both": {"decoding_direction": "both", "joint_rescoring": False},
    "joint": {"decoding_direction": "both", "joint_rescoring": True},
}


def write(model, input_ids, way: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    settings = {"num_beams": 3, "max_new_tokens": 7, "return_dict_in_generate": True} | WAYS[way]
    output = model.generate(input_ids=input_ids, **settings)
    return output.sequences, getattr(output, "sequences_scores", None)


def with_random_adapter(model, target):
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=6, target_modules=target, lora_dropout=0.0))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, 0, 0.4)
    return adapted.eval()


@pytest.mark.parametrize(
    "settings", [{}, {"rnn_type": "gru", "twin_memory": "features"}, {"use_prior": False}, {"use_copy": True}], ids=str
)
@pytest.mark.parametrize("place", TARGETS)
def test_an_active_adapter_equals_the_merged_one(place, settings):
    input_ids, labels = random_pairs()
    adapted = with_random_adapter(tiny_model(**settings), TARGETS[place])
    active = [adapted(input_ids=input_ids, labels=labels, use_twin=use_twin) for use_twin in (False, True)]
    written = {way: write(adapted, input_ids, way) for way in WAYS}
    fast_loss = adapted(input_ids=input_ids, labels=labels, skip_logits=True).loss
    with adapted.disable_adapter():
        without = adapted(input_ids=input_ids, labels=labels, use_twin=True).logits
    assert not torch.allclose(active[1].logits, without)
    merged = copy.deepcopy(adapted).merge_and_unload().eval()
    for use_twin, output in zip((False, True), active):
        expected = merged(input_ids=input_ids, labels=labels, use_twin=use_twin)
        torch.testing.assert_close(output.loss, expected.loss)
        torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.r2l_logits, expected.r2l_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast_loss, merged(input_ids=input_ids, labels=labels, skip_logits=True).loss)
    for way, (sequences, scores) in written.items():
        expected, expected_scores = write(merged, input_ids, way)
        assert torch.equal(sequences, expected), way
        if scores is not None:
            torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", TARGETS)
def test_every_part_of_an_adapter_learns(place):
    adapted = with_random_adapter(tiny_model(twin_dropout=0.0), TARGETS[place]).train()
    input_ids, labels = random_pairs()
    adapted(input_ids=input_ids, labels=labels).loss.backward()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(gradients) > 1
    # The few units behind a norm's ReLU may all be off in a batch, and its gradient zero.
    assert [name for name, grad in gradients.items() if grad is None or not (grad.any() or "norms" in name)] == []


@pytest.mark.parametrize("name", ["lm_head", "model.decoder.twin_attention", "model.r2l_decoder.feature"])
@pytest.mark.parametrize("way", ["both", "joint"])
def test_hooks_are_called_and_may_change_what_comes_out(name, way):
    model, (input_ids, labels) = tiny_model(), random_pairs()
    calls = []
    before = write(model, input_ids, way)
    handle = model.get_submodule(name).register_forward_hook(lambda *args: calls.append(args) or None)
    seen = write(model, input_ids, way)
    assert calls and torch.equal(seen[0], before[0])
    torch.testing.assert_close(seen[1], before[1], rtol=1e-4, atol=1e-4)
    calls.clear()
    model(input_ids=input_ids, labels=labels, use_twin=True, skip_logits=True)
    assert calls
    handle.remove()
    calls.clear()
    write(model, input_ids, way)
    assert not calls


@pytest.mark.parametrize("kinds", [{nn.Linear}, {nn.LSTM}, {nn.Linear, nn.LSTM}], ids=["Linear", "LSTM", "both"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_dynamically_quantized_model_writes_in_every_direction(kinds):
    model, (input_ids, _) = tiny_model(), random_pairs()
    quantized = torch.ao.quantization.quantize_dynamic(model, kinds)
    for way in WAYS:
        sequences, _ = write(quantized, input_ids, way)
        assert sequences.shape[0] == len(input_ids) and (sequences < 24).all(), way


def test_a_shortlist_beside_a_layer_that_has_to_be_called_is_refused():
    adapted = with_random_adapter(tiny_model(), ["lm_head"])
    with pytest.raises(ValueError, match="vocabulary_shortlist .*merge its adapter"):
        adapted.generate(input_ids=random_pairs()[0], vocabulary_shortlist=5, max_new_tokens=4)


def test_what_is_plain():
    model = tiny_model()
    assert is_plain(model.lm_head)
    assert not is_plain(model.model.decoder)
    assert is_plain(model.model.decoder, *{type(part) for part in model.model.decoder.modules()})
    nn.utils.parametrize.register_parametrization(model.lm_head, "weight", nn.Identity())
    assert not is_plain(model.lm_head)
    layers = nn.ModuleList([nn.Linear(2, 2), MatmulLinear(2, 2)])
    assert is_plain(layers)
    layers[0].half()
    assert not is_plain(layers)


@pytest.mark.parametrize(
    "settings", [{}, {"rnn_type": "gru"}, {"twin_memory": "features"}, {"use_attention": False}, {"use_copy": True}]
)
@pytest.mark.parametrize("way", WAYS)
def test_plain_kernels_write_and_learn_the_same(way, settings):
    model, (input_ids, labels) = tiny_model(**settings), random_pairs()
    sequences, scores = write(model, input_ids, way)
    loss = model.train()(input_ids=input_ids, labels=labels, use_twin=False).loss
    with plain_kernels():
        found, found_scores = write(model.eval(), input_ids, way)
        plain_loss = model.train()(input_ids=input_ids, labels=labels, use_twin=False).loss
    assert torch.equal(found, sequences)
    torch.testing.assert_close(plain_loss, loss)
    if scores is not None:
        torch.testing.assert_close(found_scores, scores, rtol=1e-4, atol=1e-4)


@pytest.fixture
def forgotten_probes():
    kernels_bidir_seq2seq._packs_rightly.cache_clear()
    yield
    kernels_bidir_seq2seq._packs_rightly.cache_clear()


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_an_operator_that_is_missing_or_wrong_gives_way_to_the_plain_one(fault, monkeypatch, forgotten_probes):
    weight = torch.randn(16, 16)
    if not kernels_bidir_seq2seq.can_pack(weight):
        pytest.skip("this processor's products are the plain ones")
    input_ids = random_pairs()[0]
    expected = write(tiny_model(), input_ids, "both")
    torch.manual_seed(0)
    kernels_bidir_seq2seq._packs_rightly.cache_clear()

    class Operators:
        def __getattr__(self, name):
            if name != "_linear_pointwise":
                return getattr(operators, name)
            if fault == "missing":
                raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")
            return lambda *args: operators._linear_pointwise(*args) * 1.01

    operators = torch.ops.mkldnn
    monkeypatch.setattr(torch.ops, "mkldnn", Operators())
    assert not kernels_bidir_seq2seq.can_pack(weight)
    torch.manual_seed(0)
    found = write(tiny_model(), input_ids, "both")
    assert found[0].shape == expected[0].shape
    layer = nn.Linear(16, 24)
    features = torch.randn(2, 3, 16)
    plain = layer(features).log_softmax(-1)
    torch.testing.assert_close(Words(layer).next_tokens().log_probs(features), plain)


class Louder(BidirSeq2SeqForConditionalGeneration):
    """Writes nothing but sevens."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = only_seven(output.logits)
        return output


def only_seven(logits):
    return torch.full_like(logits, -1e4).index_fill_(2, torch.tensor([7]), 1e4)


@pytest.mark.parametrize("direction", ["l2r", "r2l"])
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("place", ["hook", "hook of the base model", "class"])
def test_what_is_made_of_the_whole_model_is_written_by_one_direction(direction, num_beams, place, caplog):
    model, (input_ids, _) = tiny_model(), random_pairs()
    if place == "class":
        model.__class__ = Louder
    elif place == "hook":
        model.register_forward_hook(
            lambda module, inputs, output: setattr(output, "logits", only_seven(output.logits))
        )
    else:
        calls = []
        model.model.register_forward_hook(lambda *_: calls.append(1) or None)
    written = model.generate(input_ids, decoding_direction=direction, num_beams=num_beams, max_new_tokens=4)
    assert calls if place.endswith("base model") else set(written[:, 1:].flatten().tolist()) == {7}
    assert "neither" not in caplog.text


def test_a_search_of_both_directions_says_that_it_does_not_call_the_whole(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logger.warning_once.__func__.cache_clear()
    model, (input_ids, _) = tiny_model(), random_pairs()
    expected = model.generate(input_ids, num_beams=2, max_new_tokens=4)
    assert "neither" not in caplog.text
    model.register_forward_hook(lambda *_: None)
    assert torch.equal(model.generate(input_ids, num_beams=2, max_new_tokens=4), expected)
    assert "call the parts of this model, but neither its forward nor hooks on the whole" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"decoding_direction": "l2r"},
        {"decoding_direction": "l2r", "num_beams": 3},
        {"decoding_direction": "r2l"},
        {"num_beams": 3},
        {"num_beams": 3, "proposals": "l2r+r2l", "ranking": "joint"},
    ],
    ids=str,
)
def test_dropout_that_is_on_is_seen_in_titles(settings):
    model, (input_ids, _) = tiny_model(dropout=0.5), random_pairs()
    settings = {**settings, "max_new_tokens": 6}

    def different() -> int:
        return len({str(model.generate(input_ids, **settings).tolist()) for _ in range(6)})

    assert different() == 1
    for decoder in (model.model.decoder, model.model.r2l_decoder):
        decoder.train()
    assert different() > 1


def test_a_hook_on_gradients_of_all_modules_sees_the_output_layer():
    model, (input_ids, labels) = tiny_model(), random_pairs()
    seen = set()
    handle = nn.modules.module.register_module_full_backward_pre_hook(lambda module, grad: seen.add(module) or None)
    try:
        model(input_ids=input_ids, labels=labels, skip_logits=True).loss.backward()
    finally:
        handle.remove()
    assert model.lm_head in seen


def test_an_output_layer_of_several_is_called_as_a_whole():
    model, (input_ids, labels) = tiny_model(), random_pairs()
    expected = model(input_ids=input_ids, labels=labels, skip_logits=True).loss
    written = model.generate(input_ids, num_beams=2, max_new_tokens=5)
    model.lm_head = nn.Sequential(model.lm_head)
    torch.testing.assert_close(model(input_ids=input_ids, labels=labels, skip_logits=True).loss, expected)
    assert torch.equal(model.generate(input_ids, num_beams=2, max_new_tokens=5), written)


def test_a_shortlist_needs_no_bias():
    model, (input_ids, _) = tiny_model(), random_pairs()
    nn.init.zeros_(model.lm_head.bias)
    expected = model.generate(input_ids, num_beams=2, max_new_tokens=5, vocabulary_shortlist=5)
    model.lm_head.bias = None
    assert torch.equal(model.generate(input_ids, num_beams=2, max_new_tokens=5, vocabulary_shortlist=5), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_on_a_recurrent_weight_writes_as_the_merged_one_does():
    torch.manual_seed(1)
    model, (input_ids, labels) = tiny_model(), random_pairs()
    target = ["decoder.rnns.0.weight_ih_l0"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=[], target_parameters=target))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, 0, 0.4)
    adapted.eval()
    settings = {"input_ids": input_ids, "max_new_tokens": 6}
    ways = [{"decoding_direction": "l2r"}, {"decoding_direction": "l2r", "num_beams": 3}, {"num_beams": 3}]
    written = [adapted.generate(**settings, **way) for way in ways]
    loss = adapted(input_ids=input_ids, labels=labels).loss
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=input_ids, labels=labels).loss, loss)
    assert all(torch.equal(merged.generate(**settings, **way), own) for way, own in zip(ways, written))
