"""What decoders read of each other in training."""

import pytest
import torch
from conftest import random_pairs, tiny_model
from transformers import TrainerState
from transformers.utils import find_labels

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration
from bidir_seq2seq.ending import OwnPartnerCallback
from bidir_seq2seq.kernels_bidir_seq2seq import plain_kernels, runs_under_autocast
from bidir_seq2seq.partner_bidir_seq2seq import as_written, visible
from bidir_seq2seq.training_arguments import TrainingArguments

PAD, START, END = 0, 2, 3


def decoder_inputs(model, labels):
    return [direction.decoder_inputs(direction.targets(labels)) for direction in model.directions]


@pytest.mark.parametrize("use_copy", [False, True])
def test_a_partner_that_has_written_the_true_words_shows_what_the_true_words_show(use_copy):
    model = tiny_model(use_copy=use_copy)
    input_ids, labels = random_pairs()
    inputs = decoder_inputs(model, labels)
    settings = {"decoder_input_ids": inputs[0], "r2l_decoder_input_ids": inputs[1]}
    gold = model.model(input_ids, **settings, use_twin=True)
    own = model.model(input_ids, **settings, use_twin=tuple(inputs))
    is_target = (labels != -100)[..., None]
    for name in ("last_hidden_state", "r2l_last_hidden_state"):
        torch.testing.assert_close(getattr(own, name) * is_target, getattr(gold, name) * is_target)


def test_a_row_without_partner_is_written_alone():
    model = tiny_model()
    input_ids, labels = random_pairs()
    inputs = decoder_inputs(model, labels)
    settings = {"decoder_input_ids": inputs[0], "r2l_decoder_input_ids": inputs[1]}
    shown = [ids.clone() for ids in inputs]
    for ids in shown:
        ids[1] = PAD
    mixed = model.model(input_ids, **settings, use_twin=tuple(shown))
    alone = model.model(input_ids, **settings, use_twin=False)
    twins = model.model(input_ids, **settings, use_twin=tuple(inputs))
    for name in ("last_hidden_state", "r2l_last_hidden_state"):
        torch.testing.assert_close(getattr(mixed, name)[1], getattr(alone, name)[1])
        torch.testing.assert_close(getattr(mixed, name)[0], getattr(twins, name)[0])
        assert not torch.allclose(getattr(mixed, name)[0], getattr(alone, name)[0])


