"""The folder of a training run: who writes in it, the settings it was begun with, and the checkpoints in it.

A checkpoint is whole or not there. It is written in the folder `unfinished`, recorded in a manifest, waited for until
the disk has it, and renamed; only then older ones are deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers.utils import logging

from .loading import weights_damage
from .manifest import MANIFEST_NAME, differences, flush, write_manifest
from .title_file import describe_model
from .training_arguments import WARMUP, DataArguments, ModelArguments, TrainingArguments

logger = logging.get_logger(__name__)

# No loader and no Trainer takes this name for a checkpoint.
UNFINISHED = "unfinished"
# Processes that read data notice only after seconds that the one that began them was killed, and still hold its lock.
LOCK_SECONDS = 10.0

TOKENIZER_SETTINGS = (
    "model_name_or_path",
    "tokenizer_name",
    "tokenizer_type",
    "vocab_size",
    "min_frequency",
    "lowercase",
    "max_source_length",
    "fingerprint of the training pairs",
)

# What runs had from before there was a choice, which is why they have no record of it.
ONLY_CHOICE_BEFORE = {"share_encoder": True, "r_drop": 0.0, "soft_teachers": None}
# What runs without a record of it had if nothing was said.
SCHEDULE_BEFORE = "cosine"


def run_settings(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    num_pairs: int,
    pairs_fingerprint: str,
    validation_fingerprint: str | None = None,
) -> dict[str, object]:
    """What must stay as it was for a run to be gone on with; how long it is, and what it logs, may change.

    Args:
        model_args, data_args, training_args: The run's.
        num_pairs, pairs_fingerprint: Of its training pairs.
        validation_fingerprint: Of its validation pairs. Default: there are none.
    """
    names = ["learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"]
    names += ["seed", "own_partner_share", "r_drop", "sequence_objective"]
    names += ["encoder_learning_rate", "freeze_encoder"]
    names += ["optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"]
    names += ["data_seed", "train_sampling_strategy", "dataloader_drop_last", "bf16", "fp16"]
    if training_args.soft_teachers is not None:
        names.append("soft_share")
    if training_args.sequence_objective is not None:
        names += [field.name for field in fields(training_args) if field.name.startswith("sequence_")]
    best = {}
    if training_args.load_best_model_at_end and validation_fingerprint is not None:
        # A score of other pairs, or of another kind, would be taken for a better or a worse one.
        names.append("metric_for_best_model")
        best["fingerprint of the validation pairs"] = validation_fingerprint
    return {
        **asdict(model_args),
        **best,
        "max_source_length": data_args.max_source_length,
        "max_target_length": data_args.max_target_length,
        **{name: getattr(training_args, name) for name in names},
        # With what is in their folders.
        "soft_teachers": [describe_model(name) for name in training_args.soft_teachers or ()] or None,
        "warmup_steps": None if training_args.chooses_warmup else training_args.warmup_steps,
        "pairs per update": pairs_per_update(training_args),
        "streaming": data_args.streaming,
        "shuffle_buffer_size": data_args.shuffle_buffer_size if data_args.streaming else None,
        "number of training pairs": num_pairs,
        "fingerprint of the training pairs": pairs_fingerprint,
    }


def pairs_per_update(args: TrainingArguments) -> int:
    """However they are divided into processes and steps."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def fingerprint(batches: Iterable[dict[str, list]]) -> str:
    """A short hash of the texts in their order, wherever they were read from.

    Args:
        batches: Columns `source` and `target`, and what else is kept of each pair, 1,000 pairs at a time
            (`pairs.iter(1000)`).
    """
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(json.dumps(list(batch.values())).encode())
    return digest.hexdigest()[:16]


