"""Fine-tuning with transformers' stock tools, used as their manuals say."""

import copy

import pytest
import torch
from accelerate import Accelerator
from conftest import random_pairs, tiny_model
from torch.nn import functional as F
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from bidir_seq2seq.tokenization import build_char_tokenizer

LETTERS = "abcdefghijklmnopqrst"
STOCK = {Trainer: TrainingArguments, Seq2SeqTrainer: Seq2SeqTrainingArguments}
stock_trainers = pytest.mark.parametrize("trainer_class", list(STOCK))


@pytest.fixture
def tokenizer():
    """Twenty letters after the four special tokens: the vocabulary of `tiny_model`."""
    return build_char_tokenizer([LETTERS], min_frequency=1)


@pytest.fixture
def pairs(tokenizer) -> list[dict]:
    """Sixteen documents, each with its first letters as title; lengths differ within every batch."""
    texts = ["".join(LETTERS[i] for i in torch.randint(0, 20, (4 + row % 5,)).tolist()) for row in range(16)]
    return [dict(tokenizer(text, text_target=text[: 1 + row % 4])) for row, text in enumerate(texts)]


@pytest.fixture
def make_trainer(tokenizer, pairs, tmp_path):
    """Makes a stock trainer with stock arguments and the stock collator."""

    def make(model, trainer_class=Seq2SeqTrainer, compute_metrics=None, compute_loss_func=None, **arguments):
        settings = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "max_steps": 2}
        settings |= {"optim": "sgd", "learning_rate": 0.1, "logging_steps": 1, "save_strategy": "no"}
        settings |= {"use_cpu": True, "report_to": [], "disable_tqdm": True}
        return trainer_class(
            model=model,
            args=STOCK[trainer_class](output_dir=str(tmp_path), **{**settings, **arguments}),
            train_dataset=pairs,
            eval_dataset=pairs,
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            compute_loss_func=compute_loss_func,
        )

    return make


def logged_losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_weights(model, other, **tolerance):
    torch.testing.assert_close(dict(model.named_parameters()), dict(other.named_parameters()), **tolerance)


# The stock trainers


@stock_trainers
def test_a_stock_trainer_learns(make_trainer, trainer_class):
    trainer = make_trainer(
        tiny_model(spread=0.1), trainer_class, optim="adamw_torch", learning_rate=0.02, max_steps=20
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before


@stock_trainers
def test_without_generating_predictions_are_the_left_to_right_logits(make_trainer, pairs, trainer_class):
    seen = []

    def accuracy(prediction) -> dict[str, float]:
        seen.append(prediction)
        known = prediction.label_ids != -100
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids)[known].mean())}

    model = tiny_model()
    trainer = make_trainer(model, trainer_class, compute_metrics=accuracy)
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    (prediction,) = seen
    batch = trainer.data_collator(copy.deepcopy(pairs))
    with torch.no_grad():
        expected = model(**batch).logits
    known = batch["labels"] != -100
    assert torch.equal(torch.from_numpy(prediction.label_ids), batch["labels"])
    torch.testing.assert_close(torch.from_numpy(prediction.predictions)[known], expected[known])


def test_predict_with_generate_hands_over_what_generate_writes(make_trainer, pairs, tokenizer):
    seen = []

    def compute_metrics(prediction) -> dict[str, float]:
        seen.append(prediction)
        return {"pairs": len(prediction.predictions)}

    model = tiny_model()
    trainer = make_trainer(
        model, compute_metrics=compute_metrics, predict_with_generate=True, generation_num_beams=2,
        generation_max_length=7,
    )  # fmt: skip
    assert trainer.evaluate()["eval_pairs"] == 16
    (prediction,) = seen
    batch = trainer.data_collator(copy.deepcopy(pairs))
    expected = model.generate(batch["input_ids"], num_beams=2, max_length=7)
    assert prediction.predictions[:, : expected.shape[1]].tolist() == expected.tolist()
    assert (prediction.predictions[:, expected.shape[1] :] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize("predict_with_generate", [False, True])
def test_evaluation_changes_nothing_that_was_set_for_generation(make_trainer, tmp_path, predict_with_generate):
    model = tiny_model()
    ours = {"decoding_direction": "r2l", "joint_rescoring": True, "max_length": 12, "num_beams": 2}
    for name, value in ours.items():
        setattr(model.generation_config, name, value)
    trainer = make_trainer(
        model, compute_metrics=lambda _: {}, predict_with_generate=predict_with_generate, generation_max_length=7
    )
    trainer.evaluate()
    trainer.save_model()
    shipped = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config
    assert {name: getattr(shipped, name) for name in ours} == ours


# Label smoothing


def test_smoothing_in_the_config_reaches_both_directions(make_trainer, pairs):
    model = tiny_model(label_smoothing=0.2, twin_dropout=1.0)
    trainer = make_trainer(copy.deepcopy(model), max_steps=1, per_device_train_batch_size=16)
    trainer.train()
    batch = trainer.data_collator(copy.deepcopy(pairs))
    with torch.no_grad():
        outputs = model(**batch)
    losses = [
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.2).item()
        for logits, labels in (
            (outputs.logits, batch["labels"]),
            (outputs.r2l_logits, model.directions[1].targets(batch["labels"])),
        )
    ]
    assert logged_losses(trainer) == pytest.approx([sum(losses) / 2])


