"""The folder of a training run: the settings it was begun with, and the checkpoints that it can be gone on from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from .training_arguments import DataArguments, ModelArguments, TrainingArguments

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

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


def run_settings(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments, pairs: Dataset
) -> dict[str, object]:
    """What must stay as it was for a run to be gone on with; how long it is, and what it logs, may change."""
    names = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "seed")
    return {
        **asdict(model_args),
        "max_source_length": data_args.max_source_length,
        "max_target_length": data_args.max_target_length,
        **{name: getattr(training_args, name) for name in names},
        "number of training pairs": len(pairs),
        "fingerprint of the training pairs": fingerprint(pairs),
    }


def fingerprint(pairs: Dataset) -> str:
    """A short hash of the texts in their order, wherever they were read from."""
    digest = hashlib.sha256()
    for start in range(0, len(pairs), 1000):
        batch = pairs[start : start + 1000]
        digest.update(json.dumps([batch["source"], batch["target"]]).encode())
    return digest.hexdigest()[:16]


def keep_run_settings(training_args: TrainingArguments, settings: dict[str, object]) -> None:
    """Writes `settings` into a new run's folder, or compares them with those of the run that is there.

    Raises:
        ValueError: If they differ, naming each difference.
    """
    folder = Path(training_args.output_dir)
    record = folder / "run_settings.json"
    if record.exists():
        before = json.loads(record.read_text(encoding="utf-8"))
        # Through JSON, since that is how the others have come.
        now = json.loads(json.dumps(settings))
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
    unfinished.replace(record)


def last_checkpoint(training_args: TrainingArguments) -> str | None:
    """The newest sound checkpoint of an earlier run; damaged and half-written ones are passed over with a warning."""
    numbers = {}
    for folder in Path(training_args.output_dir).glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        # Somebody's checkpoint-best is theirs.
        if number.isdecimal() and folder.is_dir():
            numbers[folder] = int(number)
    for folder in sorted(numbers, key=numbers.__getitem__, reverse=True):
        damage = checkpoint_damage(folder)
        if damage is None:
            logger.warning_once(f"going on from {folder}")
            return str(folder)
        logger.warning_once(f"{folder} is passed over: {damage}")
    return None


def checkpoint_damage(folder: Path) -> str | None:
    """What keeps a checkpoint from being gone on from, in words; None if nothing does."""
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
    try:
        with safe_open(weights_file, framework="pt") as weights:
            sound = all(bool(weights.get_tensor(name).isfinite().all()) for name in weights.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        return f"its model.safetensors is damaged ({error})"
    return None if sound else "its weights are not finite, its training diverged"


__all__ = ["checkpoint_damage", "fingerprint", "keep_run_settings", "last_checkpoint", "run_settings"]
