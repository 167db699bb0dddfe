import functools
import inspect
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    Seq2SeqTrainer,
    TrainerControl,
    TrainerState,
)

from bidir_seq2seq import BidirSeq2SeqForConditionalGeneration, callbacks, recipe, training_arguments
from bidir_seq2seq import trainer as trainer_module
from bidir_seq2seq import training as training_module
from bidir_seq2seq.callbacks import SharedProcessorsCallback, StopSignalCallback
from bidir_seq2seq.loading import load_model_and_tokenizer
from bidir_seq2seq.plots import plot_training_curve
from bidir_seq2seq.run_folder import UNFINISHED, last_checkpoint, numbered_checkpoints
from bidir_seq2seq.sampler import EpochLengthSampler
from bidir_seq2seq.tokenization import build_char_tokenizer
from bidir_seq2seq.trainer import TitleTrainer
from bidir_seq2seq.training import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    load_or_build_model,
    propose_bfloat16,
    train,
)
from bidir_seq2seq.training_arguments import VALIDATION_METRICS

ROOT = Path(__file__).parents[1]
TINY = {
    "embedding_size": 16,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "attention_head_size": 8,
    "min_frequency": 1,
}
RUN = {
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "warmup_steps": 0,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Pairs whose title is the first three characters of the document."""
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 24), ("validation", 7)):
        with open(folder / f"{name}.jsonl", "w") as file:
            for _ in range(count):
                length = int(torch.randint(3, 9, (), generator=generator))
                letters = torch.randint(0, 8, (length,), generator=generator).tolist()
                text = "".join("abcdefgh"[i] for i in letters)
                file.write(json.dumps({"document": text, "title": text[:3]}) + "\n")
    return {f"{name}_file": str(folder / f"{name}.jsonl") for name in ("train", "validation")}


def run(files, output_dir, model=None, **overrides):
    return train(
        ModelArguments(**{**TINY, **(model or {})}),
        DataArguments(**files),
        TrainingArguments(output_dir=str(output_dir), **{**RUN, **overrides}),
    )


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A finished run of four updates, and its metrics."""
    # It is set up before the fixture that does this for tests, and sums differ by the number of threads.
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    return folder, run(files, folder)


def test_what_a_run_leaves_behind(finished):
    folder, metrics = finished
    assert {"eval_loss", "eval_rouge1", "eval_rougeL", "eval_bleu"} <= set(metrics)
    assert json.loads((folder / "eval_results.json").read_text())["eval_loss"] == metrics["eval_loss"]
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json", "training_curve.png"):
        assert (folder / name).stat().st_size > 0
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    # The Trainer's own evaluation defaults (20 tokens) have not got into what ships.
    assert model.generation_config.max_length == 65 and model.generation_config.num_beams == 3
    assert model.generation_config.joint_rescoring is True
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == 12
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    elapsed = [entry["elapsed_seconds"] for entry in log if "loss" in entry]
    assert len(elapsed) == 4 and elapsed == sorted(elapsed)


def test_the_best_checkpoint_is_what_is_left(finished):
    folder, _ = finished
    state = json.loads((folder / "trainer_state.json").read_text())
    best = load_file(Path(state["best_model_checkpoint"]) / "model.safetensors")
    left = load_file(folder / "model.safetensors")
    assert all(torch.equal(best[name], left[name]) for name in left)
    rouge = [entry["eval_rougeL"] for entry in state["log_history"] if "eval_rougeL" in entry]
    assert state["best_metric"] == max(rouge)


def test_a_resumed_run_equals_one_that_was_not_interrupted(files, finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder / "checkpoint-2", tmp_path / "checkpoint-2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    # A later checkpoint that was cut off while it was written is passed over.
    (tmp_path / "checkpoint-3").mkdir()
    run(files, tmp_path)
    for name in ("checkpoint-4/model.safetensors", "checkpoint-4/optimizer.pt"):
        assert (tmp_path / name).exists()
    before, after = (load_file(path / "checkpoint-4" / "model.safetensors") for path in (folder, tmp_path))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.e2e
def test_a_run_resumed_beside_own_writing_equals_one_that_was_not_interrupted(files, tmp_path):
    settings = {"own_partner_share": 0.75, "save_total_limit": None}
    run(files, tmp_path / "whole", {"twin_partner": "none"}, **settings)
    partners = [
        json.loads((tmp_path / f"whole/{name}config.json").read_text())["twin_partner"]
        for name in ("", "checkpoint-2/")
    ]
    assert partners == ["own", "own"]
    shutil.copytree(tmp_path / "whole/checkpoint-2", tmp_path / "resumed/checkpoint-2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "resumed")
    run(files, tmp_path / "resumed", {"twin_partner": "none"}, **settings)
    run(files, tmp_path / "alone", {"twin_partner": "none"})
    whole, resumed, alone = (
        load_file(tmp_path / name / "checkpoint-4/model.safetensors") for name in ("whole", "resumed", "alone")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(
        whole["model.decoder.twin_attention.key.weight"], alone["model.decoder.twin_attention.key.weight"]
    )


@pytest.mark.e2e
def test_new_twins_learn_alone_first_and_to_read_each_other_at_the_end(files, tmp_path):
    def partners(name, model=None, **settings):
        run(files, tmp_path / name, model, save_total_limit=None, **settings)
        places = ("checkpoint-2", "checkpoint-4", "")
        return [json.loads((tmp_path / name / x / "config.json").read_text())["twin_partner"] for x in places]

    assert partners("default")[:2] == ["none", "own"]
    assert partners("given", {"twin_partner": "gold"}) == ["gold"] * 3
    assert partners("leaking", {"twin_dropout": 0.0}) == ["gold"] * 3
    assert partners("half", {"twin_partner": "gold"}, own_partner_share=0.5)[:2] == ["gold", "own"]
    assert partners("on", {"model_name_or_path": str(tmp_path / "given")}) == ["gold"] * 3


def test_the_best_model_is_one_that_has_learned_to_read_its_twin(files, tmp_path):
    # The loss falls, and the more of it the better: of all checkpoints the first would be the best.
    settings = {"metric_for_best_model": "loss", "greater_is_better": True, "predict_with_generate": False}
    run(files, tmp_path, save_total_limit=None, learning_rate=1e-2, **settings)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert losses[0] > losses[1] and state["best_metric"] == losses[1]
    assert state["best_model_checkpoint"].endswith("checkpoint-4")
    assert json.loads((tmp_path / "config.json").read_text())["twin_partner"] == "own"


def test_last_checkpoint(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert last_checkpoint(args) is None
    for step in ("9", "10", "best"):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(args) is None
    save_file({"weight": torch.ones(3)}, tmp_path / "checkpoint-9" / "model.safetensors")
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(args) == str(tmp_path / "checkpoint-9")


@pytest.mark.parametrize(
    "name, content",
    [
        ("trainer_state.json", b""),
        ("trainer_state.json", b"{'global_step"),
        ("model.safetensors", save({"weight": torch.ones(30)})[:100]),
        ("model.safetensors", save({"weight": torch.tensor([1.0, float("nan")])})),
        ("model.safetensors", None),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, name, content):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file({"weight": torch.ones(3)}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(args) == str(tmp_path / "checkpoint-10")
    damaged = tmp_path / "checkpoint-10" / name
    damaged.unlink() if content is None else damaged.write_bytes(content)
    assert last_checkpoint(args) == str(tmp_path / "checkpoint-9")


def test_training_goes_on_from_a_model(files, finished, tmp_path):
    folder, _ = finished
    run(files, tmp_path, model={"model_name_or_path": str(folder)}, max_steps=1)
    assert (tmp_path / "model.safetensors").exists()
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 12


def test_without_validation_pairs(files, tmp_path):
    assert run({"train_file": files["train_file"]}, tmp_path, max_steps=1) == {}
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("decoder_directions", ["l2r", "r2l"])
def test_one_direction_trains_too(files, tmp_path, decoder_directions):
    model = {"decoder_directions": decoder_directions, "use_attention": False, "use_prior": False}
    metrics = run(files, tmp_path, model=model, max_steps=1)
    assert metrics["eval_loss"] > 0


@pytest.mark.e2e
def test_two_processes_train_the_model_that_one_does(files, tmp_path):
    # Without twin dropout nothing is random but the order of the pairs, which both share. A title of Chinese letters
    # can be right in a part, and seven of them do not fill a batch, let alone two.
    chinese = {}
    for name, path in files.items():
        text = Path(path).read_text(encoding="utf-8")
        rows = [
            {
                key: value.translate(str.maketrans("abcdefgh", "天地人日月水火山"))
                for key, value in json.loads(line).items()
            }
            for line in text.splitlines()
        ]
        chinese[name] = str(tmp_path / Path(path).name)
        Path(chinese[name]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = {
        **TINY,
        **chinese,
        **RUN,
        "twin_dropout": 0,
        "metric_for_best_model": "loss",
    }
    flags |= {"greater_is_better": False, "max_steps": 3, "eval_steps": 3, "save_steps": 3}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}

    def launch(name: str, launcher: list[str], batch_size: int):
        settings = {**flags, "output_dir": str(tmp_path / name), "per_device_train_batch_size": batch_size}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(settings))
        command = [*launcher, str(ROOT / "scripts" / "train.py"), str(path)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert result.returncode == 0, result.stderr[-2000:]
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        return load_file(tmp_path / name / "model.safetensors"), state

    one, one_state = launch("one", [sys.executable], batch_size=4)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two, two_state = launch("two", torchrun, batch_size=2)
    assert two_state["train_batch_size"] == 2
    counts = [weights.pop("prior.title_counts").sum() for weights in (one, two)]
    assert 0 < counts[1] == counts[0]
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)
    losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in (one_state, two_state)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    losses = [[e["eval_loss"] for e in state["log_history"] if "eval_loss" in e] for state in (one_state, two_state)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    rouge = [
        [e["eval_rougeL"] for e in state["log_history"] if "eval_rougeL" in e] for state in (one_state, two_state)
    ]
    assert rouge[0][0] > 1
    assert rouge[0] == pytest.approx(rouge[1], abs=1e-6)


@pytest.mark.e2e
def test_batches_in_parts_give_the_losses_of_whole_ones(long_run, tmp_path):
    # Titles and batches differ in length: a mean of means would be another number.
    pairs, _ = long_run
    losses = {}
    for size, steps in ((16, 1), (4, 4)):
        more = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        run(pairs, tmp_path / f"{size}", {"twin_dropout": 0}, **{**LONG, "max_steps": 30, "save_steps": 30, **more})
        log = json.loads((tmp_path / f"{size}" / "trainer_state.json").read_text())["log_history"]
        losses[size] = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses[16]) == 30 and losses[16][0] > losses[16][-1]
    assert losses[4] == pytest.approx(losses[16], rel=1e-6)


@pytest.mark.e2e
def test_the_validation_loss_is_the_mean_over_tokens_whatever_the_batches(long_run, tmp_path):
    pairs, _ = long_run
    lines = Path(pairs["train_file"]).read_text().splitlines()[:30]
    (tmp_path / "validation.jsonl").write_text("".join(f"{line}\n" for line in lines))
    files = {**pairs, "validation_file": str(tmp_path / "validation.jsonl")}
    losses = [
        run(files, tmp_path / f"{size}", **{**LONG, "max_steps": 1}, per_device_eval_batch_size=size)["eval_loss"]
        for size in (30, 7)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    # All at once, by the model itself.
    model, tokenizer = load_model_and_tokenizer(tmp_path / "30")
    texts = [json.loads(line) for line in lines]
    batch = tokenizer([text["document"] for text in texts], padding=True, return_tensors="pt")
    labels = tokenizer([text["title"] for text in texts], padding=True, return_tensors="pt")["input_ids"]
    labels = labels.masked_fill(labels == tokenizer.pad_token_id, -100)
    with torch.no_grad():
        assert losses[0] == pytest.approx(model(**batch, labels=labels).loss.item(), rel=1e-6)


def test_the_trainers_own_label_smoothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use label_smoothing, which smooths both"):
        TrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.1, use_cpu=True)


@pytest.fixture(scope="module")
def translation(tmp_path_factory) -> dict[str, str]:
    """120 pairs without a word in common, in a file of their own."""
    words = {letter: letter.upper() for letter in "abcdefgh"}
    rows = [[letter for index, letter in enumerate(words) if number >> index & 1] for number in range(1, 121)]
    lines = [json.dumps({"en": " ".join(row), "de": " ".join(words[x] for x in row)}) + "\n" for row in rows]
    file = tmp_path_factory.mktemp("translation") / "train.jsonl"
    file.write_text("".join(lines))
    return {"train_file": str(file)}


NO_VALIDATION = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "report": False}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_translation_gets_one_direction_if_nothing_is_said(translation, tmp_path, caplog, streaming):
    # What was said in another test is said again.
    training_module.logger.warning_once.cache_clear()
    data = {**translation, "streaming": streaming}
    run(data, tmp_path / "run", **NO_VALIDATION)
    assert re.search(r"vocabulary: \d+ ids \(bpe\)", caplog.text)
    assert (
        "one decoder, from left to right, as only 0% of the titles' tokens are taken from their texts" in caplog.text
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")
    assert model.config.decoder_directions == "l2r"
    # Gone on from, it stays what it is, and cannot be made another.
    again = {"model_name_or_path": str(tmp_path / "run")}
    run(data, tmp_path / "again", model=again, **NO_VALIDATION)
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again").config.decoder_directions == "l2r"
    with pytest.raises(ValueError, match="decoder_directions='both' is for a new model, and .* has 'l2r'"):
        run(data, tmp_path / "other", model={**again, "decoder_directions": "both"}, **NO_VALIDATION)


def test_a_translation_that_is_seen_often_gets_twins_but_a_run_made_longer_stays_what_it_is(
    translation, tmp_path, caplog, monkeypatch
):
    training_module.logger.warning_once.cache_clear()
    monkeypatch.setattr(recipe, "TWINS_FROM_PASSES", 0.05)
    monkeypatch.setattr(recipe, "DROPOUT_FROM", 0.05)

    def kind(folder: str, updates: int) -> tuple[str, float]:
        # An update is a thirtieth of a pass.
        run(translation, tmp_path / folder, **{**NO_VALIDATION, "save_strategy": "steps", "max_steps": updates})
        config = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / folder).config
        return config.decoder_directions, config.dropout

    assert kind("short", 1) == ("l2r", 0.0)
    assert kind("long", 2) == ("both", 0.2)
    assert "twin decoders, as every pair is seen 0.0667 times" in caplog.text
    assert kind("short", 2) == ("l2r", 0.0)


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({"decoder_directions": "both"}, {}),
        ({"decoder_directions": "r2l"}, {}),
        ({"twin_partner": "own"}, {}),
        ({"twin_dropout": 0.3}, {}),
        ({"share_encoder": False}, {}),
        ({}, {"own_partner_share": 0.5}),
    ],
)
def test_whoever_asks_for_directions_gets_them(translation, tmp_path, model, training):
    run(translation, tmp_path, model={"tokenizer_type": "word", **model}, **NO_VALIDATION, **training)
    found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).config
    assert found.decoder_directions == model.get("decoder_directions", "both")
    assert found.share_encoder == model.get("share_encoder", True)


def test_titles_get_twins_if_nothing_is_said(files, tmp_path, caplog):
    with open(files["train_file"]) as file:
        rows = list(file)
    (tmp_path / "titles.jsonl").write_text("".join(rows[:20] * 5))
    titles = {"train_file": str(tmp_path / "titles.jsonl")}
    run(titles, tmp_path / "run", model={"tokenizer_type": "char"}, **NO_VALIDATION)
    assert re.search(r"twin decoders, as \d+% of the titles' tokens are taken", caplog.text)
    config = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run").config
    assert config.decoder_directions == "both" and config.twin_partner == "own"


@pytest.mark.parametrize(
    ("model", "training", "expected"),
    [
        # 24 pairs, 4 of them an update.
        ({}, {"max_steps": 29}, 0.0),
        ({}, {"max_steps": 30}, 0.2),
        ({}, {"max_steps": 15, "gradient_accumulation_steps": 2}, 0.2),
        ({}, {"max_steps": -1, "num_train_epochs": 5}, 0.2),
        ({"dropout": 0.0}, {"max_steps": 30}, 0.0),
        ({"dropout": 0.1}, {"max_steps": 1}, 0.1),
    ],
)
def test_dropout_follows_from_how_often_pairs_are_seen(files, tmp_path, model, training, expected):
    run({"train_file": files["train_file"]}, tmp_path, model=model, **{**NO_VALIDATION, **training})
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path).config.dropout == expected


def test_a_checkpoint_keeps_its_dropout(files, finished, tmp_path):
    again = {"model_name_or_path": str(finished[0])}
    run({"train_file": files["train_file"]}, tmp_path, model=again, **{**NO_VALIDATION, "max_steps": 30})
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path).config.dropout == 0


