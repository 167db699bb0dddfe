"""Whatever reads the source: rows are alone, decoders are served alike, folders load again."""

import copy
import json
import os
import subprocess
import sys

import peft
import pytest
import torch
from conftest import WAYS, random_pairs, tiny_config, tiny_model
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration
from bidir_seq2seq.encoders_bidir_seq2seq import rotate
from bidir_seq2seq.hub import create_model_card, save_for_hub
from bidir_seq2seq.tokenization import build_char_tokenizer

ENCODERS = {
    "rnn": {},
    "cnn": {"encoder_type": "cnn", "encoder_kernel_size": 5},
    "self_attention": {"encoder_type": "self_attention", "encoder_ffn_dim": 20},
}
NEW = [name for name in ENCODERS if name != "rnn"]
# And one for each direction.
ENCODERS |= {f"own {name}": {**settings, "share_encoder": False} for name, settings in ENCODERS.items()}
every_encoder = pytest.mark.parametrize("name", ENCODERS)


def make(name: str, **overrides) -> BidirSeq2SeqForConditionalGeneration:
    return tiny_model(**{**ENCODERS[name], "use_copy": True, **overrides})


def write(model, input_ids, **settings) -> dict[str, list]:
    settings = {"num_beams": 3, "max_new_tokens": 7, **settings}
    return {way: model.generate(input_ids, **{**settings, **WAYS[way]}).tolist() for way in WAYS}


@every_encoder
@pytest.mark.parametrize("side", ["right", "left", "middle"])
def test_a_row_alone_is_the_row_in_a_batch(name, side):
    encoder = make(name).get_encoder()
    ids, num_pad = torch.randint(4, 24, (3, 9)), 4
    alone = [encoder(ids[:1, : 9 - num_pad]), encoder(ids[1:2])]
    pad, tokens = torch.zeros(num_pad, dtype=torch.long), ids[0, : 9 - num_pad]
    pieces = {"right": (tokens, pad), "left": (pad, tokens), "middle": (tokens[:2], pad, tokens[2:])}[side]
    batch = torch.cat([torch.cat(pieces)[None], ids[1:]])
    together = encoder(batch)
    at = batch[0] != 0
    torch.testing.assert_close(together.last_hidden_state[:1, at], alone[0].last_hidden_state, rtol=1e-5, atol=1e-5)
    assert not together.last_hidden_state[0, ~at].any()
    for row, own in enumerate(alone):
        torch.testing.assert_close(together.pooler_output[row : row + 1], own.pooler_output, rtol=1e-5, atol=1e-5)


@every_encoder
def test_an_empty_document_is_zeros_and_finite_to_learn_from(name):
    model, (input_ids, labels) = make(name), random_pairs()
    input_ids[1] = 0
    outputs = model.get_encoder()(input_ids)
    assert not outputs.last_hidden_state[1].any() and not outputs.pooler_output[1].any()
    model.train()(input_ids=input_ids, labels=labels).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.get_encoder().parameters())


@every_encoder
def test_embeddings_in_the_place_of_ids_and_states_on_request(name):
    model, (input_ids, _) = make(name), random_pairs()
    encoder = model.get_encoder()
    outputs = encoder(input_ids, output_hidden_states=True)
    assert [len(states[0]) for states in outputs.hidden_states] == [9, 9, 9]
    again = encoder(inputs_embeds=encoder.embed_tokens(input_ids), attention_mask=input_ids != 0)
    torch.testing.assert_close(again.last_hidden_state, outputs.last_hidden_state)


@pytest.mark.parametrize("name", NEW)
def test_the_order_of_words_matters(name):
    encoder = make(name).get_encoder()
    ids = torch.randint(4, 24, (1, 9))
    states = encoder(ids).last_hidden_state
    assert not torch.allclose(encoder(ids.flip(1)).last_hidden_state.flip(1), states, atol=1e-2)


def test_a_convolution_sees_as_far_as_its_kernels_reach():
    encoder = make("cnn").get_encoder()
    ids = torch.randint(4, 23, (1, 12))
    changed = ids.clone()
    changed[0, 0] += 1
    difference = (encoder(changed).last_hidden_state - encoder(ids).last_hidden_state).abs().amax(-1)[0]
    # Two layers of five tokens.
    assert (difference[:5] > 1e-4).all() and not difference[5:].any()


def test_rotated_products_go_by_distance():
    x, y = torch.randn(2, 1, 1, 8)
    rotated = [rotate(vector.expand(10, 1, 1, 8))[:, 0, 0] for vector in (x, y)]
    products = rotated[0] @ rotated[1].T
    for distance in (-3, 0, 2):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert abs(products[0, 0] - products[0, 3]) > 1e-3


