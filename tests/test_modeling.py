import os
from copy import deepcopy
from functools import partial

import pytest
import torch
from conftest import random_pairs, tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSeq2SeqLM, DynamicCache

from bidir_seq2seq import BidirSeq2SeqForConditionalGeneration, BidirSeq2SeqModel
from bidir_seq2seq.directions_bidir_seq2seq import directions_of
from bidir_seq2seq.modeling_bidir_seq2seq import JUDGED_TOGETHER, MultiHeadAttention
from bidir_seq2seq.output_bidir_seq2seq import Words, Written

VARIANTS = [
    {},
    {"twin_memory": "features"},
    {"rnn_type": "gru"},
    {"decoder_directions": "l2r"},
    {"decoder_directions": "r2l"},
    {"use_attention": False},
    {"use_prior": False},
    {"decoder_directions": "l2r", "use_attention": False, "use_prior": False},
    {"encoder_layers": 1, "decoder_layers": 3},
    {"tie_word_embeddings": True},
    {"use_copy": True},
    {"use_copy": True, "use_prior": False, "decoder_directions": "r2l"},
]


def r2l_targets(model, labels: torch.LongTensor) -> torch.LongTensor:
    return model.directions[-1].targets(labels)


def variant_name(variant: dict) -> str:
    return ",".join(f"{key}={value}" for key, value in variant.items()) or "default"


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_every_variant_learns_four_pairs_by_heart(variant):
    model = BidirSeq2SeqForConditionalGeneration(tiny_config(**{"twin_dropout": 0.5, **variant})).train()
    input_ids, labels = random_pairs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(200):
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.005:
            break
    model.eval()
    assert model(input_ids=input_ids, labels=labels).loss < 0.1
    written = model.generate(input_ids, max_new_tokens=6, num_beams=2)
    expected = labels.masked_fill(labels == -100, 0)
    assert torch.equal(written[:, 1:], expected[:, : written.shape[1] - 1])


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_shapes_and_gradients(variant):
    model = BidirSeq2SeqForConditionalGeneration(tiny_config(**variant)).train()
    input_ids, labels = random_pairs()
    outputs = model(input_ids=input_ids, labels=labels, skip_logits=False)
    assert outputs.logits.shape == (4, 6, 24)
    both = model.config.decoder_directions == "both"
    assert (outputs.r2l_logits is not None) == both
    assert not both or outputs.r2l_logits.shape == (4, 6, 24)
    outputs.loss.backward()
    # Every parameter takes part in every step, as DistributedDataParallel wants.
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_loss_is_the_mean_of_both_directions():
    model = tiny_model()
    input_ids, labels = random_pairs()
    outputs = model(input_ids=input_ids, labels=labels)
    losses = [
        F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten()),
        F.cross_entropy(outputs.r2l_logits.flatten(0, 1), r2l_targets(model, labels).flatten()),
    ]
    torch.testing.assert_close(outputs.loss, sum(losses) / 2)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
@pytest.mark.parametrize("training", [False, True])
def test_one_direction_of_several_has_the_loss_of_its_own_titles(variant, training):
    model = tiny_model(dropout=0.0, **variant).train(training)
    input_ids, labels = random_pairs()
    judged = model.sequence_log_probs(model.get_encoder()(input_ids), labels)
    for name, log_probs in judged.items():
        outputs = model(input_ids=input_ids, labels=labels, decoding_direction=name, skip_logits=False)
        wanted = -log_probs.sum() / (labels != -100).sum()
        torch.testing.assert_close(outputs.loss, wanted, rtol=1e-4, atol=1e-5)
        assert outputs.r2l_logits is None
        (direction,) = directions_of(model.config, name)
        of_logits = F.cross_entropy(outputs.logits.flatten(0, 1), direction.targets(labels).flatten())
        torch.testing.assert_close(of_logits, wanted, rtol=1e-4, atol=1e-5)
        short = model(input_ids=input_ids, labels=labels, decoding_direction=name, skip_logits=True)
        torch.testing.assert_close(short.loss, wanted, rtol=1e-4, atol=1e-5)


def test_both_directions_may_be_asked_for_by_name():
    model, (input_ids, labels) = tiny_model(use_copy=True), random_pairs()
    outputs = model(input_ids=input_ids, labels=labels, decoding_direction="both")
    assert torch.equal(outputs.loss, model(input_ids=input_ids, labels=labels).loss)