def keep_run_settings(training_args: TrainingArguments, settings: dict[str, object]) -> None:
    """Writes `settings` into a new run's folder, or compares them with those of the run that is there.

    Raises:
        ValueError: If they differ, naming each difference.
    """
    folder = Path(training_args.output_dir)
    record = folder / "run_settings.json"
    if record.exists():
        before = ONLY_CHOICE_BEFORE | json.loads(record.read_text(encoding="utf-8"))
        # Through JSON, since that is how the others have come.
        now = json.loads(json.dumps(settings))
        if now["lr_scheduler_type"] == type(training_args).lr_scheduler_type:
            # What is said now was said then, too; but the default has changed.
            before.setdefault("lr_scheduler_type", SCHEDULE_BEFORE)
        if now["warmup_steps"] is None and before.get("warmup_steps") == WARMUP:
            # The default before.
            before["warmup_steps"] = None
        trained = (folder / "model.safetensors").exists() or any(folder.glob("checkpoint-*"))
        # Before there is a checkpoint, only the tokenizer is kept.
        binding = now if trained else TOKENIZER_SETTINGS
        changed = [name for name in binding if name in before and before[name] != now[name]]
        if changed:
            raise ValueError(
                f"{folder} holds a run with other settings: "
                + ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in changed)
                + "; use another output_dir, or delete this one"
            )
        if trained:
            return
    # Nobody knows the settings of a run that an older version began.
    began = not record.exists() and ((folder / "tokenizer.json").exists() or any(folder.glob("checkpoint-*")))
    if began or not training_args.should_save:
        return
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = record.with_suffix(".tmp")
    unfinished.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    flush(unfinished)
    unfinished.replace(record)