@pytest.mark.parametrize("use_copy", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_what_a_direction_writes_alone_is_what_generate_writes(use_copy, training):
    model = tiny_model(use_copy=use_copy, dropout=0.5)
    input_ids, _ = random_pairs()
    encoded = model.get_encoder()(input_ids)
    # Its decoders write without dropout, fast operations or not, and learn on with it.
    model.train(training)
    modes = {name: module.training for name, module in model.named_modules()}
    left, right = model.write_alone(encoded, 8)
    with plain_kernels():
        assert all(map(torch.equal, model.write_alone(encoded, 8), (left, right)))
    assert modes == {name: module.training for name, module in model.named_modules()}
    model.eval()
    from_left = model.generate(input_ids, decoding_direction="l2r", max_length=8)
    from_right = model.generate(input_ids, decoding_direction="r2l", max_length=8)
    assert torch.equal(left[:, : from_left.shape[1]], from_left)
    written = model.directions[1].reading_order(right)[0]
    assert torch.equal(written[:, : from_right.shape[1]], from_right)


def losses_by_place(model, input_ids, labels):
    """The features of both directions, with what the twins read drawn anew from the same seed."""
    torch.manual_seed(3)
    outputs = model(input_ids, labels=labels, skip_logits=False)
    return outputs.logits, outputs.r2l_logits


def test_no_answer_leaks_through_a_partner_that_writes_itself():
    input_ids, labels = random_pairs()
    labels = torch.randint(4, 24, (4, 6)).index_fill(1, torch.tensor([5]), END)
    for partner, leaks in (("own", False), ("gold", True)):
        model = tiny_model(twin_partner=partner, twin_dropout=0.2).train()
        left, right = losses_by_place(model, input_ids, labels)
        changed = labels.clone()
        changed[:, 4] = 4 + (changed[:, 4] - 3) % 20
        # Steps 0 to 4 of the left-to-right direction have not read the fifth word, whatever its twin may tell.
        other = losses_by_place(model, input_ids, changed)[0]
        assert torch.equal(left[:, :5], other[:, :5]) is not leaks
        changed = labels.clone()
        changed[:, 0] = 4 + (changed[:, 0] - 3) % 20
        other = losses_by_place(model, input_ids, changed)[1]
        assert torch.equal(right[:, :5], other[:, :5]) is not leaks


@pytest.mark.parametrize("rnn_type", ["lstm", "gru"])
@pytest.mark.parametrize("dropout", [0.5, 1.0])
def test_it_learns_beside_itself(rnn_type, dropout):
    model = tiny_model(twin_partner="own", twin_dropout=dropout, rnn_type=rnn_type, use_copy=True).train()
    input_ids, labels = random_pairs()

    def gradients(autocast: bool) -> dict[str, torch.Tensor | None]:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(input_ids, labels=labels).loss
        assert loss.isfinite()
        loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    found = gradients(autocast=False)
    for name, gradient in found.items():
        assert gradient is not None or (dropout == 1 and "twin_attention" in name), name
    if runs_under_autocast(model.model.decoder.rnns[0], torch.bfloat16, torch.device("cpu")):
        # Weights that were cast for writing, without gradients, are not those that are learned from.
        learned = gradients(autocast=True)
        assert {name for name in learned if learned[name] is None} == {name for name in found if found[name] is None}


def written_by(model, input_ids):
    """What both directions of a model write alone, as labels in reading order."""
    written = []
    for direction, ids in zip(model.directions, model.write_alone(model.get_encoder()(input_ids), 8)):
        ids = direction.reading_order(ids)[0][:, 1:]
        written.append(ids.masked_fill(ids == PAD, -100))
    return dict(zip(("l2r_partner_ids", "r2l_partner_ids"), written))


@pytest.mark.parametrize("use_copy", [False, True])
def test_what_the_model_has_written_itself_teaches_what_its_own_writing_teaches(use_copy):
    model = tiny_model(twin_partner="own", twin_dropout=0.3, use_copy=use_copy).train()
    input_ids, labels = random_pairs()
    labels = torch.nn.functional.pad(labels, (0, 2), value=-100)
    before = written_by(model, input_ids)
    # Of the model that copies all are cut.
    assert any(bool((ids == END).any()) for ids in before.values()) is not use_copy
    torch.manual_seed(4)
    own = model(input_ids, labels=labels, skip_logits=False)
    model.config.twin_partner = "written"
    torch.manual_seed(4)
    written = model(input_ids, labels=labels, skip_logits=False, **before)
    torch.testing.assert_close(written.logits, own.logits)
    torch.testing.assert_close(written.r2l_logits, own.r2l_logits)
    torch.manual_seed(5)
    other = model(input_ids, labels=labels, skip_logits=False, **before)
    assert not torch.allclose(other.logits, own.logits)


def test_no_answer_leaks_through_what_was_written_before():
    model = tiny_model(twin_partner="written", twin_dropout=0.2).train()
    input_ids, labels = random_pairs()
    before = written_by(model, input_ids)
    labels = torch.randint(4, 24, (4, 6)).index_fill(1, torch.tensor([5]), END)

    def logits(labels, before):
        torch.manual_seed(3)
        found = model(input_ids, labels=labels, skip_logits=False, **before)
        return found.logits, found.r2l_logits

    for place, direction in ((4, 0), (0, 1)):
        changed = labels.clone()
        changed[:, place] = 4 + (changed[:, place] - 3) % 20
        assert torch.equal(logits(labels, before)[direction][:, :5], logits(changed, before)[direction][:, :5])
    # Each reads the other's.
    for name, reader in (("l2r_partner_ids", 1), ("r2l_partner_ids", 0)):
        other = {**before, name: before[name].roll(1, dims=0)}
        changes = [not torch.allclose(a, b) for a, b in zip(logits(labels, before), logits(labels, other))]
        assert changes == [reader == 0, reader == 1]


def test_titles_written_before_are_read_in_the_order_of_their_writing():
    left, right = tiny_model().directions
    labels = torch.tensor([[5, 6, END, -100], [-100, -100, -100, -100], [7, 8, 9, END]])
    keeps = torch.tensor([True, True, False])
    nobody = [PAD] * 5
    assert as_written(labels, left, keeps).tolist() == [[START, 5, 6, END, PAD], nobody, nobody]
    assert as_written(labels, right, keeps).tolist() == [[END, 6, 5, START, PAD], nobody, nobody]


def test_several_titles_of_a_document_have_its_partner():
    model = tiny_model(twin_partner="written").train()
    input_ids, labels = random_pairs()
    before = written_by(model, input_ids)
    encoded = model.get_encoder()(input_ids)
    torch.manual_seed(1)
    several = model(encoder_outputs=encoded, labels=labels.repeat_interleave(2, dim=0), skip_logits=False, **before)
    torch.manual_seed(1)
    twice = {name: ids.repeat_interleave(2, dim=0) for name, ids in before.items()}
    inputs = {"input_ids": input_ids.repeat_interleave(2, dim=0), "labels": labels.repeat_interleave(2, dim=0)}
    each = model(**inputs, skip_logits=False, **twice)
    torch.testing.assert_close(several.logits, each.logits)


def test_who_is_to_read_what_was_written_asks_for_it():
    model = tiny_model(twin_partner="written").train()
    input_ids, labels = random_pairs()
    before = written_by(model, input_ids)
    with pytest.raises(ValueError, match="twin_partner='written' without l2r_partner_ids.*bidir-seq2seq partners"):
        model(input_ids, labels=labels)
    with pytest.raises(ValueError, match="r2l_partner_ids has 3 rows for 4 documents"):
        model(input_ids, labels=labels, **{**before, "r2l_partner_ids": before["r2l_partner_ids"][:3]})
    with pytest.raises(ValueError, match="l2r_partner_ids holds the id 24, outside the vocabulary of 24"):
        model(input_ids, labels=labels, **{**before, "l2r_partner_ids": torch.full((4, 3), 24)})
    # Where nobody reads them they are not asked for, and change nothing.
    model.eval()
    alone = model(input_ids, labels=labels)
    torch.testing.assert_close(model(input_ids, labels=labels, **before).logits, alone.logits)


def test_a_trainer_validates_by_labels_alone():
    assert find_labels(BidirSeq2SeqForConditionalGeneration) == ["labels"]


def test_more_rows_than_documents():
    model = tiny_model(twin_partner="own").train()
    input_ids, labels = random_pairs()
    encoded = model.get_encoder()(input_ids)
    loss = model(encoder_outputs=encoded, labels=labels.repeat_interleave(2, dim=0)).loss
    assert loss.isfinite()


def test_steps_see_what_has_been_written_by_then():
    partners = torch.tensor([[2, 5, 3, 0], [0, 0, 0, 0]])
    seen = visible(5, partners, pad_id=0)
    assert seen[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert seen[1].all()


def test_partners_ask_for_decoders_that_learn_to_write_alone():
    with pytest.raises(ValueError, match="twin_partner='own' needs twin_memory='hidden', and twin_dropout above 0"):
        BidirSeq2SeqConfig(twin_partner="own", twin_dropout=0.0)
    with pytest.raises(ValueError, match="twin_partner='mine' must be one of gold, own, written, none"):
        BidirSeq2SeqConfig(twin_partner="mine")


def test_without_partner_both_directions_are_trained_alone():
    input_ids, labels = random_pairs()
    alone, twins = tiny_model(twin_partner="none").train(), tiny_model(twin_dropout=1.0).train()
    twins.load_state_dict(alone.state_dict())
    alone(input_ids, labels=labels).loss.backward()
    twins(input_ids, labels=labels).loss.backward()
    for (name, own), other in zip(alone.named_parameters(), twins.parameters()):
        if "twin_attention" in name:
            assert own.grad is None and other.grad.abs().max() == 0
        else:
            torch.testing.assert_close(own.grad, other.grad)


def test_without_partner_each_direction_proposes_alone():
    model = tiny_model(twin_partner="none")
    input_ids, _ = random_pairs()
    for ranking in ("own", "joint"):
        settings = {"num_beams": 3, "max_length": 9, "ranking": ranking}
        by_default = model.generate(input_ids, **settings)
        assert torch.equal(by_default, model.generate(input_ids, proposals="l2r+r2l", **settings))
    assert model.generate(input_ids, decoding_direction="l2r", max_length=9).shape[0] == len(input_ids)
    with pytest.raises(ValueError, match="proposals='both'.*twin_partner='none'.*proposals='l2r\\+r2l'"):
        model.generate(input_ids, proposals="both")


def test_the_last_updates_are_made_beside_own_writing():
    model = tiny_model(twin_partner="none")
    callback, state = OwnPartnerCallback(model.config, 0.25), TrainerState(max_steps=8)
    read = []
    for state.global_step in range(8):
        callback.on_step_begin(None, state, None)
        read.append(model.config.twin_partner)
    assert read == ["none"] * 6 + ["own"] * 2


def test_a_share_of_updates_asks_for_a_model_that_learns_to_write_alone():
    with pytest.raises(ValueError, match="twin_partner='own' needs"):
        OwnPartnerCallback(tiny_model(twin_dropout=0.0).config, 0.2)
    with pytest.raises(ValueError, match="own_partner_share=1.5 is a share"):
        TrainingArguments(own_partner_share=1.5)