def test_num_items_in_batch_makes_accumulation_exact():
    model = tiny_model(twin_dropout=0.0).train()
    input_ids, labels = random_pairs()
    count = (labels != -100).sum()
    whole = model(input_ids=input_ids, labels=labels, num_items_in_batch=count).loss
    torch.testing.assert_close(whole, model(input_ids=input_ids, labels=labels).loss)
    parts = [
        model(input_ids=input_ids[rows], labels=labels[rows], num_items_in_batch=count).loss
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(whole, sum(parts))


def test_label_smoothing_smooths_both_directions_in_training_only():
    plain, smoothed = tiny_model(twin_dropout=1.0), tiny_model(twin_dropout=1.0, label_smoothing=0.2)
    smoothed.load_state_dict(plain.state_dict())
    input_ids, labels = random_pairs()
    batch = {"input_ids": input_ids, "labels": labels}
    assert plain(**batch).loss == smoothed(**batch).loss
    outputs = smoothed.train()(**batch, skip_logits=False)
    losses = [
        F.cross_entropy(logits.flatten(0, 1), target.flatten(), label_smoothing=0.2)
        for logits, target in ((outputs.logits, labels), (outputs.r2l_logits, r2l_targets(smoothed, labels)))
    ]
    torch.testing.assert_close(outputs.loss, sum(losses) / 2)


def test_reverse_labels():
    model = tiny_model()
    labels = torch.tensor([[5, 6, 7, 3], [5, 3, -100, -100], [3, -100, -100, -100], [5, 6, -100, -100]])
    expected = [[7, 6, 5, 2], [5, 2, -100, -100], [2, -100, -100, -100], [6, 5, -100, -100]]
    assert r2l_targets(model, labels).tolist() == expected
    assert r2l_targets(model, torch.full((1, 3), -100)).tolist() == [[-100] * 3]


@pytest.mark.parametrize("side", ["left", "middle"])
def test_padding_side_changes_nothing(side):
    model = tiny_model()
    input_ids, labels = random_pairs()
    right = model(input_ids=input_ids, labels=labels)
    moved_ids, moved_labels = input_ids.clone(), labels.clone()
    for moved, pad in ((moved_ids, 0), (moved_labels, -100)):
        for row in moved:
            content, padding = row[row != pad].clone(), row[row == pad].clone()
            split = 0 if side == "left" else 1
            row.copy_(torch.cat([content[:split], padding, content[split:]]))
    left = model(input_ids=moved_ids, labels=moved_labels)
    torch.testing.assert_close(left.loss, right.loss)
    torch.testing.assert_close(left.logits, right.logits)
    # Hidden states stay where their tokens are.
    states = left.encoder_last_hidden_state[moved_ids != 0]
    torch.testing.assert_close(states, right.encoder_last_hidden_state[input_ids != 0])


def test_a_row_does_not_depend_on_the_rows_beside_it_or_on_its_padding():
    model = tiny_model()
    input_ids, labels = random_pairs()
    together = model(input_ids=input_ids, labels=labels)
    for row in range(4):
        ids, own = input_ids[row][input_ids[row] != 0], labels[row][labels[row] != -100]
        alone = model(input_ids=ids[None], labels=own[None])
        torch.testing.assert_close(alone.logits[0], together.logits[row, : len(own)])
        torch.testing.assert_close(alone.r2l_logits[0], together.r2l_logits[row, : len(own)])


def test_pad_is_erased_and_unk_is_a_word():
    model = tiny_model()
    ids = torch.tensor([[5, 6, 0]])
    with_unk, without = torch.tensor([[5, 6, 1]]), torch.tensor([[5, 6]])
    states = [model.model.encoder(x).last_hidden_state[:, :2] for x in (ids, with_unk, without)]
    torch.testing.assert_close(states[0], states[2])
    assert not torch.allclose(states[1], states[2])


def test_the_prior_marks_source_words_but_no_special_ones():
    ids = torch.tensor([[5, 5, 9, 1, 3, 2, 0, 0]])
    words = tiny_model().model.encoder(ids).source_words
    assert words[0].nonzero().flatten().tolist() == [5, 9]
    words = tiny_model(prior_special_tokens=True).model.encoder(ids).source_words
    assert words[0].nonzero().flatten().tolist() == [1, 2, 3, 5, 9]


def test_the_prior_enters_as_the_mean_with_the_logits():
    model = tiny_model()
    features = torch.randn(2, 3, 10)
    words = torch.rand(2, 24) > 0.5
    prior = model.prior(words)
    expected_prior = model.prior.log_scale.exp() * words + model.prior.shift
    torch.testing.assert_close(prior, expected_prior)
    expected = (features @ model.lm_head.weight.T + model.lm_head.bias + expected_prior[:, None]) / 2
    torch.testing.assert_close(Words(model.lm_head, prior).logits(Written(features)), expected)


# What a decoder may see of the answer


def gradient_reach(model, directions: str, use_twin: bool) -> torch.Tensor:
    """`[T, n]`: whether the `directions` logits at step t depend on the embedding of target token y_i.

    The target is y_1 .. y_n of distinct tokens; L2R inputs and R2L inputs are made of them.
    """
    n = 6
    target = torch.arange(4, 4 + n)
    l2r = torch.cat([torch.tensor([2]), target])[None]
    r2l = torch.cat([torch.tensor([3]), target.flip(0)])[None]
    source = torch.tensor([[20, 21, 22]])
    embedding = model.get_input_embeddings().weight
    outputs = model(input_ids=source, decoder_input_ids=l2r, r2l_decoder_input_ids=r2l, use_twin=use_twin)
    logits = (outputs.logits if directions == "l2r" else outputs.r2l_logits)[0]
    reach = torch.zeros(n + 1, n, dtype=torch.bool)
    for t in range(n + 1):
        (gradient,) = torch.autograd.grad(logits[t].square().sum(), embedding, retain_graph=True)
        reach[t] = gradient[target].abs().sum(-1) > 0
    return reach


@pytest.mark.parametrize("variant", [{}, {"twin_memory": "features"}], ids=variant_name)
def test_without_the_twin_no_direction_sees_its_answer(variant):
    model = tiny_model(**variant)
    n = 6
    for t in range(n + 1):
        assert gradient_reach(model, "l2r", use_twin=False)[t].tolist() == [i < t for i in range(n)]
        assert gradient_reach(model, "r2l", use_twin=False)[t].tolist() == [n - 1 - i < t for i in range(n)]


def test_the_twin_leaks_exactly_the_second_half():
    # Step t (from 0) of L2R predicts y_{t+1} and reads the t tokens before it and, through its twin, the last t.
    reach = gradient_reach(tiny_model(), "l2r", use_twin=True)
    n = 6
    assert reach.tolist() == [[i < t or n - 1 - i < t for i in range(n)] for t in range(n + 1)]
    leaked = [bool(reach[t, t]) for t in range(n)]
    assert leaked == [False] * 3 + [True] * 3


def test_twin_dropout_takes_whole_rows():
    model = tiny_model(twin_dropout=0.5).train()
    input_ids, labels = (x[:1].expand(64, -1) for x in random_pairs())
    outputs = model(input_ids=input_ids, labels=labels, skip_logits=False)
    off = model(input_ids=input_ids[:1], labels=labels[:1], use_twin=False, skip_logits=False)
    on = tiny_model(twin_dropout=0.0)
    on.load_state_dict(model.state_dict())
    on = on(input_ids=input_ids[:1], labels=labels[:1])
    is_off = torch.isclose(outputs.logits, off.logits, atol=1e-5).all(-1).all(-1)
    is_on = torch.isclose(outputs.logits, on.logits, atol=1e-5).all(-1).all(-1)
    assert (is_off ^ is_on).all() and 10 < is_off.sum() < 54
    # Both directions of a row lose it together.
    r2l_off = torch.isclose(outputs.r2l_logits, off.r2l_logits, atol=1e-5).all(-1).all(-1)
    assert torch.equal(is_off, r2l_off)


def test_evaluation_is_honest_unless_the_model_never_learned_alone():
    input_ids, labels = random_pairs()
    for twin_dropout, honest in ((0.5, True), (1.0, True), (0.0, False)):
        model = tiny_model(twin_dropout=twin_dropout)
        batch = {"input_ids": input_ids, "labels": labels}
        assert torch.equal(model(**batch).loss, model(**batch, use_twin=not honest).loss)
        assert not torch.equal(model(**batch).loss, model(**batch, use_twin=honest).loss)


def test_states_and_weights_are_shown_on_request_by_argument_and_by_config():
    model = tiny_model()
    batch = {"input_ids": random_pairs()[0], "decoder_input_ids": torch.full((4, 5), 2)}
    assert model(**batch).encoder_hidden_states is None and model(**batch).cross_attentions is None
    asked = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in asked.encoder_hidden_states] == [(4, 9, 10), (4, 9, 12), (4, 9, 12)]
    assert [tuple(states.shape) for states in asked.decoder_hidden_states] == [(4, 5, 10), (4, 5, 12), (4, 5, 12)]
    (weights,) = asked.cross_attentions
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 2, 5))
    assert not weights[1, :, :, -1].any()
    model.config.output_hidden_states = model.config.output_attentions = True
    torch.testing.assert_close(model(**batch).decoder_hidden_states[-1], asked.decoder_hidden_states[-1])
    torch.testing.assert_close(model(**batch).cross_attentions[0], weights)