def test_labels_are_smoothed_unless_told_otherwise_or_begun_otherwise(files, tmp_path, monkeypatch):
    def smoothing(folder: str, model: dict, updates: int = 1) -> float:
        settings = {**NO_VALIDATION, "save_strategy": "steps", "save_steps": 1, "max_steps": updates}
        run({"train_file": files["train_file"]}, tmp_path / folder, model=model, **settings)
        return AutoModelForSeq2SeqLM.from_pretrained(tmp_path / folder).config.label_smoothing

    assert smoothing("new", {}) == 0.1
    assert smoothing("asked", {"label_smoothing": 0.0}) == 0
    assert smoothing("again", {"model_name_or_path": str(tmp_path / "asked")}) == 0
    # A run of before there was such a default.
    monkeypatch.setattr(training_module, "LABEL_SMOOTHING", 0.0)
    assert smoothing("before", {}) == 0
    monkeypatch.undo()
    assert smoothing("before", {}, updates=2) == 0


def test_a_tokenizer_with_more_tokens_makes_the_model_grow(files, finished, tmp_path):
    folder, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    names = {"model_name_or_path": str(folder), "tokenizer_name": str(tmp_path / "tokenizer")}
    old, grown = load_file(folder / "model.safetensors"), load_or_build_model(ModelArguments(**names), tokenizer)
    assert all(torch.equal(tensor, grown.state_dict()[name][: len(tensor)]) for name, tensor in old.items())
    run(files, tmp_path / "run", model=names, max_steps=1)
    trained, tokenizer = (x.from_pretrained(tmp_path / "run") for x in (AutoModelForSeq2SeqLM, AutoTokenizer))
    assert trained.config.vocab_size == trained.lm_head.out_features == len(trained.prior.shift) == 13
    assert tokenizer.convert_tokens_to_ids("new") == 12


