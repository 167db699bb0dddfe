import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from safetensors.torch import load_file
from test_training import RUN, TINY
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer

from bidir_seq2seq.commands.distil import DistillationArguments, Sources
from bidir_seq2seq.data import PairEncoder, load_pairs
from bidir_seq2seq.run_folder import fingerprint
from bidir_seq2seq.streaming import Pair, StreamCollator, open_stream
from bidir_seq2seq.tokenization import build_char_tokenizer
from bidir_seq2seq.training import DataArguments, ModelArguments, TrainingArguments, train
from bidir_seq2seq.unknown_words import TitleCollator

# 50 pairs, of which two have an empty side: 12 batches of 4 a pass.
ROWS = [{"document": f"{number:02d}" + "abcdefgh"[: number % 7 + 1], "title": f"{number:02d}"} for number in range(50)]
ROWS[3]["title"] = ROWS[20]["document"] = ""
WHOLE = [Pair(row["document"], row["title"]) for row in ROWS if row["document"] and row["title"]]
STREAM = {**RUN, "max_steps": 20, "save_steps": 4, "save_total_limit": None, "eval_strategy": "no"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def run(pairs, output_dir, data=None, model=None, **overrides) -> Path:
    train(
        ModelArguments(**{**TINY, **(model or {})}),
        DataArguments(**{"train_file": [pairs], "streaming": True, "shuffle_buffer_size": 16, **(data or {})}),
        TrainingArguments(output_dir=str(output_dir), **{**STREAM, "report": False, **overrides}),
    )
    return Path(output_dir)


def same_weights(one: Path, two: Path) -> bool:
    weights = [load_file(folder / "model.safetensors") for folder in (one, two)]
    return weights[0].keys() == weights[1].keys() and all(
        torch.equal(weights[0][n], weights[1][n]) for n in weights[0]
    )


@pytest.mark.parametrize("size", [0, 2, 16, 1000])
def test_each_pass_has_every_whole_pair_once_in_an_order_of_its_own(pairs, size):
    stream = open_stream(pairs, shuffle_buffer_size=size, seed=5)
    first, second = (list(stream.one_pass(number)) for number in (0, 1))
    assert Counter(first) == Counter(second) == Counter(WHOLE)
    assert (first == WHOLE) == (second == first) == (size == 0)
    assert first == list(open_stream(pairs, shuffle_buffer_size=size, seed=5).one_pass(0))
    assert size == 0 or first != list(open_stream(pairs, shuffle_buffer_size=size, seed=6).one_pass(0))
    assert list(itertools.islice(stream, 96)) == first + second


@pytest.mark.parametrize("skipped", [0, 1, 47, 48, 100])
def test_what_is_skipped_leaves_the_rest_as_it_was(pairs, skipped):
    whole, resumed = (open_stream(pairs, shuffle_buffer_size=16) for _ in range(2))
    resumed.skipped = skipped
    expected = list(itertools.islice(whole, 150))
    assert list(itertools.islice(resumed, 150)) == [None] * skipped + expected[skipped:]


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_the_pairs_out_without_overlap(pairs, workers):
    alone = open_stream(pairs, shuffle_buffer_size=16)
    expected = list(itertools.islice(alone, 96))
    shares = []
    for process in (0, 1):
        stream = open_stream(pairs, shuffle_buffer_size=16)
        stream.survey  # noqa: B018
        stream.batch_size = 8
        shard = IterableDatasetShard(stream, batch_size=4, num_processes=2, process_index=process)
        loader = DataLoader(shard, batch_size=4, num_workers=workers, collate_fn=list)
        shares.append(list(itertools.islice(loader, 12)))
    assert [pair for batches in zip(*shares) for batch in batches for pair in batch] == expected


def test_a_stream_tells_pairs_apart_as_a_dataset_does(pairs, tmp_path):
    loaded = load_pairs({"train": pairs}, cache_dir=str(tmp_path))["train"]
    stream = open_stream(pairs)
    assert stream.survey.fingerprint == fingerprint(loaded.iter(1000))
    assert (stream.survey.pairs, stream.survey.whole) == (50, 48)
    assert open_stream(pairs, max_samples=7).survey.pairs == 7


def test_bad_rows_of_a_stream_are_named_or_skipped(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "ab", "title": "a"}\n{"text": \n{"text": "cd", "title": "c"}\n')
    with pytest.raises(ValueError, match=r"train.jsonl: line 2 is not JSON.*--on_bad_rows skip"):
        open_stream(str(path)).survey  # noqa: B018
    stream = open_stream(str(path), on_bad_rows="skip")
    assert list(stream.one_pass(0)) == [Pair("ab", "a"), Pair("cd", "c")]
    assert "2 pairs, 0 with an empty side, 1 rows skipped, the first: " in str(stream.survey)
    assert "line 2 is not JSON" in str(stream.survey)
    path.write_text('{"text": "ab", "title": ""}\n')
    with pytest.raises(ValueError, match="no pair with text on both sides is left: 1 pairs"):
        open_stream(str(path)).survey  # noqa: B018


def test_a_stream_is_encoded_as_a_dataset_is(pairs):
    tokenizer = build_char_tokenizer(["abcdefgh0123"], min_frequency=1)
    encoder = PairEncoder(tokenizer, 6, 3, extend=True)
    collate = StreamCollator(encoder, TitleCollator(tokenizer))
    columns = encoder({"source": [WHOLE[4].source, WHOLE[45].source], "target": [WHOLE[4].target, WHOLE[45].target]})
    names = ("input_ids", "attention_mask", "labels", "extended_input_ids")
    rows = [dict(zip(names, ids)) for ids in zip(*(columns[name] for name in names))]
    from_texts, from_ids = collate([WHOLE[4], WHOLE[45]]), collate(rows)
    assert from_texts.keys() == from_ids.keys() == set(names)
    assert all(torch.equal(from_texts[name], from_ids[name]) for name in names)
    assert int(from_texts["extended_input_ids"].max()) >= len(tokenizer)
    assert collate([None, None]) == {}


def test_a_streamed_run_equals_one_in_memory(pairs, tmp_path):
    # 12 batches are one pass.
    settings = {"max_steps": 12, "train_sampling_strategy": "sequential"}
    streamed = run(pairs, tmp_path / "streamed", {"shuffle_buffer_size": 0}, **settings)
    loaded = run(pairs, tmp_path / "loaded", {"streaming": False}, **settings)
    assert same_weights(streamed, loaded)
    losses = [
        [entry["loss"] for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"][:12]]
        for folder in (streamed, loaded)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 12


@pytest.fixture(scope="module")
def whole_run(pairs, tmp_path_factory) -> Path:
    """20 updates, each of two batches of 4 pairs: three passes and a third."""
    torch.set_num_threads(1)
    return run(pairs, tmp_path_factory.mktemp("whole"), **IN_PARTS)


IN_PARTS = {"gradient_accumulation_steps": 2}


@pytest.mark.e2e
@pytest.mark.parametrize("update, workers", [(5, 0), (11, 0), (14, 2), (19, 2)])
def test_a_streamed_run_that_was_killed_goes_on_to_the_same_end(
    pairs, whole_run, tmp_path, monkeypatch, update, workers
):
    step, batches = Seq2SeqTrainer.training_step, []

    def training_step(*args, **kwargs):
        batches.append(args)
        if len(batches) == 2 * update:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **kwargs)

    monkeypatch.setattr(Seq2SeqTrainer, "training_step", training_step)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=run, args=(pairs, tmp_path), kwargs=IN_PARTS)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.setattr(Seq2SeqTrainer, "training_step", step)
    before = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert before == {f"checkpoint-{number}" for number in range(4, update, 4)}
    run(pairs, tmp_path, dataloader_num_workers=workers, **IN_PARTS)
    assert same_weights(whole_run, tmp_path)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_streamed_run_that_has_made_its_updates_ends_when_it_is_started_again(pairs, whole_run, tmp_path, is_there):
    folder = Path(shutil.copytree(whole_run, tmp_path / "again"))
    if not is_there:
        # It was killed between its last checkpoint and the model.
        (folder / "model.safetensors").unlink()
    run(pairs, folder, **IN_PARTS)
    assert same_weights(whole_run, folder)


def test_what_a_resumed_run_has_been_trained_on_is_not_encoded_again(pairs, whole_run, tmp_path, monkeypatch):
    encode, texts = PairEncoder.__call__, []

    def note(encoder, batch, *args):
        texts.extend(batch["source"])
        return encode(encoder, batch, *args)

    shutil.copytree(whole_run / "checkpoint-16", tmp_path / "checkpoint-16")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole_run / name, tmp_path)
    monkeypatch.setattr(PairEncoder, "__call__", note)
    run(pairs, tmp_path, **IN_PARTS)
    # Four updates of 8 pairs, and the batch that accelerate reads ahead.
    assert len(texts) == 4 * 8 + 4


def test_a_streamed_run_with_other_pairs_or_another_buffer_is_refused(pairs, whole_run, tmp_path):
    folder = shutil.copytree(whole_run, tmp_path / "copy")
    with pytest.raises(ValueError, match="shuffle_buffer_size was 16 and is 17"):
        run(pairs, folder, {"shuffle_buffer_size": 17}, **IN_PARTS)
    with pytest.raises(ValueError, match="streaming was True and is False"):
        run(pairs, folder, {"streaming": False}, **IN_PARTS)
    with pytest.raises(ValueError, match="fingerprint of the training pairs was"):
        run(pairs, folder, {"max_train_samples": 49}, **IN_PARTS)


def test_without_epochs_a_stream_validates_and_saves_by_updates(pairs, tmp_path):
    by_default = {"eval_strategy": "epoch", "save_strategy": "epoch", "eval_steps": None, "max_steps": 4}
    folder = run(pairs, tmp_path, {"validation_file": [pairs], "max_eval_samples": 4}, save_steps=2, **{**by_default})
    state = json.loads((folder / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_loss" in entry][:2] == [2, 4]
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}


@pytest.mark.parametrize(
    "data, overrides, message",
    [
        ({}, {"max_steps": -1}, "streaming=True with max_steps=-1: .* say with max_steps how many updates"),
        (
            {"train_file": None, "dataset_name": "some/name"},
            {},
            "dataset_name='some/name': name the files with train_",
        ),
        ({}, {"auto_find_batch_size": True}, "could not be resumed: leave the latter out"),
        ({}, {"ignore_data_skip": True}, "passes over what was trained on without encoding it"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(pairs, tmp_path, data, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(pairs, tmp_path, data, **overrides)
    assert not (tmp_path / "tokenizer.json").exists()


def test_distil_does_not_stream(pairs, tmp_path):
    with pytest.raises(ValueError, match="streaming=True is for train"):
        Sources(DistillationArguments(teacher_name_or_path="x"), DataArguments(train_file=[pairs], streaming=True))


@pytest.mark.slow
def test_two_processes_train_on_a_stream_as_one_does(pairs, tmp_path):
    states = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        settings = {**TINY, **STREAM, "train_file": [pairs], "streaming": True, "shuffle_buffer_size": 16}
        settings |= {"twin_dropout": 0, "output_dir": str(folder), "per_device_train_batch_size": 4 // processes}
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
        command = [sys.executable, "-m", *launcher, "bidir_seq2seq", "train", str(tmp_path / "settings.json")]
        source = str(Path(__file__).parents[1] / "src")
        environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL)
        states.append(json.loads((folder / "trainer_state.json").read_text()))
    losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in states]
    assert len(losses[0]) == 20 and losses[0] == pytest.approx(losses[1], rel=1e-5)
