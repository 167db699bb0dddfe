"""Models that a study trains itself, one for each seed: what differs between them is what chance does."""

import json
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser

from bidir_seq2seq.training import DataArguments, ModelArguments, TrainingArguments, train


def train_seed(settings_file: str, folder: Path, seed: int, **changes) -> dict[str, float]:
    """Trains one model without looking at it meanwhile, unless the folder has it already.

    Args:
        settings_file: As for `scripts/train.py`.
        folder: Where the model goes.
        seed: Of its weights and its batches.
        changes: To the settings.

    Returns:
        The metrics of the trained model.

    Raises:
        ValueError: If the folder has a model of other settings.
    """
    settings = seed_settings(settings_file, folder, seed, **changes)
    record = folder / "trained_with.json"
    if record.exists():
        trained = json.loads(record.read_text(encoding="utf-8"))
        if trained["settings"] != settings:
            before = trained["settings"]
            raise ValueError(f"{folder} has a model of other settings, {before}: choose another output_dir")
        return trained["metrics"]
    metrics = train(*parsed(settings))
    record.write_text(json.dumps({"settings": settings, "metrics": metrics}, indent=2), encoding="utf-8")
    return metrics


def seed_settings(settings_file: str, folder: Path, seed: int, **changes) -> dict:
    """The settings of a training that is not looked at meanwhile; arguments as of [`train_seed`]."""
    return yaml.safe_load(Path(settings_file).read_text(encoding="utf-8")) | {
        "output_dir": str(folder),
        "seed": seed,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "use_cpu": not torch.cuda.is_available(),
        **changes,
    }


def parsed(settings: dict) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Settings as `train` takes them."""
    return HfArgumentParser((ModelArguments, DataArguments, TrainingArguments)).parse_dict(settings)