@contextmanager
def run_lock(training_args: TrainingArguments, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Keeps other runs out of `output_dir`, and removes what a killed one left unfinished there.

    The lock is the operating system's: it ends with the process, however that ends. Only the process that writes the
    checkpoints takes it.

    Args:
        training_args: Those of the run.
        seconds: How long to wait for a run that is just ending.

    Raises:
        ValueError: If another run holds it, naming its process; or if the folder cannot be written to.
    """
    if not training_args.should_save:
        yield
        return
    folder = Path(training_args.output_dir)
    lock, owner = FileLock(folder / "run.lock", timeout=seconds), folder / "run.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        owner.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}) + "\n", encoding="utf-8")
    except Timeout:
        raise ValueError(
            f"output_dir={str(folder)!r}: {_owner(owner)} is training in this folder; wait for it or end it, or use "
            "another output_dir"
        ) from None
    except NotImplementedError:
        logger.warning_once(f"the file system of {folder} has no locks: take care that no other run writes there")
    except OSError as error:
        raise ValueError(f"output_dir={str(folder)!r} cannot be written to: {error}") from None
    try:
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _owner(record: Path) -> str:
    try:
        owner = json.loads(record.read_text(encoding="utf-8"))
        return f"process {owner['process']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def told_in_a_line(folder: Path, what: str) -> Iterator[None]:
    """Says in one line why something could not be saved, and what still stands; the libraries' own words do not.

    Raises:
        OSError: Instead of whatever a full, read-only or vanished folder has made a library raise.
    """
    try:
        yield
    except Exception as error:
        if not _is_storage_fault(error):
            raise
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        newest = next(iter(numbered_checkpoints(folder)), None)
        stands = (
            f"{newest.name} is whole, and the same command goes on from it" if newest else "there is no checkpoint yet"
        )
        raise OSError(f"{what} could not be saved in {folder}: {_storage_state(folder, error)}; {stands}") from None


def _is_storage_fault(error: Exception) -> bool:
    # torch's writer raises RuntimeError, tokenizers' bare Exceptions.
    words = ("os error", "inline_container", "iostream error", "PytorchStreamWriter", "Parent directory")
    return isinstance(error, OSError | SafetensorError) or any(word in str(error) for word in words)


def _storage_state(folder: Path, error: Exception) -> str:
    if not folder.is_dir():
        return "the folder is no longer there"
    if not os.access(folder, os.W_OK):
        return "the folder is read-only"
    words = str(error).strip().splitlines()[0]
    if any(word in words for word in ("inline_container", "iostream error", "No space")):
        words = "no space left on the disk"
    return f"{words} ({shutil.disk_usage(folder).free / 1e6:,.1f} MB are free)"


def publish_checkpoint(unfinished: Path, folder: Path) -> None:
    """Records a checkpoint's files and moves it, whole, to where it is looked for.

    Args:
        unfinished: The folder that it was written in.
        folder: Where it goes; a damaged one of that name gives way.

    Raises:
        OSError: If the disk fails.
    """
    for path in unfinished.rglob("*"):
        if path.is_dir():
            flush(path)
    write_manifest(unfinished)
    if folder.exists():
        folder.rename(unfinished.with_name(f"old-{folder.name}"))
    unfinished.rename(folder)
    flush(folder.parent)
    shutil.rmtree(unfinished.parent, ignore_errors=True)


def publish_model(unfinished: Path, folder: Path) -> None:
    """Moves a finished model's files into the run's folder: the weights after all others, and the manifest last.

    What lies there from an earlier end of the run keeps its manifest meanwhile, so that a mixture is noticed.

    Args:
        unfinished: The folder that they were written in.
        folder: Where they go.

    Raises:
        OSError: If the disk fails.
    """
    # Results may be edited, and make no other model.
    results = ("trainer_state.json", "eval_results.json", "training_curve.png")
    write_manifest(unfinished, [path.name for path in unfinished.iterdir() if path.name not in results])
    for path in sorted(unfinished.iterdir(), key=lambda path: (path.name == MANIFEST_NAME, _holds_weights(path))):
        path.replace(folder / path.name)
    flush(folder)
    shutil.rmtree(unfinished, ignore_errors=True)


def _holds_weights(path: Path) -> bool:
    return path.suffix == ".safetensors"


def numbered_checkpoints(folder: str | Path) -> list[Path]:
    """The folders named checkpoint-NUMBER, the newest first; somebody's checkpoint-best is theirs."""
    numbers = {}
    for path in Path(folder).glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdecimal() and path.is_dir():
            numbers[path] = int(number)
    return sorted(numbers, key=numbers.__getitem__, reverse=True)


def remove_old_checkpoints(newest: Path, limit: int | None, protected: Collection[Path] = ()) -> None:
    """Deletes the oldest of a run's checkpoints.

    Args:
        newest: The one just published; later ones, which it was not gone on from, are left alone.
        limit: How many may stay; `None` or 0: all.
        protected: Those that stay beside the newest.
    """
    if not limit or limit < 0:
        return
    checkpoints = numbered_checkpoints(newest.parent)
    checkpoints = checkpoints[checkpoints.index(newest) :]
    for path in checkpoints[:0:-1]:
        if len(checkpoints) <= limit:
            return
        if path not in protected:
            checkpoints.remove(path)
            shutil.rmtree(path, ignore_errors=True)


def checkpoint_to_resume(training_args: TrainingArguments) -> str | None:
    """The checkpoint that `resume_from_checkpoint` names, or else the newest sound one; None if there is neither.

    Raises:
        ValueError: If the named one is damaged or not there.
    """
    named = training_args.resume_from_checkpoint
    if not named or str(named).lower() in ("true", "false"):
        return last_checkpoint(training_args)
    damage = checkpoint_damage(Path(named))
    if damage:
        raise ValueError(
            f"resume_from_checkpoint={str(named)!r}: {damage}; leave it out to go on from the newest sound one"
        )
    return str(named)


def last_checkpoint(training_args: TrainingArguments) -> str | None:
    """The newest sound checkpoint of an earlier run; damaged and half-written ones are passed over with a warning."""
    for folder in numbered_checkpoints(training_args.output_dir):
        damage = checkpoint_damage(folder)
        if damage is None:
            logger.warning_once(f"going on from {folder}")
            processes = len(list(folder.glob("rng_state*.pth")))
            if processes not in (0, training_args.world_size):
                logger.warning_once(
                    f"it was saved by {processes} processes and there are {training_args.world_size}: the pairs go on "
                    "in their order, but what is drawn at random will differ from the run left alone"
                )
            return str(folder)
        logger.warning_once(f"{folder} is passed over: {damage}")
    return None


def checkpoint_damage(folder: Path) -> str | None:
    """What keeps a checkpoint from being gone on from, in words; None if nothing does.

    One without a manifest is of an older version, or another Trainer's.
    """
    changed = differences(folder)
    if changed:
        return "; ".join(f"{name} {words}" for name, words in changed.items())
    # The Trainer writes this file last.
    state_file, weights_file = folder / "trainer_state.json", folder / "model.safetensors"
    if not state_file.exists():
        return "it is incomplete, without trainer_state.json"
    try:
        if not isinstance(json.loads(state_file.read_text(encoding="utf-8")), dict):
            return "its trainer_state.json holds no settings"
    except ValueError as error:
        return f"its trainer_state.json is damaged ({error})"
    if not weights_file.exists():
        # Sharded training has files of other names.
        return None if any(folder.glob("*model*")) else "it has no weights"
    damage = weights_damage(weights_file, look_for_nan=True)
    return damage and f"its model.safetensors {damage}"


__all__ = [
    "LOCK_SECONDS",
    "UNFINISHED",
    "checkpoint_damage",
    "checkpoint_to_resume",
    "fingerprint",
    "keep_run_settings",
    "last_checkpoint",
    "numbered_checkpoints",
    "pairs_per_update",
    "publish_checkpoint",
    "publish_model",
    "remove_old_checkpoints",
    "run_lock",
    "run_settings",
    "told_in_a_line",
]
