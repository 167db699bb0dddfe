import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, Seq2SeqTrainer

from bidir_seq2seq.run_folder import last_checkpoint
from bidir_seq2seq.tokenization import build_char_tokenizer
from bidir_seq2seq.training import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    load_or_build_model,
    plot_training_curve,
    train,
)

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


def test_two_processes_train_the_model_that_one_does(files, tmp_path):
    # Without twin dropout nothing is random but the order of the pairs, which both share.
    flags = {
        **TINY,
        **files,
        **RUN,
        "twin_dropout": 0,
        "train_sampling_strategy": "random",
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
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    rouge = [
        [e["eval_rougeL"] for e in state["log_history"] if "eval_rougeL" in e] for state in (one_state, two_state)
    ]
    assert rouge[0] == pytest.approx(rouge[1], abs=1e-6)


def test_the_trainers_own_label_smoothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use label_smoothing, which smooths both"):
        TrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.1, use_cpu=True)


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


def test_missing_training_pairs(files, tmp_path):
    with pytest.raises(ValueError, match="give train_file"):
        run({"validation_file": files["validation_file"]}, tmp_path)


def test_a_curve_needs_two_points(tmp_path):
    entries = [{"eval_loss": 2.0, "eval_rougeL": 10.0, "elapsed_seconds": 60.0}]
    plot_training_curve(entries, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
    plot_training_curve([*entries, {"eval_loss": 1.0, "elapsed_seconds": 120.0}], tmp_path / "curve.png")
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
                    parameter.grad.fill_(float("nan"))
                return loss * float("nan")
            return loss

        monkeypatch.setattr(Seq2SeqTrainer, "training_step", training_step)
        return updates

    return install


def test_a_run_that_diverges_stops_and_keeps_its_sound_checkpoint(files, tmp_path, poison):
    updates = poison(range(4, 99))
    with pytest.raises(ValueError, match="diverged at update 6: 3 updates in a row .* learning_rate=0.001 .* a lower"):
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
            file.write(json.dumps({"document": text, "title": text[:3]}) + "\n")
    pairs = {"train_file": str(folder / "train.jsonl")}
    run(pairs, folder / "run", **LONG)
    return pairs, folder / "run"


def test_what_best_means_without_titles(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    best = (args.load_best_model_at_end, args.metric_for_best_model, args.greater_is_better)
    assert best == (True, "rougeL", True)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, predict_with_generate=False)
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)
    with pytest.raises(ValueError, match="metric_for_best_model='rougeL' needs titles, .* use metric_for_best_model="):
        TrainingArguments(str(tmp_path), use_cpu=True, predict_with_generate=False, metric_for_best_model="rougeL")


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


def test_a_finished_run_goes_on_longer(files, begun):
    run(files, begun, max_steps=6, logging_steps=2)
    assert json.loads((begun / "trainer_state.json").read_text())["global_step"] == 6


@pytest.mark.parametrize(
    "model, overrides, message",
    [
        ({}, {"learning_rate": 0.01}, "learning_rate was 0.001 and is 0.01; use another output_dir, or delete"),
        ({"tokenizer_type": "bpe"}, {}, "tokenizer_type was 'char' and is 'bpe'"),
        ({"lowercase": True, "vocab_size": 99}, {}, "vocab_size was 8000 and is 99, lowercase was False and is True"),
    ],
)
def test_a_folder_of_a_run_with_other_settings_is_refused(files, begun, model, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(files, begun, model=model, **overrides)


def test_a_folder_of_a_run_with_other_pairs_is_refused(files, begun, tmp_path):
    lines = Path(files["train_file"]).read_text().splitlines(keepends=True)
    same, other = tmp_path / "same.jsonl", tmp_path / "other.jsonl"
    same.write_text("".join(lines))
    other.write_text("".join(lines[::-1]))
    with pytest.raises(ValueError, match="fingerprint of the training pairs was '[0-9a-f]{16}' and is"):
        run({**files, "train_file": str(other)}, begun)
    # The same pairs from another place are the same.
    run({**files, "train_file": str(same)}, begun)


def test_a_run_of_an_older_version_goes_on(files, begun):
    (begun / "run_settings.json").unlink()
    run(files, begun, learning_rate=0.01, max_steps=5)
    assert json.loads((begun / "trainer_state.json").read_text())["global_step"] == 5
    assert not (begun / "run_settings.json").exists()


def test_a_run_that_diverged_before_its_first_checkpoint_may_be_tried_again(files, tmp_path, poison, monkeypatch):
    poison(range(1, 4))
    with pytest.raises(ValueError, match="diverged at update 3"):
        run(files, tmp_path, save_steps=4, eval_steps=4)
    with pytest.raises(ValueError, match="tokenizer_type was 'char' and is 'bpe'"):
        run(files, tmp_path, model={"tokenizer_type": "bpe"})
    monkeypatch.undo()
    run(files, tmp_path, learning_rate=0.002)
    assert json.loads((tmp_path / "run_settings.json").read_text())["learning_rate"] == 0.002