# Bad input


def test_one_bad_row_never_takes_down_its_batch():
    model = tiny_model().train()
    input_ids, labels = random_pairs()
    clean = tiny_model(twin_dropout=1.0)
    input_ids[1] = 0  # an empty document
    input_ids[2] = torch.where(input_ids[2] != 0, 1, 0)  # unknown characters only
    labels[3] = -100  # an empty target
    loss = model(input_ids=input_ids, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    both = clean(input_ids=input_ids, labels=labels)
    alone = clean(input_ids=input_ids[:1], labels=labels[:1])
    torch.testing.assert_close(both.logits[0], alone.logits[0])
    assert both.logits.isfinite().all() and both.r2l_logits.isfinite().all()


def test_nothing_to_learn_is_a_loss_of_zero():
    model = tiny_model().train()
    loss = model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[-100, -100]])).loss
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_a_batch_without_any_position():
    model = tiny_model()
    assert model.generate(torch.zeros(2, 0, dtype=torch.long), max_new_tokens=3).shape[0] == 2


@pytest.mark.parametrize(("name", "bad"), [("input_ids", 24), ("labels", 99), ("labels", -1), ("input_ids", -2)])
def test_ids_outside_the_vocabulary_are_named(name, bad):
    input_ids, labels = random_pairs()
    batch = {"input_ids": input_ids, "labels": labels}
    batch[name][0, 0] = bad
    with pytest.raises(ValueError, match=f"{name} holds the id {bad}, outside the vocabulary of 24"):
        tiny_model()(**batch)