@every_encoder
def test_cached_writing_is_uncached_writing_in_every_direction(name):
    model, (input_ids, _) = make(name), random_pairs()
    cached = write(model, input_ids)
    # Only one direction alone can go without.
    for way in ("greedy", "l2r", "r2l"):
        settings = {"num_beams": 3, "max_new_tokens": 7, **WAYS[way], "use_cache": False}
        again = model.generate(input_ids, **settings)
        assert again.tolist() == cached[way], way
    assert len({json.dumps(written) for written in cached.values()}) > 2


@every_encoder
def test_it_learns_four_pairs_by_heart(name):
    config = tiny_config(**ENCODERS[name], use_prior=False)
    model = BidirSeq2SeqForConditionalGeneration(config).train()
    input_ids, labels = random_pairs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.eval()(input_ids=input_ids, labels=labels).loss < 0.1
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_encoder
def test_dropout_is_for_training_and_for_what_layers_add(name):
    model = make(name, dropout=0.5)
    encoder, ids = model.get_encoder(), random_pairs()[0]
    expected = encoder(ids).last_hidden_state
    assert torch.equal(encoder(ids).last_hidden_state, expected)
    assert not torch.equal(encoder.train()(ids).last_hidden_state, expected)


@every_encoder
def test_save_and_load_are_exact(name, tmp_path):
    model, (input_ids, _) = make(name), random_pairs()
    model.save_pretrained(tmp_path)
    loaded, found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert loaded.config.encoder_type == name.removeprefix("own ")
    # Code that knows recurrent layers alone, or one encoder, refuses the others.
    assert loaded.config.format_version == (3 if name.startswith("own") else 1 if name == "rnn" else 2)
    assert write(loaded, input_ids) == write(model, input_ids)


def alone(model: BidirSeq2SeqForConditionalGeneration, direction: str) -> BidirSeq2SeqForConditionalGeneration:
    """A model of one direction with the weights that this direction has of a twin model with two encoders."""
    settings = {"decoder_directions": direction, "share_encoder": True, "format_version": 1}
    single = BidirSeq2SeqForConditionalGeneration(BidirSeq2SeqConfig(**{**model.config.to_dict(), **settings})).eval()
    weights = {}
    for key, weight in model.state_dict().items():
        place, _, rest = key.partition(".encoder.")
        # Of both halves its own, which has the name that the only one has.
        key = f"{place}.encoder.{rest.replace(f'.{direction}.', '.')}" if rest else key
        weights[key] = weight
    decoder = model.model.direction_decoder(direction)
    feature = f"model.{'decoder' if direction == 'l2r' else 'r2l_decoder'}.feature.weight"
    # Of its features' parts the twin's is missing.
    hidden, _, source = weights[feature].split(decoder.feature_sizes, dim=1)
    weights[feature] = torch.cat([hidden, source], dim=1)
    single.load_state_dict({key: weights[key] for key in single.state_dict()})
    return single


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("own")])
def test_two_encoders_are_those_of_two_models(name):
    model, (input_ids, labels) = make(name, twin_partner="none"), random_pairs()
    both = model(input_ids=input_ids, labels=labels)
    encoded = model.get_encoder()(input_ids)
    log_probs, written = model.sequence_log_probs(encoded, labels), write(model, input_ids)
    losses = []
    for direction, logits in (("l2r", both.logits), ("r2l", both.r2l_logits)):
        single = alone(model, direction)
        outputs = single(input_ids=input_ids, labels=labels)
        losses.append(outputs.loss)
        torch.testing.assert_close(logits, outputs.logits, rtol=1e-4, atol=1e-4)
        expected = single.sequence_log_probs(single.get_encoder()(input_ids), labels)
        torch.testing.assert_close(log_probs[direction], expected[direction], rtol=1e-4, atol=1e-4)
        settings = {"num_beams": 3, "max_new_tokens": 7, **WAYS[direction]}
        assert single.generate(input_ids, **settings).tolist() == written[direction]
        # A direction learns nothing of what the other one reads.
        model.zero_grad()
        model(input_ids=input_ids, labels=labels, decoding_direction=direction).loss.backward()
        of_other = {"l2r": ".r2l.", "r2l": ".l2r."}[direction]
        gradients = {
            key: parameter.grad for key, parameter in model.get_encoder().named_parameters() if "layers" in key
        }
        assert all((grad is None or not grad.any()) == (of_other in key) for key, grad in gradients.items())
    torch.testing.assert_close(both.loss, torch.stack(losses).mean())


def test_each_encoder_has_a_dropout_of_its_own():
    encoder = make("own rnn", dropout=0.5).get_encoder().train()
    encoder.layers = nn.ModuleList()
    left, right = encoder(random_pairs()[0]).last_hidden_state.chunk(2, dim=-1)
    assert not torch.equal(left, right)