@pytest.mark.parametrize("decoder_directions", ["both", "r2l"])
@pytest.mark.parametrize(
    "setting",
    [{"label_smoothing_factor": 0.1}, {"compute_loss_func": lambda outputs, labels, **_: outputs.logits.sum()}],
    ids=lambda setting: next(iter(setting)),
)
def test_a_loss_that_would_forget_a_direction_is_refused(make_trainer, decoder_directions, setting):
    trainer = make_trainer(tiny_model(decoder_directions=decoder_directions), **setting)
    with pytest.raises(ValueError, match=r"label_smoothing_factor(.|\n)*config\.label_smoothing"):
        trainer.train()


def test_the_trainers_own_smoothing_equals_ours_where_there_is_only_left_to_right(make_trainer):
    ours = make_trainer(tiny_model(decoder_directions="l2r", label_smoothing=0.2))
    theirs = make_trainer(copy.deepcopy(ours.model), label_smoothing_factor=0.2)
    theirs.model.config.label_smoothing = 0.0
    for trainer in (ours, theirs):
        trainer.train()
    assert logged_losses(ours) == pytest.approx(logged_losses(theirs))
    assert_same_weights(ours.model, theirs.model)


# Batches


@stock_trainers
def test_accumulated_small_batches_equal_one_large_batch(make_trainer, trainer_class):
    large = make_trainer(tiny_model(twin_dropout=0.0), trainer_class)
    small = make_trainer(
        copy.deepcopy(large.model), trainer_class, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    for trainer in (large, small):
        trainer.train()
    assert logged_losses(large) == pytest.approx(logged_losses(small))
    assert_same_weights(large.model, small.model)


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_how_a_batch_is_padded_changes_nothing(tokenizer, pairs, padding_side):
    model = tiny_model().train()

    def step(**padding) -> tuple[torch.Size, torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        batch = DataCollatorForSeq2Seq(tokenizer, model=model, **padding)(copy.deepcopy(pairs))
        torch.manual_seed(0)
        loss = model(**batch).loss
        loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        return batch["labels"].shape, loss, gradients

    shape, loss, gradients = step()
    tokenizer.padding_side = padding_side
    padded_shape, padded_loss, padded_gradients = step(pad_to_multiple_of=8)
    assert (shape, padded_shape) == ((16, 5), (16, 8))
    torch.testing.assert_close(padded_loss, loss)
    torch.testing.assert_close(padded_gradients, gradients)


def test_a_bare_loop_of_accelerate_equals_one_of_torch(tokenizer, pairs):
    def train(model, prepare, backward):
        collator = DataCollatorForSeq2Seq(tokenizer, model=model)
        loader = torch.utils.data.DataLoader(pairs, batch_size=8, collate_fn=collator)
        model, optimizer, loader = prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
        for batch in loader:
            optimizer.zero_grad()
            backward(model(**batch).loss)
            optimizer.step()

    model = tiny_model(twin_dropout=0.0).train()
    before, other = copy.deepcopy(model), copy.deepcopy(model)
    accelerator = Accelerator(cpu=True)
    train(model, accelerator.prepare, accelerator.backward)
    train(other, lambda *objects: objects, torch.Tensor.backward)
    assert_same_weights(model, other)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)


# Precision and compilation


@pytest.mark.parametrize(
    "rnn_type",
    [
        "gru",
        pytest.param(
            "lstm",
            marks=pytest.mark.skipif(
                not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
                reason="oneDNN has no bfloat16 LSTM for this processor",
            ),
        ),
    ],
)
def test_under_bfloat16_autocast_the_loss_is_float32_and_close(make_trainer, rnn_type):
    exact = make_trainer(tiny_model(spread=0.3, rnn_type=rnn_type, twin_dropout=0.0))
    rough = make_trainer(copy.deepcopy(exact.model), bf16=True)
    dtypes = []
    rough.model.register_forward_hook(lambda *arguments: dtypes.append(arguments[-1].loss.dtype))
    for trainer in (exact, rough):
        trainer.train()
    assert set(dtypes) == {torch.float32}
    assert logged_losses(rough) == pytest.approx(logged_losses(exact), rel=0.02)
    assert logged_losses(rough) != logged_losses(exact)
    assert all(parameter.dtype == torch.float32 for parameter in rough.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rnn_type", ["lstm", "gru"])
def test_half_precision_weights_load_compute_write_and_save(tmp_path, rnn_type, dtype):
    exact = tiny_model(spread=0.3, rnn_type=rnn_type)
    exact.save_pretrained(tmp_path / "exact")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "exact", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    input_ids, labels = random_pairs()
    outputs = model(input_ids=input_ids, labels=labels)
    assert outputs.logits.dtype == dtype and outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, exact(input_ids=input_ids, labels=labels).loss, rtol=0.02, atol=0)
    for settings in ({"decoding_direction": "l2r"}, {"num_beams": 3, "joint_rescoring": True}):
        assert model.generate(input_ids, max_new_tokens=4, **settings).shape[0] == 4
    model.save_pretrained(tmp_path / "half")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "half")
    assert again.dtype == dtype
    assert_same_weights(again, model, rtol=0, atol=0)