@pytest.mark.parametrize("given", ["abc", ["abc"], [["a", "b"]], [[4, 5]], torch.tensor([[4.0, 5.0]])], ids=str)
def test_what_is_no_tensor_of_ids_is_refused(given):
    model, (input_ids, _) = tiny_model(), random_pairs(batch_size=1)
    message = "must be a tensor of ids, not (str|list|torch.float32): tokenizer\\(text, return_tensors='pt'\\)"
    for call in (model, partial(model.generate, max_new_tokens=2)):
        with pytest.raises(ValueError, match=f"input_ids {message}"):
            call(input_ids=given)
    with pytest.raises(ValueError, match=f"input_ids {message}"):
        model.generate(given, max_new_tokens=2)
    with pytest.raises(ValueError, match=f"labels {message}"):
        model(input_ids=input_ids, labels=given)


def test_contradictory_inputs_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model.model.encoder()
    with pytest.raises(ValueError, match="decoder_input_ids"):
        model(inputs_embeds=torch.zeros(1, 1, 10))
    one_way = tiny_model(decoder_directions="l2r")
    with pytest.raises(ValueError, match="decoder_directions='l2r'"):
        one_way(input_ids=torch.tensor([[5]]), decoder_input_ids=torch.tensor([[2]]), decoding_direction="r2l")
    ids, starts = torch.tensor([[5, 6], [7, 8]]), torch.tensor([[2], [2]])
    for name in ("labels", "decoder_input_ids"):
        with pytest.raises(ValueError, match="decoding_direction='up' must be one of l2r, r2l, both"):
            model(input_ids=ids, decoding_direction="up", **{name: starts + 1})
    with pytest.raises(ValueError, match="decoding_direction='both' without labels or r2l_decoder_input_ids"):
        model(input_ids=ids, decoder_input_ids=starts, decoding_direction="both")
    with pytest.raises(ValueError, match="decoding_direction='r2l' beside r2l_decoder_input_ids"):
        model(input_ids=ids, decoder_input_ids=starts, r2l_decoder_input_ids=starts + 1, decoding_direction="r2l")
    with pytest.raises(ValueError, match="a DynamicCache, which holds no recurrent states"):
        model(input_ids=ids, decoder_input_ids=starts, past_key_values=DynamicCache())


