import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file

from bidir_seq2seq import run_folder
from bidir_seq2seq.manifest import differences
from bidir_seq2seq.run_folder import (
    UNFINISHED,
    checkpoint_damage,
    checkpoint_to_resume,
    last_checkpoint,
    numbered_checkpoints,
    publish_checkpoint,
    publish_model,
    remove_old_checkpoints,
    run_lock,
    told_in_a_line,
)
from bidir_seq2seq.training import TrainingArguments


@pytest.fixture
def args(tmp_path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)


def write_checkpoint(folder: Path, content: float = 1.0) -> None:
    folder.mkdir(parents=True)
    save_file({"weight": torch.full((300,), content)}, folder / "model.safetensors")
    (folder / "optimizer.pt").write_bytes(bytes(1000))
    (folder / "trainer_state.json").write_text("{}")


def published(run: Path, step: int, content: float = 1.0) -> Path:
    write_checkpoint(run / UNFINISHED / f"checkpoint-{step}", content)
    publish_checkpoint(run / UNFINISHED / f"checkpoint-{step}", run / f"checkpoint-{step}")
    return run / f"checkpoint-{step}"


def hold(args: TrainingArguments, seconds: float) -> None:
    with run_lock(args, 0):
        (Path(args.output_dir) / "holds").touch()
        time.sleep(seconds)


@pytest.fixture
def other_run(args):
    """A process that is training in the folder."""
    process = multiprocessing.get_context("fork").Process(target=hold, args=(args, 60))
    process.start()
    while not (Path(args.output_dir) / "holds").exists():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_a_second_run_is_kept_out_and_told_by_whom(args, other_run):
    with pytest.raises(ValueError, match=rf"run': process {other_run.pid} on .* is training in this folder; wait for"):
        hold(args, 0)


def test_a_killed_run_leaves_no_lock_and_no_unfinished_files(args, other_run):
    write_checkpoint(Path(args.output_dir) / UNFINISHED / "checkpoint-5")
    os.kill(other_run.pid, signal.SIGKILL)
    other_run.join()
    with run_lock(args, 0):
        assert not (Path(args.output_dir) / UNFINISHED).exists()
        assert json.loads((Path(args.output_dir) / "run.json").read_text())["process"] == os.getpid()
    assert not (Path(args.output_dir) / "run.json").exists()


def test_the_lock_is_waited_for_while_a_run_is_just_ending(args):
    Path(args.output_dir).mkdir()
    lock = FileLock(Path(args.output_dir) / "run.lock")
    lock.acquire()
    with pytest.raises(ValueError, match="another process is training"), run_lock(args, 0.1):
        pass
    lock.release()
    with run_lock(args, 0.1):
        pass


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_computed(args, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match="output_dir='.*run' cannot be written to: "), run_lock(args):
        pass