# TorchDynamo makes the object that torch warns about itself.
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_step_of_a_compiled_model_is_a_step_of_the_model():
    # One layer each, and nothing optimised: tracing takes all the time.
    model = tiny_model(encoder_layers=1, decoder_layers=1, twin_dropout=0.0).train()
    input_ids, labels = random_pairs()

    def step(model) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        outputs = model(input_ids=input_ids, labels=labels)
        outputs.loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        return outputs.loss, outputs.encoder_last_hidden_state, gradients

    expected = step(model)
    model.compile(backend="eager")
    torch.testing.assert_close(step(model), expected)


# A part of the model, and a larger vocabulary


def test_a_frozen_encoder_stays_and_the_rest_learns(make_trainer, tmp_path):
    model = tiny_model(spread=0.1)
    before = copy.deepcopy(model)
    model.get_encoder().requires_grad_(False)
    trainer = make_trainer(model)
    trainer.train()
    trainer.save_model()
    trained = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    changed = {name for name, old in before.named_parameters() if not torch.equal(old, trained.get_parameter(name))}
    assert not any(name.startswith("model.encoder.") for name in changed)
    decoders = {
        f"model.{decoder}.{part}"
        for decoder in ("decoder", "r2l_decoder")
        for part in ("feature.weight", "rnns.0.weight_hh_l0")
    }
    assert changed > decoders | {"lm_head.weight", "prior.log_scale"}


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_new_words_are_learnt_and_old_ones_keep_their_meaning(
    make_trainer, tokenizer, pairs, tmp_path, tie_word_embeddings
):
    model = tiny_model(spread=0.3, tie_word_embeddings=tie_word_embeddings)
    batch = DataCollatorForSeq2Seq(tokenizer, model=model)(copy.deepcopy(pairs))
    tokenizer.add_tokens(["X", "Y"])
    with torch.no_grad():
        before = model(**batch).logits
        model.resize_token_embeddings(len(tokenizer))
        torch.testing.assert_close(model(**batch).logits[..., :24], before)

    started = copy.deepcopy(model)
    # X stands in documents only, Y in titles only.
    pairs[:] = [dict(tokenizer(f"X{letter}b", text_target="Yb")) for letter in LETTERS[:16]]
    trainer = make_trainer(model, optim="adamw_torch", learning_rate=0.03, lr_scheduler_type="constant", max_steps=40)
    trainer.train()
    tables = {
        "model.encoder.embed_tokens.weight": "XY",
        "prior.log_scale": "X",
        "prior.shift": "XY",
        "lm_head.bias": "XY",
    }
    for name, learnt in tables.items():
        moved = (model.get_parameter(name) != started.get_parameter(name)).view(26, -1).any(1)
        assert all(moved[tokenizer.convert_tokens_to_ids(list(learnt))]), name
    trainer.save_model()
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert again.config.vocab_size == again.lm_head.out_features == len(again.lm_head.bias) == 26
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tie_word_embeddings
    written = again.generate(torch.tensor([pairs[0]["input_ids"]]), max_new_tokens=4, num_beams=2)
    assert tokenizer.decode(written[0], skip_special_tokens=True) == "Yb"