@pytest.mark.parametrize("use_prior", [False, True])
@pytest.mark.parametrize("shape", [(1, 9), (4, 8), (4, 10), (4, 1, 9, 9), (9,)], ids=str)
def test_a_mask_of_another_shape_is_refused(use_prior, shape):
    model, (input_ids, labels) = tiny_model(use_prior=use_prior), random_pairs()
    states = model.get_encoder()(input_ids).last_hidden_state
    for given in ({"input_ids": input_ids}, {"encoder_outputs": (states,)}):
        with pytest.raises(ValueError, match=r"attention_mask of shape \(.*\) for documents of \(4, 9\)"):
            model(**given, labels=labels, attention_mask=torch.ones(shape))


def test_ids_of_one_document_are_a_row_of_their_own():
    with pytest.raises(ValueError, match=r"input_ids of shape \(3,\): one row of ids for each document"):
        tiny_model()(input_ids=torch.tensor([5, 6, 7]), labels=torch.tensor([[5, 3]]))


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_rows_that_belong_to_no_document_are_refused(rows):
    input_ids, labels = random_pairs()
    with pytest.raises(ValueError, match=f"{rows} rows of decoder inputs or labels for 4 documents"):
        tiny_model()(input_ids=input_ids, labels=labels.repeat(2, 1)[:rows])


def test_labels_may_be_of_another_integer_type():
    input_ids, labels = random_pairs()
    for use_copy in (False, True):
        model = tiny_model(use_copy=use_copy)
        short = model(input_ids=input_ids, labels=labels.int()).loss
        assert torch.equal(short, model(input_ids=input_ids, labels=labels).loss)


# Saving, loading, resizing


@pytest.mark.skipif(os.name != "posix", reason="no permissions of groups and others")
@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_whoever_may_read_the_config_may_read_the_weights(tmp_path, umask, shard):
    before = os.umask(umask)
    try:
        tiny_model().save_pretrained(tmp_path, max_shard_size=shard)
    finally:
        os.umask(before)
    weights = list(tmp_path.glob("*.safetensors"))
    assert weights and (len(weights) > 1) == (shard == "20KB")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("denied", ["use_copy", "use_prior"])
def test_weights_that_the_config_denies_are_told_of(denied, tmp_path):
    tiny_model(use_copy=True).save_pretrained(tmp_path)
    _, found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True, **{denied: False})
    assert found["unexpected_keys"] and not found["missing_keys"]
    # The base model is meant to do without them.
    _, found = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["unexpected_keys"]


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_save_and_load_are_exact(variant, tmp_path):
    model = tiny_model(**variant)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, BidirSeq2SeqForConditionalGeneration)
    input_ids, labels = random_pairs()
    assert torch.equal(
        model(input_ids=input_ids, labels=labels).logits, loaded(input_ids=input_ids, labels=labels).logits
    )
    assert (tmp_path / "model.safetensors").exists()
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(base, BidirSeq2SeqModel)
    assert torch.equal(base.encoder(input_ids).pooler_output, model.model.encoder(input_ids).pooler_output)


def test_resizing_grows_embedding_output_and_prior():
    model = tiny_model()
    input_ids, labels = random_pairs()
    before = model(input_ids=input_ids, labels=labels).logits
    model.prior.title_counts.copy_(torch.arange(24))
    model.resize_token_embeddings(30)
    after = model(input_ids=input_ids, labels=labels).logits
    assert after.shape[-1] == 30 and model.config.vocab_size == 30
    torch.testing.assert_close(after[..., :24], before)
    assert model.prior.shift[24:].abs().sum() == 0
    assert model.prior.title_counts.tolist() == [*range(24), 0, 0, 0, 0, 0, 0]
    torch.testing.assert_close(model.prior.log_scale[24:].exp(), torch.full((6,), 6.0))
    model.generate(torch.full((1, 3), 29), max_new_tokens=3)


def test_without_labels_the_source_is_read_as_other_models_do():
    model, input_ids = tiny_model(), torch.tensor([[5, 6, 7]])
    wanted = model(input_ids=input_ids, decoder_input_ids=torch.tensor([[2, 5, 6]])).logits
    assert torch.equal(model(input_ids=input_ids).logits, wanted)
    wanted = model(input_ids=input_ids, decoder_input_ids=torch.tensor([[3, 5, 6]]), decoding_direction="r2l").logits
    assert torch.equal(model(input_ids=input_ids, decoding_direction="r2l").logits, wanted)