def test_a_checkpoint_from_before_there_was_a_choice_loads(tmp_path):
    model, (input_ids, _) = make("rnn"), random_pairs()
    layer = ["norm.weight", "norm.bias"]
    for rnn in ("forward_rnn", "backward_rnn"):
        layer += [f"{rnn}.{weight}_l0" for weight in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    expected = ["embed_tokens.weight", *(f"layers.{index}.{weight}" for index in range(2) for weight in layer)]
    assert list(model.get_encoder().state_dict()) == expected
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    old = {
        name: value for name, value in config.items() if not name.startswith("encoder_") or name == "encoder_layers"
    }
    assert len(old) < len(config)
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert write(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), input_ids) == write(model, input_ids)


LOAD = """
import json, sys
sys.modules["bidir_seq2seq"] = None
import torch
from transformers import AutoModelForSeq2SeqLM
input_ids, ways, folders = json.loads(sys.argv[1])
found = {}
for folder in folders:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    settings = {"num_beams": 3, "max_new_tokens": 7}
    found[folder] = {
        way: model.generate(torch.tensor(input_ids), **{**settings, **ways[way]}).tolist() for way in ways
    }
print(json.dumps(found))
"""


@pytest.mark.e2e
def test_folders_load_where_the_package_is_not_installed(tmp_path):
    tokenizer, input_ids = build_char_tokenizer(["abcdefghijklmnopqrst"], min_frequency=1), random_pairs()[0]
    expected = {}
    for name in (*NEW, "own rnn"):
        model = make(name)
        save_for_hub(model, tokenizer, tmp_path / name)
        expected[name] = write(model, input_ids)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = json.dumps([input_ids.tolist(), WAYS, list(expected)])
    command = [sys.executable, "-I", "-c", LOAD, arguments]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == expected


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("cnn", r".*encoder.*\.(gate|output|0\.resize)"),
        ("self_attention", r".*encoder.*\.(query|key|value|output|wide|narrow)"),
    ],
)
# peft asks the model by a name that transformers has deprecated.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_active_adapter_equals_the_merged_one_and_learns(name, target):
    model, (input_ids, labels) = make(name), random_pairs()
    before = model(input_ids=input_ids, labels=labels).logits
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=target)).eval()
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter, 0, 0.4)
    outputs = adapted(input_ids=input_ids, labels=labels)
    assert not torch.allclose(outputs.logits, before)
    outputs.loss.backward()
    assert all(p.grad.any() for key, p in adapted.named_parameters() if "lora_" in key)
    written = write(adapted, input_ids=input_ids)
    merged = copy.deepcopy(adapted).merge_and_unload().eval()
    torch.testing.assert_close(merged(input_ids=input_ids, labels=labels).logits, outputs.logits, rtol=1e-4, atol=1e-4)
    assert write(merged, input_ids) == written


def test_hooks_on_a_convolution_may_change_what_it_says():
    encoder, input_ids = make("cnn").get_encoder(), random_pairs()[0]
    before = encoder(input_ids).last_hidden_state
    encoder.layers[0].convolution.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert not torch.allclose(encoder(input_ids).last_hidden_state, before)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(name, dtype):
    model, (input_ids, _) = make(name, spread=0.3), random_pairs()
    exact = model.get_encoder()(input_ids).last_hidden_state
    half = model.to(dtype).get_encoder()(input_ids).last_hidden_state
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_type": "lstm"}, "encoder_type='lstm' must be one of rnn, cnn, self_attention, pretrained"),
        ({"encoder_kernel_size": 4}, "encoder_kernel_size=4 must be odd"),
        ({"encoder_ffn_dim": 0}, "encoder_ffn_dim=0 must be at least 1"),
        (
            {"encoder_type": "pretrained"},
            "encoder_config=None does not go with encoder_type='pretrained': .*from_pretr",
        ),
        ({"encoder_config": {"model_type": "bert"}}, "does not go with encoder_type='rnn'"),
        ({"encoder_type": "self_attention", "attention_head_size": 5}, "attention_head_size=5 must be even"),
        ({"share_encoder": False, "decoder_directions": "l2r"}, "share_encoder=False does not go with .*'l2r'.*leave"),
        (
            {"share_encoder": False, "encoder_type": "pretrained", "encoder_config": {"model_type": "bert"}},
            "share_encoder=False does not go with .*encoder_type='pretrained'",
        ),
    ],
)
def test_a_bad_setting_is_named_with_its_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        BidirSeq2SeqConfig(**settings)


@every_encoder
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_card_says_what_reads(name, language):
    words = {
        "en": {"rnn": "2 bidirectional LSTM layers", "cnn": "convolutional", "self_attention": "self-attention"},
        "zh": {"rnn": "2 层双向 LSTM", "cnn": "卷积", "self_attention": "自注意力"},
    }
    tokenizer = build_char_tokenizer(["abcdefghijklmnopqrst"], min_frequency=1)
    card = create_model_card(make(name), tokenizer, "titles", language=language).text
    assert words[language][name.removeprefix("own ")] in card
    assert ({"en": "; one for each direction", "zh": "；每个方向各一个"}[language] in card) == name.startswith("own ")