def test_a_tokenizer_that_renumbers_the_checkpoints_tokens_is_refused(finished, tmp_path):
    folder, _ = finished
    other = build_char_tokenizer(["xxxabcdefgh"], min_frequency=1)
    names = {"model_name_or_path": str(folder), "tokenizer_name": str(tmp_path)}
    with pytest.raises(ValueError, match=r"has the id 4 in the checkpoint and \d+ in tokenizer_name: .* add_tokens"):
        load_or_build_model(ModelArguments(**names), other)
    # Without the checkpoint's own tokenizer there is nothing to compare with.
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    model = load_or_build_model(ModelArguments(**{**names, "model_name_or_path": str(tmp_path)}), other)
    assert model.config.vocab_size == len(other)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_that_the_processor_cannot_compute_is_refused_at_once(files, tmp_path, name, monkeypatch):
    def fails_under_autocast(rnn, *args):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive descriptor")
        return forward(rnn, *args)

    forward = torch.nn.LSTM.forward
    monkeypatch.setattr(torch.nn.LSTM, "forward", fails_under_autocast)
    with pytest.raises(ValueError, match=f"leave {name} out"):
        run(files, tmp_path, **{name: True})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is more than a CPU")
def test_where_there_is_but_a_cpu_nothing_has_to_be_said_of_it(tmp_path):
    for settings in ({}, {"bf16": True}):
        args = TrainingArguments(output_dir=str(tmp_path), **settings)
        assert args.use_cpu and args.device.type == "cpu"


@pytest.mark.parametrize(
    ("has", "settings", "is_said"),
    [
        ("avx512_bf16", {}, True),
        ("amx_bf16", {}, True),
        ("avx512_vnni", {}, False),
        ("avx512_bf16", {"bf16": True}, False),
    ],
)
def test_half_precision_is_named_where_the_processor_has_it(has, settings, is_said, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(training_module.logger, "warning_once", said.append)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True})
    propose_bfloat16(TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings))
    assert ["--bf16" in line for line in said] == [True] * is_said


def test_missing_training_pairs(files, tmp_path):
    with pytest.raises(ValueError, match="give train_file"):
        run({"validation_file": files["validation_file"]}, tmp_path)