def test_words_of_titles_are_counted_when_asked_to(tmp_path):
    model, (input_ids, labels) = tiny_model().train(), random_pairs()
    model(input_ids=input_ids, labels=labels)
    assert not model.prior.title_counts.any()
    for _ in range(2):
        model.count_titles(row[row >= 0].tolist() for row in labels)
    wanted = 2 * labels[labels >= 0].bincount(minlength=24)
    assert torch.equal(model.prior.title_counts, wanted)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(loaded.prior.title_counts, wanted)


def test_a_checkpoint_from_before_words_were_counted_loads(tmp_path, caplog):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["prior.title_counts"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.prior.title_counts, torch.zeros(24, dtype=torch.long))
    assert "title_counts" not in caplog.text


def test_initialisation_is_keras_own():
    model = BidirSeq2SeqForConditionalGeneration(tiny_config(hidden_size=32, vocab_size=500))
    assert model.get_input_embeddings().weight.abs().max() <= 0.05
    assert not model.get_input_embeddings().weight[0].any()
    rnn = model.model.decoder.rnns[0]
    for gate in rnn.weight_hh_l0.split(32):
        torch.testing.assert_close(gate @ gate.T, torch.eye(32), atol=1e-5, rtol=0)
    assert rnn.bias_ih_l0.tolist() == [0] * 32 + [1] * 32 + [0] * 64 and not rnn.bias_hh_l0.any()
    torch.testing.assert_close(model.prior.log_scale.exp(), torch.full((500,), 6.0))
    assert not model.prior.shift.any()


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 LSTM for this processor"
)
def test_bfloat16_autocast_is_close():
    model = tiny_model(spread=0.3)
    input_ids, labels = random_pairs()
    exact = model(input_ids=input_ids, labels=labels).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(input_ids=input_ids, labels=labels).loss
    assert abs(exact - rough) < 0.05 * exact


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.02), (torch.float16, 0.003), (torch.float64, 1e-6)])
def test_attention_learns_alike_in_every_dtype(dtype, tolerance, autocast):
    if autocast and dtype == torch.float64:
        pytest.skip("there is no such autocast")
    attention = MultiHeadAttention(6, 7, num_heads=2, head_size=4)
    x, memory = torch.randn(3, 5, 6), torch.randn(3, 9, 7)
    mask = torch.ones(3, 1, 1, 9, dtype=torch.bool)
    mask[1, ..., 4:] = False

    def learn(dtype, autocast=False):
        module = deepcopy(attention).to(torch.float32 if autocast else dtype)
        given = [y.detach().to(module.query.weight.dtype).requires_grad_() for y in (x, memory)]
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            context, _ = module(given[0], *module.memory(given[1]), mask)
        assert context.dtype == dtype
        context.pow(2).sum().backward()
        return [context, *(y.grad for y in given), *(weight.grad for weight in module.parameters())]

    for wanted, found in zip(learn(torch.float32), learn(dtype, autocast)):
        assert (found.double() - wanted).norm() < tolerance * wanted.norm()


def test_attention_loses_nothing_in_float64():
    attention = MultiHeadAttention(6, 7, num_heads=2, head_size=4).double()
    x, memory = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 6), (2, 4, 7)))
    assert torch.autograd.gradcheck(lambda x, memory: attention(x, *attention.memory(memory))[0], (x, memory))


@pytest.mark.parametrize("use_copy", [False, True])
def test_titles_are_as_likely_among_many_others_as_alone(use_copy):
    # More documents than are judged in one go, some with short titles, one with long ones, one without any.
    model, documents, titles = tiny_model(use_copy=use_copy), 2 * JUDGED_TOGETHER + 3, 3
    input_ids = torch.randint(4, 24, (documents, 9))
    labels = torch.full((documents, titles, 20), -100)
    for index, row in enumerate(labels.flatten(0, 1)):
        size = 19 if index == 7 else 1 + index % 5
        row[:size] = torch.randint(4, 24, (size,))
        row[size] = 3
    labels[5] = -100
    encoded = model.get_encoder()(input_ids)
    found = model.sequence_log_probs(encoded, labels.flatten(0, 1))
    for index in range(documents):
        alone = model.sequence_log_probs(model.get_encoder()(input_ids[index : index + 1]), labels[index])
        for name in ("l2r", "r2l"):
            expected = found[name].view(documents, titles)[index]
            torch.testing.assert_close(alone[name], expected, atol=1e-4, rtol=1e-5)
            assert (expected == 0).all() == (index == 5)