def test_a_published_checkpoint_is_whole_and_replaces_a_damaged_one(args, tmp_path):
    run = tmp_path / "run"
    write_checkpoint(run / "checkpoint-5", content=2.0)
    folder = published(run, 5)
    assert checkpoint_damage(folder) is None and differences(folder) == {}
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-5"]
    assert last_checkpoint(args) == str(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_any_damage_to_a_checkpoint_is_named_and_the_one_before_is_taken(args, tmp_path, name, damage):
    before, folder = (published(tmp_path / "run", step) for step in (5, 10))
    content = (folder / name).read_bytes()
    if damage == "remove":
        (folder / name).unlink()
    else:
        # The last byte is a number, a zero or a brace: nothing but the checksum could tell.
        changed = content[:-1] + bytes([content[-1] ^ 1])
        (folder / name).write_bytes(content[:-1] if damage == "cut" else changed)
    assert checkpoint_damage(folder).startswith(name)
    assert last_checkpoint(args) == str(before)


def test_a_checkpoint_asked_for_by_name_must_be_sound(args, tmp_path):
    old, new = (published(tmp_path / "run", step) for step in (5, 10))
    for said in (None, "", "True", True):
        args.resume_from_checkpoint = said
        assert checkpoint_to_resume(args) == str(new)
    args.resume_from_checkpoint = str(old)
    assert checkpoint_to_resume(args) == str(old)
    (old / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="resume_from_checkpoint='.*-5': optimizer.pt is missing; leave it out to go"):
        checkpoint_to_resume(args)
    args.resume_from_checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere': it is incomplete"):
        checkpoint_to_resume(args)


def test_another_number_of_processes_is_told(args, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(run_folder.logger, "warning_once", said.append)
    folder = published(tmp_path / "run", 5)
    (folder / "rng_state.pth").touch()
    assert last_checkpoint(args) == str(folder) and len(said) == 1
    (folder / "rng_state.pth").unlink()
    for process in range(3):
        (folder / f"rng_state_{process}.pth").touch()
    assert last_checkpoint(args) == str(folder) and "saved by 3 processes and there are 1" in said[-1]


def test_what_is_being_written_is_no_checkpoint(args, tmp_path):
    write_checkpoint(tmp_path / "run" / UNFINISHED / "checkpoint-5")
    assert last_checkpoint(args) is None and numbered_checkpoints(args.output_dir) == []


@pytest.mark.parametrize(
    "limit, best, left",
    [
        (None, None, [3, 6, 9, 12]),
        (0, None, [3, 6, 9, 12]),
        (2, None, [6, 9, 12]),
        (1, None, [9, 12]),
        (2, 3, [3, 9, 12]),
        (1, 3, [3, 9, 12]),
        (5, None, [3, 6, 9, 12]),
    ],
)
def test_old_checkpoints_go_but_neither_the_best_nor_anybody_elses(tmp_path, limit, best, left):
    for step in ("3", "6", "9", "12", "best", "6-copy"):
        (tmp_path / f"checkpoint-{step}").mkdir()
    # The newest is the ninth; the twelfth is of another time, and may have been passed over.
    remove_old_checkpoints(tmp_path / "checkpoint-9", limit, [tmp_path / f"checkpoint-{best}"])
    assert sorted(int(path.name.removeprefix("checkpoint-")) for path in numbered_checkpoints(tmp_path)) == left
    assert (tmp_path / "checkpoint-best").exists() and (tmp_path / "checkpoint-6-copy").exists()


def test_a_mixture_of_two_saves_is_noticed(tmp_path):
    for content in (1.0, 2.0):
        write_checkpoint(tmp_path / UNFINISHED, content)
        if content == 1.0:
            publish_model(tmp_path / UNFINISHED, tmp_path)
    assert differences(tmp_path) == {}
    (tmp_path / UNFINISHED / "model.safetensors").replace(tmp_path / "model.safetensors")
    assert list(differences(tmp_path)) == ["model.safetensors"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        RuntimeError("basic_ios::clear: iostream error"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        # As tokenizers raises it.
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_in_one_line_whoever_notices_it(tmp_path, error):
    published(tmp_path, 5)
    (tmp_path / UNFINISHED).mkdir()
    with pytest.raises(OSError) as raised, told_in_a_line(tmp_path, "checkpoint-10"):
        raise error
    said = str(raised.value)
    assert said.startswith(f"checkpoint-10 could not be saved in {tmp_path}: no space left on the disk (")
    assert said.endswith("MB are free); checkpoint-5 is whole, and the same command goes on from it")
    assert "\n" not in said and raised.value.__suppress_context__
    assert not (tmp_path / UNFINISHED).exists()


def test_a_folder_that_has_vanished_is_told_of(tmp_path):
    message = "could not be saved in .*gone: the folder is no longer there; there is no checkpoint yet"
    with pytest.raises(OSError, match=message), told_in_a_line(tmp_path / "gone", "checkpoint-10"):
        (tmp_path / "gone" / "file").write_text("")


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="size mismatch"), told_in_a_line(tmp_path, "checkpoint-10"):
        raise RuntimeError("size mismatch")