def test_a_curve_needs_two_points(tmp_path):
    entries = [{"step": 1, "eval_loss": 2.0, "eval_rougeL": 10.0, "elapsed_seconds": 60.0}]
    plot_training_curve(entries, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
    second = {"step": 2, "eval_loss": 1.0, "elapsed_seconds": 120.0}
    plot_training_curve([*entries, second], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def no_constant(name):
    raise AssertionError(f"bare {name} in a results file")


@pytest.fixture
def poison(monkeypatch):
    """Makes the loss and the gradients of some updates, counted from 1, NaN; returns the updates there were."""

    def install(bad) -> list[int]:
        step, updates = Seq2SeqTrainer.training_step, []

        def training_step(trainer, model, *args, **kwargs):
            loss = step(trainer, model, *args, **kwargs)
            updates.append(len(updates) + 1)
            if updates[-1] in bad:
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.fill_(float("nan"))
                return loss * float("nan")
            return loss

        monkeypatch.setattr(Seq2SeqTrainer, "training_step", training_step)
        return updates

    return install


def test_a_run_that_diverges_stops_and_keeps_its_sound_checkpoint(files, tmp_path, poison):
    updates = poison(range(4, 99))
    with pytest.raises(ValueError, match="diverged at update 6: 3 updates in a row .* learning_rate=0.002 .* a lower"):
        run(files, tmp_path, max_steps=9)
    assert updates == [1, 2, 3, 4, 5, 6]
    # The updates that were not finite were skipped: what was saved amid them is sound.
    for step in (2, 4):
        weights = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
        text = (tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text()
        log = json.loads(text, parse_constant=no_constant)["log_history"]
    assert [entry["grad_norm"] is None for entry in log if "loss" in entry] == [False, False, False, True]


def test_one_bad_batch_is_left_out(files, tmp_path, poison):
    updates = poison([2])
    metrics = run(files, tmp_path)
    assert updates == [1, 2, 3, 4] and 0 < metrics["eval_loss"] < 10
    json.loads((tmp_path / "trainer_state.json").read_text(), parse_constant=no_constant)


def test_weights_that_are_not_finite_are_never_saved(files, tmp_path):
    with pytest.raises(ValueError, match="learning_rate=1e\\+38 .* use a lower learning_rate"):
        run({"train_file": files["train_file"]}, tmp_path, learning_rate=1e38, weight_decay=1e38)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.e2e
@pytest.mark.parametrize("stopped_at", [40, 60, 140])
def test_a_run_of_many_epochs_equals_itself_resumed_anywhere(long_run, tmp_path, stopped_at):
    pairs, folder = long_run
    shutil.copytree(folder / f"checkpoint-{stopped_at}", tmp_path / f"checkpoint-{stopped_at}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    run(pairs, tmp_path, **LONG)
    whole, resumed = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


LONG = {"max_steps": 160, "per_device_train_batch_size": 16, "save_steps": 20, "save_total_limit": None}


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """400 pairs in batches of 16, 25 updates an epoch, with a checkpoint every 20 updates."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("long")
    generator = torch.Generator().manual_seed(1)
    with open(folder / "train.jsonl", "w") as file:
        for _ in range(400):
            length = int(torch.randint(3, 20, (), generator=generator))
            text = "".join("abcdefgh"[i] for i in torch.randint(0, 8, (length,), generator=generator).tolist())
            file.write(json.dumps({"document": text, "title": text[: length // 3]}) + "\n")
    pairs = {"train_file": str(folder / "train.jsonl")}
    run(pairs, folder / "run", **LONG)
    return pairs, folder / "run"


def test_what_validation_measures_is_known_before(finished):
    _, metrics = finished
    timing = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    assert {*metrics} == {f"eval_{name}" for name in VALIDATION_METRICS} | timing


def test_all_validation_pairs_count_whatever_the_training_drops(files, tmp_path):
    found = [
        run(files, tmp_path / str(drops), per_device_eval_batch_size=5, dataloader_drop_last=drops, max_steps=1,
            save_strategy="no")
        for drops in (False, True)
    ]  # fmt: skip
    assert found[0]["eval_loss"] == found[1]["eval_loss"] > 0


def test_the_same_command_again_leaves_the_finished_twins_as_they_are(files, tmp_path):
    files = {"train_file": files["train_file"]}
    for _ in range(2):
        run(files, tmp_path, eval_strategy="no", own_partner_share=0.5)
        assert BidirSeq2SeqForConditionalGeneration.from_pretrained(tmp_path).config.twin_partner == "own"


def test_settings_of_a_way_to_learn_that_was_not_asked_for_are_told(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(training_arguments.logger, "warning_once", said.append)
    quiet = {"output_dir": str(tmp_path), "use_cpu": True}
    training_arguments.TrainingArguments(**quiet, soft_share=0.5, sequence_metric="per")
    assert [line for line in said if "means nothing" in line] == [
        "sequence_metric='per' means nothing without sequence_objective",
        "soft_share=0.5 means nothing without soft_teachers",
    ]
    said.clear()
    training_arguments.TrainingArguments(**quiet, soft_share=0.5, soft_teachers=["a"])
    training_arguments.TrainingArguments(**quiet, sequence_objective="risk", sequence_metric="per", soft_share=0.8)
    assert not said


def test_what_makes_a_new_tokenizer_is_said_to_change_nothing_of_another(files, finished, tmp_path, caplog):
    run(files, tmp_path, {"model_name_or_path": str(finished[0]), "lowercase": True, "vocab_size": 50}, max_steps=1)
    assert "min_frequency=1, lowercase=True would make a new one" in caplog.text and "vocab_size=50" in caplog.text


def test_a_tokenizer_that_titles_cannot_begin_with_is_named(files, finished, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(finished[0])
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path / "mine")
    with pytest.raises(
        ValueError, match="mine has no bos_token, which titles cannot do without: add them with its add_"
    ):
        run(files, tmp_path / "run", {"tokenizer_name": str(tmp_path / "mine")})


def test_what_best_means_without_titles(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    best = (args.load_best_model_at_end, args.metric_for_best_model, args.greater_is_better)
    assert best == (True, "rougeL", True)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, predict_with_generate=False)
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)
    with pytest.raises(ValueError, match="metric_for_best_model='rougeL' needs titles, .* use metric_for_best_model="):
        TrainingArguments(str(tmp_path), use_cpu=True, predict_with_generate=False, metric_for_best_model="rougeL")
    with pytest.raises(
        ValueError, match="metric_for_best_model='wer' is not measured in validation: use one of loss, "
    ):
        TrainingArguments(str(tmp_path), use_cpu=True, metric_for_best_model="wer")


def test_a_run_without_titles_keeps_the_checkpoint_of_the_least_loss(files, tmp_path):
    metrics = run(files, tmp_path, predict_with_generate=False)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert "eval_rougeL" not in metrics and state["best_metric"] == min(losses) == metrics["eval_loss"]


def test_when_to_validate_and_to_save(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, save_strategy="no")
    assert args.load_best_model_at_end is False
    for more in ({"save_strategy": "steps"}, {"save_strategy": "no", "load_best_model_at_end": True}):
        with pytest.raises(
            ValueError, match=f"eval_strategy='epoch' and save_strategy='{more['save_strategy']}' differ"
        ):
            TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **more)


@pytest.fixture
def begun(finished, tmp_path) -> Path:
    """A copy of the finished run that a test may go on with."""
    return Path(shutil.copytree(finished[0], tmp_path / "begun"))


@pytest.mark.e2e
@pytest.mark.parametrize("objective", ["risk", "beam"])
def test_whole_titles_are_learned_from_a_model_on_and_where_it_was_stopped(objective, files, finished, tmp_path):
    model = {"model_name_or_path": str(finished[0])}
    settings = {"sequence_objective": objective, "sequence_num_beams": 2, "save_total_limit": None}
    run(files, tmp_path / "whole", model, **settings)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "stopped" / "checkpoint-2")
    run(files, tmp_path / "stopped", model, **settings)
    whole, stopped = (
        load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("whole", "stopped")
    )
    before = load_file(finished[0] / "model.safetensors")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert any(not torch.equal(whole[name], before[name]) for name in whole)
    with pytest.raises(ValueError, match=f"sequence_objective was '{objective}' and is None"):
        run(files, tmp_path / "whole", model, max_steps=6)


@pytest.mark.parametrize("directions", ["both", "l2r"])
def test_a_student_of_teachers_and_where_it_was_stopped(files, finished, tmp_path, directions):
    teacher, model = tmp_path / "teacher", {"decoder_directions": directions}
    shutil.copytree(finished[0], teacher)
    settings = {"soft_teachers": [str(finished[0]), str(teacher)], "soft_share": 0.9, "save_total_limit": None}
    run(files, tmp_path / "whole", model, **settings)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "stopped" / "checkpoint-2")
    run(files, tmp_path / "stopped", model, **settings)
    run(files, tmp_path / "without", model, save_total_limit=None)
    whole, stopped, without = (
        load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("whole", "stopped", "without")
    )
    assert whole.keys() == without.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert any(not torch.equal(whole[name], without[name]) for name in whole)
    with pytest.raises(ValueError, match="soft_share was 0.9 and is 0.5"):
        run(files, tmp_path / "whole", model, **{**settings, "soft_share": 0.5})
    with pytest.raises(ValueError, match=r"soft_teachers was \[.*\] and is None"):
        run(files, tmp_path / "whole", model, save_total_limit=None)
    weights = load_file(teacher / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"soft_teachers was \[.*\] and is \[.*\]"):
        run(files, tmp_path / "whole", model, **settings)


def test_teachers_that_cannot_teach(files, finished, tmp_path):
    teacher = str(finished[0])

    def refused(message, model=None, **settings):
        with pytest.raises(ValueError, match=message):
            run(files, tmp_path / "student", model, **{"soft_teachers": [teacher], **settings})
        shutil.rmtree(tmp_path / "student", ignore_errors=True)

    refused("has other words than the student: give the student its tokenizer", {"min_frequency": 24})
    refused("has use_copy=True, and the student use_copy=False: .* make them alike", {"use_copy": False})
    refused("soft_share=0 is the teachers' share of the loss: above 0", soft_share=0.0)
    refused("soft_teachers=.* with r_drop|r_drop=.* with soft_teachers", r_drop=1.0)
    run(files, tmp_path / "left", {"decoder_directions": "l2r"})
    refused("left writes 'l2r' alone, and the student 'both': take twins", soft_teachers=[str(tmp_path / "left")])
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    tiny = BartConfig(vocab_size=12, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, **heads)
    BartForConditionalGeneration(tiny).save_pretrained(tmp_path / "bart")
    refused("is a BartForConditionalGeneration, which has other words", soft_teachers=[str(tmp_path / "bart")])


def test_pairs_that_are_read_twice_and_where_that_was_stopped(files, tmp_path):
    settings = {"r_drop": 5.0, "save_total_limit": None}
    run(files, tmp_path / "whole", {"dropout": 0.3}, **settings)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "stopped" / "checkpoint-2")
    run(files, tmp_path / "stopped", {"dropout": 0.3}, **settings)
    run(files, tmp_path / "without", {"dropout": 0.3}, save_total_limit=None)
    whole, stopped, without = (
        load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("whole", "stopped", "without")
    )
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert any(not torch.equal(whole[name], without[name]) for name in whole)
    with pytest.raises(ValueError, match="r_drop was 5.0 and is 2.0"):
        run(files, tmp_path / "whole", {"dropout": 0.3}, r_drop=2.0)
    with pytest.raises(ValueError, match="r_drop=5 with dropout=0: .* set dropout, to 0.2 perhaps"):
        run(files, tmp_path / "none", {"dropout": 0.0}, r_drop=5.0)
    with pytest.raises(ValueError, match="r_drop=5.0 with sequence_objective='risk': a batch is read twice, or"):
        TrainingArguments(str(tmp_path), use_cpu=True, r_drop=5.0, sequence_objective="risk")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sequence_objective": "risk"}, "sequence_objective='risk' is for a model that writes already"),
        ({"sequence_objective": "best"}, "sequence_objective='best' "),
    ],
)
def test_whole_titles_of_a_model_that_does_not_write_yet_are_refused(settings, message, files, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(files, tmp_path, **settings)


def test_a_finished_run_goes_on_longer(files, begun):
    run(files, begun, max_steps=6, logging_steps=2)
    assert json.loads((begun / "trainer_state.json").read_text())["global_step"] == 6


@pytest.mark.parametrize(
    "model, overrides, message",
    [
        ({}, {"learning_rate": 0.01}, "learning_rate was 0.002 and is 0.01; use another output_dir, or delete"),
        ({}, {"lr_scheduler_type": "linear"}, "lr_scheduler_type was 'warmup_stable_decay' and is 'linear'"),
        ({}, {"gradient_accumulation_steps": 2}, "pairs per update was 4 and is 8"),
        (
            {},
            {"weight_decay": 0.1, "adam_beta1": 0.5},
            "weight_decay was 0.0 and is 0.1, adam_beta1 was 0.9 and is 0.5",
        ),
        ({}, {"optim": "adafactor"}, "optim was 'adamw_torch_fused' and is 'adafactor'"),
        ({}, {"warmup_steps": 2}, "warmup_steps was 0 and is 2"),
        ({}, {"data_seed": 7}, "data_seed was None and is 7"),
        ({}, {"train_sampling_strategy": "random"}, "train_sampling_strategy was 'group_by_length' and is 'random'"),
        ({}, {"max_grad_norm": 0.1}, "max_grad_norm was 1.0 and is 0.1"),
        ({}, {"metric_for_best_model": "bleu"}, "metric_for_best_model was 'rougeL' and is 'bleu'"),
        ({"tokenizer_type": "bpe"}, {}, "tokenizer_type was 'char' and is 'bpe'"),
        ({"lowercase": True, "vocab_size": 99}, {}, "vocab_size was None and is 99, lowercase was False and is True"),
    ],
)
def test_a_folder_of_a_run_with_other_settings_is_refused(files, begun, model, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(files, begun, model=model, **overrides)


def rates(folder: Path) -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["learning_rate"] for entry in log if "learning_rate" in entry]


def test_a_run_of_few_updates_comes_to_its_peak_and_goes_on_with_its_warmup(files, tmp_path):
    settings = {"warmup_steps": None, "eval_strategy": "no", "save_steps": 10}
    run(files, tmp_path, **settings, max_steps=20)
    found = rates(tmp_path)
    assert found[:10] == pytest.approx([0.0002 * update for update in range(10)]) and found[10:16] == [0.002] * 6
    for name in ("checkpoint-20", "model.safetensors"):
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    # Of 40 updates there would be another warmup, and so another rate in the update at which it falls.
    run(files, tmp_path, **settings, max_steps=40)
    assert max(rates(tmp_path)) == 0.002
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["WarmupCallback"]["args"] == {"warmup_steps": 10}
    with pytest.raises(ValueError, match="warmup_steps was None and is 200"):
        run(files, tmp_path, **{**settings, "warmup_steps": 200}, max_steps=40)


def test_a_run_from_before_warmup_was_chosen_goes_on_with_what_it_had(files, tmp_path):
    settings = {"warmup_steps": 200, "eval_strategy": "no"}
    run(files, tmp_path, **settings)
    path = tmp_path / "checkpoint-4" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["WarmupCallback"]
    path.write_text(json.dumps(state))
    run(files, tmp_path, **{**settings, "warmup_steps": None}, max_steps=6)
    assert rates(tmp_path)[-1] == pytest.approx(0.002 * 5 / 200)


def test_early_stopping_asks_for_validation(files, tmp_path):
    with pytest.raises(ValueError, match="early_stopping_patience=3 without validation: give validation_file"):
        run({"train_file": files["train_file"]}, tmp_path, early_stopping_patience=3)
    with pytest.raises(ValueError, match="early_stopping_patience=3 without validation"):
        run(files, tmp_path / "other", early_stopping_patience=3, eval_strategy="no")


def test_a_folder_of_a_run_with_other_pairs_is_refused(files, begun, tmp_path):
    lines = Path(files["train_file"]).read_text().splitlines(keepends=True)
    same, other = tmp_path / "same.jsonl", tmp_path / "other.jsonl"
    same.write_text("".join(lines))
    other.write_text("".join(lines[::-1]))
    with pytest.raises(ValueError, match="fingerprint of the training pairs was '[0-9a-f]{16}' and is"):
        run({**files, "train_file": str(other)}, begun)
    # The best model so far is that on other pairs.
    other.write_text(Path(files["validation_file"]).read_text().replace("a", "b"))
    with pytest.raises(ValueError, match="fingerprint of the validation pairs was '[0-9a-f]{16}' and is"):
        run({**files, "validation_file": str(other)}, begun)
    # The same pairs from another place are the same.
    run({**files, "train_file": str(same)}, begun)


def test_a_run_goes_on_with_its_updates_in_other_parts(files, begun):
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run(files, begun, max_steps=6, logging_steps=2, **parts)
    assert json.loads((begun / "trainer_state.json").read_text())["global_step"] == 6


def test_a_run_of_an_older_version_goes_on(files, begun):
    (begun / "run_settings.json").unlink()
    run(files, begun, learning_rate=0.01, max_steps=5)
    assert json.loads((begun / "trainer_state.json").read_text())["global_step"] == 5
    assert not (begun / "run_settings.json").exists()


def test_a_run_from_before_the_schedule_was_recorded_goes_on_with_what_it_had(files, begun):
    record = begun / "run_settings.json"
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if "scheduler" not in k}))
    with pytest.raises(ValueError, match="lr_scheduler_type was 'cosine' and is 'warmup_stable_decay'"):
        run(files, begun, max_steps=6)
    # One that was told another is told so again; what it did not record is taken on trust.
    for schedule in ("cosine", "linear"):
        run(files, begun, max_steps=6, lr_scheduler_type=schedule)


def test_a_run_from_before_there_was_a_choice_goes_on_as_it_had_to(files, begun):
    record = begun / "run_settings.json"
    settings = json.loads(record.read_text())
    assert settings.pop("share_encoder") and settings.pop("r_drop") == 0
    record.write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match="share_encoder was True and is False, r_drop was 0.0 and is 1.0; use another"
    ):
        run(files, begun, model={"share_encoder": False}, max_steps=6, r_drop=1.0)
    run(files, begun, max_steps=6)
    assert json.loads((begun / "trainer_state.json").read_text())["global_step"] == 6


@pytest.mark.parametrize(
    ("kwargs", "falling"),
    [({}, 2), ({"num_decay_steps": 5, "decay_type": "linear"}, 5), ({"decay_type": "1-sqrt"}, 2)],
)
def test_the_learning_rate_stays_and_then_falls(files, tmp_path, kwargs, falling):
    given = {"learning_rate": 0.01, "warmup_steps": 2, "max_steps": 10, "lr_scheduler_kwargs": kwargs}
    run({"train_file": files["train_file"]}, tmp_path, **given, own_partner_share=0)
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    rates = [line["learning_rate"] for line in log if "learning_rate" in line]
    assert rates[:2] == [0.0, 0.005] and set(rates[2 : 11 - falling]) == {0.01}
    assert len(rates) == 10 and rates[10 - falling :] == sorted(set(rates[10 - falling :]), reverse=True)


@pytest.mark.e2e
def test_a_run_that_diverged_before_its_first_checkpoint_may_be_tried_again(files, tmp_path, poison, monkeypatch):
    poison(range(1, 4))
    with pytest.raises(ValueError, match="diverged at update 3"):
        run(files, tmp_path, save_steps=4, eval_steps=4)
    with pytest.raises(ValueError, match="tokenizer_type was 'char' and is 'bpe'"):
        run(files, tmp_path, model={"tokenizer_type": "bpe"})
    monkeypatch.undo()
    run(files, tmp_path, learning_rate=0.002)
    assert json.loads((tmp_path / "run_settings.json").read_text())["learning_rate"] == 0.002


def same_run(one: Path, two: Path, step: int) -> bool:
    """Whether two runs ended with the same weights, optimizer, schedule and log, but for the times in it."""
    states = [[], []]
    for parts, folder in zip(states, (one, two)):
        parts.append(load_file(folder / "model.safetensors"))
        checkpoint = folder / f"checkpoint-{step}"
        parts.append(load_file(checkpoint / "model.safetensors"))
        optimizer, schedule = (torch.load(checkpoint / f"{name}.pt") for name in ("optimizer", "scheduler"))
        parts.extend([*optimizer["state"].values(), schedule])
    for parts in zip(*states, strict=True):
        assert parts[0].keys() == parts[1].keys()
        for name, value in parts[0].items():
            same = torch.equal(value, parts[1][name]) if torch.is_tensor(value) else value == parts[1][name]
            assert same, name
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (one, two)]
    times = re.compile("elapsed_seconds|runtime|per_second")
    logs = [
        [{k: v for k, v in entry.items() if not times.search(k)} for entry in log if "train_runtime" not in entry]
        for log in logs
    ]
    assert logs[0] == logs[1]
    return True


# 12 updates in epochs of 6, each of two batches; the log is not in step with the saves.
PARTS = {"max_steps": 12, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 4}
PARTS |= {"save_steps": 3, "eval_steps": 3, "save_total_limit": 2}


@pytest.fixture(scope="module")
def in_parts(files, tmp_path_factory) -> Path:
    """A run of 12 updates that nothing interrupted."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("parts")
    run(files, folder, **PARTS)
    return folder


def in_process(*args, **kwargs) -> int:
    """The exit code of a run in a process of its own, so that it may be killed."""
    process = multiprocessing.get_context("fork").Process(target=run, args=args, kwargs=kwargs)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["config.json", "manifest.tmp", "checkpoint-6"])
def test_a_run_killed_inside_a_save_goes_on_to_the_same_end(files, in_parts, tmp_path, name):
    def kill_inside_the_second_save(event, arguments):
        touches = event in ("open", "os.rename") and any(name in str(argument) for argument in arguments[:2])
        if touches and os.getpid() != parent and (tmp_path / "checkpoint-3").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    parent = os.getpid()
    # Nothing takes it away again, but it kills processes that are begun here only, and not later.
    hooks = [kill_inside_the_second_save]
    sys.addaudithook(lambda *args: [hook(*args) for hook in hooks] and None)
    assert in_process(files, tmp_path, **PARTS) == -signal.SIGKILL
    hooks.clear()
    assert [path.name for path in numbered_checkpoints(tmp_path)] == ["checkpoint-3"]
    run(files, tmp_path, **PARTS)
    assert same_run(in_parts, tmp_path, 12) and not (tmp_path / UNFINISHED).exists()


@pytest.mark.e2e
@pytest.mark.parametrize("update, number, code", [(4, signal.SIGTERM, 143), (6, signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_the_run(files, in_parts, tmp_path, monkeypatch, update, number, code):
    # The sixth update is an epoch's last, where a validation and a save are due as well.
    step, batches = Seq2SeqTrainer.training_step, []

    def training_step(trainer, *args, **kwargs):
        batches.append(trainer)
        if len(batches) == 2 * update:
            signal.raise_signal(number)
        return step(trainer, *args, **kwargs)

    before = signal.getsignal(number)
    monkeypatch.setattr(Seq2SeqTrainer, "training_step", training_step)
    with pytest.raises(SystemExit) as ended:
        run(files, tmp_path, **PARTS)
    assert ended.value.code == code and signal.getsignal(number) is before
    assert last_checkpoint(TrainingArguments(str(tmp_path), use_cpu=True)).endswith(f"checkpoint-{update}")
    assert not (tmp_path / "model.safetensors").exists()
    run(files, tmp_path, **PARTS)
    assert len(batches) == 24
    one, two = (load_file(folder / "checkpoint-12" / "model.safetensors") for folder in (in_parts, tmp_path))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("update, validations", [(4, []), (6, [6])])
def test_a_signal_in_the_middle_of_an_epoch_waits_for_no_validation_at_its_end(
    files, tmp_path, monkeypatch, update, validations
):
    batches, step = [], Seq2SeqTrainer.training_step

    def training_step(trainer, *args, **kwargs):
        batches.append(trainer)
        if len(batches) == 2 * update:
            signal.raise_signal(signal.SIGTERM)
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(Seq2SeqTrainer, "training_step", training_step)
    with pytest.raises(SystemExit):
        run(files, tmp_path, **{**PARTS, "eval_strategy": "epoch", "save_strategy": "epoch"})
    state = TrainerState.load_from_json(str(tmp_path / f"checkpoint-{update}" / "trainer_state.json"))
    assert [entry["step"] for entry in state.log_history if "eval_loss" in entry] == validations
    assert [entry["step"] for entry in state.log_history if "loss" in entry] == [4, 6][: update // 2 - 1]


def test_the_last_save_of_a_training_comes_after_its_last_validation(files, tmp_path):
    run(files, tmp_path, **{**PARTS, "max_steps": 8, "eval_strategy": "epoch", "load_best_model_at_end": False})
    state = TrainerState.load_from_json(str(tmp_path / "checkpoint-8" / "trainer_state.json"))
    assert [entry["step"] for entry in state.log_history if "eval_loss" in entry] == [6, 8]


def test_a_second_signal_ends_the_process_at_once(files, tmp_path, monkeypatch):
    step = Seq2SeqTrainer.training_step

    def training_step(*args, **kwargs):
        for _ in range(3):
            # The second one comes too soon to be another's wish.
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.06)
        return step(*args, **kwargs)

    monkeypatch.setattr(Seq2SeqTrainer, "training_step", training_step)
    monkeypatch.setattr("bidir_seq2seq.callbacks.SAME_SIGNAL_SECONDS", 0.1)
    assert in_process(files, tmp_path, **PARTS) == -signal.SIGTERM
    assert numbered_checkpoints(tmp_path) == []


def test_processes_agree_on_when_to_stop():
    class Two:
        """Stands for accelerate with two processes, of which the other has noted nothing."""

        num_processes, device = 2, "cpu"

        def gather(self, noted):
            return torch.cat([noted, torch.zeros_like(noted)])

    callback, args = StopSignalCallback(Two()), TrainingArguments(use_cpu=True)
    callback._note(signal.SIGTERM, None)
    stops = []
    for _ in range(2):
        control = TrainerControl()
        callback.on_step_end(args, TrainerState(epoch=0.5), control)
        stops.append(control.should_training_stop and control.should_save)
    # What was noted before an update's end is known to all at the end of the next.
    assert stops == [False, True] and callback.number == signal.SIGTERM


@pytest.mark.e2e
@pytest.mark.parametrize("call", [1, 8])
def test_a_disk_that_fills_up_inside_a_save_costs_only_what_came_after_the_save_before(
    files, in_parts, tmp_path, monkeypatch, call
):
    write, calls = torch.save, []

    def save_less(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            Path(args[1]).write_bytes(b"PK")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
        return write(*args, **kwargs)

    monkeypatch.setattr(torch, "save", save_less)
    # Four files of each checkpoint are torch's.
    failed, whole = 3 * ((call + 3) // 4), 3 * ((call - 1) // 4)
    stands = f"checkpoint-{whole} is whole" if whole else "there is no checkpoint yet"
    with pytest.raises(OSError, match=f"checkpoint-{failed} could not be saved in .*: no space left .*; {stands}"):
        run(files, tmp_path, **PARTS)
    monkeypatch.undo()
    torch.set_num_threads(1)
    run(files, tmp_path, **PARTS)
    assert same_run(in_parts, tmp_path, 12)


def test_a_folder_that_vanishes_is_not_made_anew(files, tmp_path, monkeypatch):
    step = Seq2SeqTrainer.training_step

    def training_step(trainer, *args, **kwargs):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(Seq2SeqTrainer, "training_step", training_step)
    with pytest.raises(OSError, match="checkpoint-2 could not be saved in .*: the folder is no longer there"):
        run(files, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_ended_makes_no_further_update(files, begun):
    weights = (begun / "model.safetensors").read_bytes()
    run(files, begun)
    assert json.loads((begun / "trainer_state.json").read_text())["global_step"] == 4
    assert (begun / "model.safetensors").read_bytes() == weights


def test_a_run_goes_on_with_patience_that_it_began_without(files, begun):
    run(files, begun, max_steps=6, early_stopping_patience=5)
    state = json.loads((begun / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["PatienceCallback"]["args"]["early_stopping_patience"] == 5


@pytest.mark.parametrize("best", [2, 4])
def test_the_model_that_is_kept_is_validated_once(best, files, tmp_path, monkeypatch):
    looks, before = [], Seq2SeqTrainer.evaluate

    def evaluate(trainer, *args, **kwargs):
        looks.append(trainer.state.global_step)
        metrics = before(trainer, *args, **kwargs)
        # By which the best one is chosen.
        return {**metrics, "eval_loss": 0.0 if trainer.state.global_step == best else 1.0 + len(looks)}

    monkeypatch.setattr(Seq2SeqTrainer, "evaluate", evaluate)
    metrics = run(files, tmp_path, {"decoder_directions": "l2r"}, predict_with_generate=False)
    assert metrics["eval_loss"] >= 0
    assert looks == ([2, 4] if best == 4 else [2, 4, 4])
    # Another process looks again, perhaps at other pairs.
    run(files, tmp_path, {"decoder_directions": "l2r"}, predict_with_generate=False)
    assert len(looks) == (3 if best == 4 else 4)


def test_the_best_model_is_found_after_the_folder_was_moved(files, finished, tmp_path):
    moved = Path(shutil.copytree(finished[0], tmp_path / "moved"))
    best = Path(json.loads((moved / "trainer_state.json").read_text())["best_model_checkpoint"]).name
    assert run(files, moved)["eval_loss"] == finished[1]["eval_loss"]
    found = json.loads((moved / "trainer_state.json").read_text())["best_model_checkpoint"]
    assert found == str(moved / best)


@pytest.mark.e2e
def test_a_best_model_that_was_damaged_since_does_not_become_the_result(files, finished, begun):
    best = Path(json.loads((begun / "trainer_state.json").read_text())["best_model_checkpoint"]).name
    weights = begun / best / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    run(files, begun, max_steps=6)
    load_model_and_tokenizer(begun)


def test_pairs_that_make_the_loss_infinite_are_named(files, tmp_path, monkeypatch):
    forward = BidirSeq2SeqForConditionalGeneration.forward

    @functools.wraps(forward)
    def fails_on_h(model, input_ids=None, **kwargs):
        outputs = forward(model, input_ids=input_ids, **kwargs)
        if model.training and bool((input_ids == h).any()):
            outputs.loss = outputs.loss * float("nan")
        return outputs

    texts = [json.loads(line)["document"] for line in Path(files["train_file"]).read_text().splitlines()]
    h = build_char_tokenizer(texts, min_frequency=1).convert_tokens_to_ids("h")
    monkeypatch.setattr(BidirSeq2SeqForConditionalGeneration, "forward", fails_on_h)
    with pytest.raises(
        ValueError, match="updates in a row .*; of the last pairs not finite by themselves: '"
    ) as raised:
        run(files, tmp_path)
    named = re.findall("'([a-h]+)'", str(raised.value))
    assert named and all("h" in text and text in texts for text in named)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_an_update_left_out_leaves_the_optimizer_as_it_was(files, tmp_path, poison, optim):
    # Every update but the last is poisoned by turns: what is left are two updates.
    poison([1, 3])
    run({"train_file": files["train_file"]}, tmp_path, optim=optim, own_partner_share=0)
    states = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt")["state"].values()
    assert {int(state["step"]) for state in states} == {2}
    assert all(bool(state["exp_avg"].isfinite().all()) for state in states)


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 4), (3, 4), (4, 4), (5, 4), (23, 4), (1003, 8)])
def test_batches_of_like_length_come_in_an_order_that_is_drawn_for_each_epoch(rows, batch_size):
    lengths = torch.randint(1, 400, (rows,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = EpochLengthSampler(lengths, batch_size, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(rows)) and list(sampler) == order
    batches = [order[start : start + batch_size] for start in range(0, rows, batch_size)]
    assert max(lengths[index] for index in batches[0]) == max(lengths)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    padded = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches)
    if rows > 1000:
        assert padded < 1.1 * sum(lengths)
        # The longest text is not what comes first in any other stretch.
        tops = [max(lengths[index] for index in batch) for batch in batches]
        assert sum(one > two for one, two in zip(tops, tops[1:])) < 0.6 * len(tops)
    sampler.epoch = 1
    assert (list(sampler) == order) == (rows <= batch_size)


def test_the_private_methods_that_are_overridden_are_there_and_take_what_is_passed_on():
    parameters = {
        "_get_train_sampler": ["self", "train_dataset"],
        "_run_epoch": ["self", ...],
        "_get_grad_norm": ["self", "model", "grad_norm"],
        "_save_checkpoint": ["self", "model", "trial"],
        "_get_output_dir": ["self", "trial"],
        "_push_from_checkpoint": ["self", "checkpoint_folder"],
        "_load_best_model": ["self"],
        "_get_learning_rate": ["self"],
    }
    for name, expected in parameters.items():
        found = list(inspect.signature(getattr(Seq2SeqTrainer, name)).parameters)
        assert found == expected or (... in expected and found[0] == "self"), name
        assert f"`{name}`" in inspect.getdoc(trainer_module), name
    overridden = {name for name in vars(TitleTrainer) if name.startswith("_") and hasattr(Seq2SeqTrainer, name)}
    assert overridden - set(vars(object)) - {"__module__", "__doc__", "__init__"} <= set(parameters)


@pytest.mark.parametrize(
    ("got", "threads", "gpus", "said"),
    [
        (2.0, 2, 0, False),
        (1.9, 2, 0, False),
        (1.0, 2, 0, True),
        (0.5, 1, 0, False),
        (0.1, 2, 1, False),
        (3.0, 8, 0, True),
    ],
)
def test_threads_that_wait_for_shared_processors_are_told_of_once(monkeypatch, got, threads, gpus, said):
    # Updates of a second each, with another between them, of which the processor gave so many seconds.
    clocks = {"monotonic": 0.0, "process_time": 0.0}
    for name in clocks:
        monkeypatch.setattr(callbacks.time, name, lambda name=name: clocks[name])
    monkeypatch.setattr(callbacks.torch, "get_num_threads", lambda: threads)
    told = []
    monkeypatch.setattr(callbacks.logger, "warning_once", told.append)
    callback = SharedProcessorsCallback(updates=3)
    for _ in range(9):
        callback.on_step_begin(None, None, None)
        clocks["monotonic"] += 1
        clocks["process_time"] += got
        callback.on_step_end(SimpleNamespace(n_gpu=gpus), None, None)
        clocks["monotonic"] += 1
    assert len(told) == said
    assert not said or (f"the {threads} threads" in told[0] and f"{got / threads:.0%}" in told[0])
