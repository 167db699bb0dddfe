"""Training from raw pairs: arguments, the Trainer's set-up, and what is left in the output folder."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.utils import logging

from .allocator import keep_freed_memory
from .configuration_bidir_seq2seq import BidirSeq2SeqConfig
from .data import encode_pairs, load_pairs
from .metrics import TitleScore
from .modeling_bidir_seq2seq import BidirSeq2SeqForConditionalGeneration
from .tokenization import build_bpe_tokenizer, build_char_tokenizer

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


@dataclass
class ModelArguments:
    """The model and its tokenizer: an existing one, or what to make."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to go on from. Default: a new model with the settings below."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer to use; may be the checkpoint's with more tokens. Default: the checkpoint's, or a new "
            "one built from the training pairs."
        },
    )
    tokenizer_type: str = field(
        default="char",
        metadata={
            "help": "What to build when there is no tokenizer: 'char' (Chinese, Japanese) or 'bpe' (spaced text).",
            "choices": ["char", "bpe"],
        },
    )
    vocab_size: int = field(default=8000, metadata={"help": "Largest vocabulary of a new tokenizer."})
    min_frequency: int = field(
        default=10, metadata={"help": "Characters (or pairs of pieces) seen less often get no id in a new tokenizer."}
    )
    lowercase: bool = field(default=False, metadata={"help": "Whether a new tokenizer lower-cases all text."})
    embedding_size: int = field(default=128, metadata={"help": "Width of the embedding."})
    hidden_size: int = field(default=128, metadata={"help": "Width of encoder and decoders."})
    encoder_layers: int = field(default=2, metadata={"help": "Bidirectional layers of the encoder."})
    decoder_layers: int = field(default=2, metadata={"help": "Layers of each decoder."})
    num_attention_heads: int = field(default=8, metadata={"help": "Attention heads."})
    attention_head_size: int = field(default=16, metadata={"help": "Width of an attention head."})
    rnn_type: str = field(default="lstm", metadata={"help": "Recurrent cell.", "choices": ["lstm", "gru"]})
    decoder_directions: str = field(
        default="both", metadata={"help": "Twin decoders, or one.", "choices": ["both", "l2r", "r2l"]}
    )
    use_attention: bool = field(default=True, metadata={"help": "Attend to the source."})
    use_prior: bool = field(default=True, metadata={"help": "Favour words of the source by a learned prior."})
    prior_initial_scale: float = field(
        default=6.0, metadata={"help": "Bonus of a source word before training; half of it reaches the logits."}
    )
    tie_word_embeddings: bool = field(
        default=False, metadata={"help": "Use one matrix for the embedding and the output layer."}
    )
    twin_dropout: float = field(
        default=0.5,
        metadata={"help": "Share of training rows whose decoders do not see each other; 0 leaks the answer."},
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Label smoothing, in both directions."})


@dataclass
class DataArguments:
    """The pairs."""

    train_file: str | None = field(default=None, metadata={"help": "Training pairs: .json(l), .csv or .tsv."})
    validation_file: str | None = field(default=None, metadata={"help": "Validation pairs, for the best checkpoint."})
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset of the Hub instead of files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    source_column: str | None = field(default=None, metadata={"help": "Column to read. Default: the first."})
    target_column: str | None = field(default=None, metadata={"help": "Column to write. Default: the second."})
    max_source_length: int = field(default=400, metadata={"help": "Longest source in tokens; the rest is cut."})
    max_target_length: int = field(default=64, metadata={"help": "Longest target in tokens; the rest is cut."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first so many pairs."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Validate on only the first so many pairs."})


@dataclass
class TrainingArguments(Seq2SeqTrainingArguments):
    """transformers' own arguments, with defaults that suit a small model trained from nothing.

    Raises:
        ValueError: On `label_smoothing_factor`, which would reach one direction only; on a best checkpoint by a metric
            that validation does not compute, or with validations and saves at different times.
    """

    output_dir: str = field(default="output", metadata={"help": "Folder for checkpoints and results."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=200, metadata={"help": "Warm-up updates (or, below 1, their share)."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pairs per update and device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Pairs per validation batch and device."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the training pairs."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "Batches of similar length pad less."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to validate: 'epoch', 'steps' or 'no'."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save; as eval_strategy."})
    logging_steps: float = field(default=50, metadata={"help": "Updates between two lines of the log."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best among them."})
    load_best_model_at_end: bool | None = field(
        default=None,
        metadata={"help": "Keep the best checkpoint, not the last. Default: yes, if there are validations and saves."},
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={"help": "What 'best' is measured by. Default: rougeL; loss without predict_with_generate."},
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Whether more of it is better. Default: yes, unless it is a loss."}
    )
    predict_with_generate: bool = field(default=True, metadata={"help": "Write titles in validation."})
    generation_num_beams: int | None = field(default=3, metadata={"help": "Beams per direction in validation."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches in memory; for GPUs."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many validations without a better one."}
    )

    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Log the mean of earlier losses for one that is not finite."}
    )

    def __post_init__(self):
        self._choose_metric()
        self._choose_best_model()
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} would train the left-to-right direction only: "
                "use label_smoothing, which smooths both"
            )

    def _choose_metric(self) -> None:
        metric, default = self.metric_for_best_model, "rougeL" if self.predict_with_generate else "loss"
        if metric is None:
            self.metric_for_best_model, self.greater_is_better = default, default != "loss"
            if default == "loss":
                logger.warning_once("without predict_with_generate the best checkpoint is the one of the least loss")
        elif not self.predict_with_generate and metric.removeprefix("eval_") != "loss":
            raise ValueError(
                f"metric_for_best_model={metric!r} needs titles, which predict_with_generate=False does not write: "
                "use metric_for_best_model='loss', or leave predict_with_generate on"
            )

    def _choose_best_model(self) -> None:
        validate, save = (getattr(x, "value", x) for x in (self.eval_strategy, self.save_strategy))
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = "no" not in (validate, save)
            if not self.load_best_model_at_end:
                logger.warning_once(
                    f"eval_strategy={validate!r}, save_strategy={save!r}: the last model is kept, not the best one"
                )
        if self.load_best_model_at_end and save not in (validate, "best"):
            raise ValueError(
                f"eval_strategy={validate!r} and save_strategy={save!r} differ, so that the best model may not be "
                "saved: make them equal, or set load_best_model_at_end to false"
            )


class ElapsedTimeCallback(TrainerCallback):
    """Adds `elapsed_seconds` of training, earlier runs of a resumed training included, to every log entry."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clock, where an earlier run left it."""
        before = max((entry.get("elapsed_seconds", 0.0) for entry in state.log_history), default=0.0)
        self.start = time.monotonic() - before

    def on_log(self, args, state, control, **kwargs):
        """Reads the clock."""
        if state.log_history and hasattr(self, "start"):
            state.log_history[-1]["elapsed_seconds"] = round(time.monotonic() - self.start, 1)


class EpochLengthSampler(Sampler[int]):
    """Groups pairs of like length, in an order that depends on the seed and the epoch alone.

    transformers' sampler draws from the common random state, which is another one after a training is resumed.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class EpochCallback(TrainerCallback):
    """Tells the sampler the epoch; accelerate does not when it skips the batches before a checkpoint."""

    def __init__(self, sampler: EpochLengthSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        """The epoch as a whole number; resumed in its middle, it is the same one."""
        self.sampler.epoch = int((state.epoch or 0) + 1e-6)


class TitleTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer that skips updates which are not finite, and stops when they do not end.

    A single bad batch is left out; weights, checkpoints and logs never hold NaN or infinity.

    Raises:
        ValueError: After three such updates in a row, on a validation loss that is not finite, and before a checkpoint
            with weights that are not finite.
    """

    bad_loss = False
    bad_updates = 0

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # `train_dataset` has lost the column of lengths, which the model does not take.
        lengths = self.train_dataset[self.args.length_column_name]
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = EpochLengthSampler(lengths, batch_size, seed)
        self.add_callback(EpochCallback(sampler))
        return sampler

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """The loss of a batch of `input_ids` `[B, S]` and `labels` `[B, T]`.

        One that is not finite is remembered, and counted as 0 in the mean of the log.
        """
        loss = super().training_step(*args, **kwargs)
        if torch.isfinite(loss):
            return loss
        self.bad_loss = True
        return loss if self.args.logging_nan_inf_filter else torch.zeros_like(loss)

    def _get_grad_norm(self, model, grad_norm=None):
        # The last look at the gradients before the optimizer takes them.
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        bad = self.bad_loss or not math.isfinite(float(grad_norm))
        if self.accelerator.num_processes > 1:
            # A process alone must not skip an update: the others would go on with different weights.
            bad = bool(self.accelerator.gather(torch.tensor([bad], device=self.args.device)).any())
        self.bad_loss, self.bad_updates = False, self.bad_updates + 1 if bad else 0
        # float16's loss scaling overflows by design and skips updates itself until its scale fits.
        if self.bad_updates >= (30 if self.args.fp16 else 3):
            raise self._diverged(
                f"update {self.state.global_step + 1}: {self.bad_updates} updates in a row had a loss"
            )
        if bad and not self.args.fp16:
            model.zero_grad(set_to_none=True)
        return grad_norm

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Validates; refuses a loss that is not finite, which would pass for the best one."""
        metrics = super().evaluate(*args, **kwargs)
        if not math.isfinite(metrics.get("eval_loss", 0.0)):
            raise self._diverged(f"update {self.state.global_step}: the validation has a loss")
        return metrics

    def _save_checkpoint(self, model, trial):
        if not all(bool(tensor.isfinite().all()) for tensor in self.model.parameters()):
            raise self._diverged(f"update {self.state.global_step}: there are weights")
        return super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Logs; what is not finite becomes None, since JSON has no word for it."""
        super().log(finite_or_none(logs), *args, **kwargs)

    def _diverged(self, what: str) -> ValueError:
        return ValueError(
            f"training diverged at {what} or gradient that is not finite, with learning_rate="
            f"{self.args.learning_rate:g} ({self._get_learning_rate():g} at this update): use a lower learning_rate "
            "or more warmup_steps, and leave out half precision; the checkpoints before are sound"
        )


def finite_or_none(values: dict) -> dict:
    """A copy whose floats are finite or None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def train(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> dict[str, float]:
    """Trains a model and leaves it, its tokenizer, its log and its curve in `training_args.output_dir`.

    A complete checkpoint in that folder is resumed. Under torchrun or accelerate each process calls this.

    Returns:
        The last validation's metrics; empty without validation pairs.

    Raises:
        ValueError: On arguments or pairs that cannot be trained on, in a folder of a run with other settings, and when
            the training diverges.
    """
    set_seed(training_args.seed)
    if training_args.device.type == "cpu":
        keep_freed_memory()
    pairs = load_pairs(
        {"train": data_args.train_file, "validation": data_args.validation_file},
        data_args.dataset_name,
        data_args.dataset_config_name,
        data_args.source_column,
        data_args.target_column,
    )
    if "train" not in pairs:
        raise ValueError(f"there are no training pairs, only {list(pairs)}: give train_file")
    limits = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
    pairs = {
        name: split.select(range(min(limits.get(name) or len(split), len(split))))
        for name, split in pairs.items()
        if name in limits
    }
    with training_args.main_process_first(desc="comparing settings"):
        keep_run_settings(training_args, run_settings(model_args, data_args, training_args, pairs["train"]))
    with training_args.main_process_first(desc="building the tokenizer"):
        tokenizer = load_or_build_tokenizer(model_args, data_args, pairs["train"], training_args.output_dir)
    model = load_or_build_model(model_args, tokenizer)
    check_autocast(model, training_args)
    encoded = {}
    for name, split in pairs.items():
        with training_args.main_process_first(desc="encoding"):
            encoded[name], report = encode_pairs(
                split, tokenizer, data_args.max_source_length, data_args.max_target_length
            )
        logger.warning_once(f"{name}: {report}")

    model.generation_config.max_length = data_args.max_target_length + 1
    model.generation_config.num_beams = training_args.generation_num_beams or 1
    if model.config.decoder_directions == "both" and model.config.twin_dropout > 0:
        model.generation_config.joint_rescoring = True
    # Seq2SeqTrainer writes its own evaluation defaults into the model's generation config; ours is what ships.
    generation_config = copy.deepcopy(model.generation_config)

    validates = "validation" in encoded
    if not validates:
        training_args.eval_strategy = "no"
        training_args.load_best_model_at_end = False
    callbacks: list[TrainerCallback] = [ElapsedTimeCallback()]
    if training_args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(training_args.early_stopping_patience))
    trainer = TitleTrainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("validation"),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=title_metrics(tokenizer) if validates and training_args.predict_with_generate else None,
        callbacks=callbacks,
    )
    num_parameters = sum(p.numel() for p in model.parameters())
    logger.warning_once(f"model: {num_parameters:,} parameters, vocabulary {len(tokenizer):,}")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint or last_checkpoint(training_args))

    metrics = trainer.evaluate() if validates else {}
    model.generation_config = generation_config
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        output_dir = Path(training_args.output_dir)
        (output_dir / "eval_results.json").write_text(
            json.dumps(finite_or_none(metrics), indent=2, allow_nan=False) + "\n"
        )
        plot_training_curve(trainer.state.log_history, output_dir / "training_curve.png")
    return metrics


def run_settings(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments, pairs
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


def fingerprint(pairs) -> str:
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


def load_or_build_tokenizer(
    model_args: ModelArguments, data_args: DataArguments, pairs, output_dir: str
) -> PreTrainedTokenizerBase:
    """The tokenizer asked for, the checkpoint's, the one of the run to resume, or a new one from `pairs`."""
    run_before = output_dir if (Path(output_dir) / "tokenizer.json").exists() else None
    name = model_args.tokenizer_name or model_args.model_name_or_path or run_before
    if name:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    texts = (text for row in pairs for text in (row["source"], row["target"]) if text)
    settings = {
        "vocab_size": model_args.vocab_size,
        "min_frequency": model_args.min_frequency,
        "lowercase": model_args.lowercase,
        "model_max_length": data_args.max_source_length,
    }
    build = {"char": build_char_tokenizer, "bpe": build_bpe_tokenizer}[model_args.tokenizer_type]
    tokenizer = build(texts, **settings)
    tokenizer.save_pretrained(output_dir)
    return tokenizer


def load_or_build_model(
    model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase
) -> BidirSeq2SeqForConditionalGeneration:
    """The checkpoint asked for, grown if the tokenizer has more tokens; or a new model for the tokenizer.

    Raises:
        ValueError: If the tokenizer gives a token of the checkpoint another id.
    """
    if not model_args.model_name_or_path:
        settings = {
            field.name: getattr(model_args, field.name)
            for field in fields(model_args)
            if field.name != "vocab_size" and field.name in BidirSeq2SeqConfig.__dataclass_fields__
        }
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "bos", "eos")}
        config = BidirSeq2SeqConfig(
            vocab_size=len(tokenizer), decoder_start_token_id=tokenizer.bos_token_id, **special, **settings
        )
        return BidirSeq2SeqForConditionalGeneration(config)
    model = AutoModelForSeq2SeqLM.from_pretrained(
        model_args.model_name_or_path, use_safetensors=True, trust_remote_code=False
    )
    if model_args.tokenizer_name:
        check_same_ids(model_args.model_name_or_path, tokenizer)
    if len(tokenizer) > model.config.vocab_size:
        logger.warning_once(f"the vocabulary grows from {model.config.vocab_size} to {len(tokenizer)} tokens")
        model.resize_token_embeddings(len(tokenizer))
    return model


def check_same_ids(model_name_or_path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer under which a checkpoint's ids would mean something else.

    Raises:
        ValueError: If a token of the checkpoint's own tokenizer has another id or none; the message names the first.
    """
    try:
        own = AutoTokenizer.from_pretrained(model_name_or_path, trust_remote_code=False)
    except (OSError, ValueError):
        logger.warning_once(f"{model_name_or_path} has no tokenizer: that yours has the same ids is taken on trust")
        return
    vocab = tokenizer.get_vocab()
    for token, index in sorted(own.get_vocab().items(), key=lambda item: item[1]):
        if vocab.get(token) != index:
            raise ValueError(
                f"token {token!r} has the id {index} in the checkpoint and {vocab.get(token)} in tokenizer_name: use "
                "the checkpoint's tokenizer, or add tokens to it with its add_tokens and save_pretrained"
            )


def check_autocast(model: nn.Module, training_args: TrainingArguments) -> None:
    """Refuses half precision on a CPU that cannot run the model's recurrent layers in it.

    Raises:
        ValueError: Naming the remedy, where oneDNN would fail in the first training step.
    """
    if training_args.device.type != "cpu":
        return
    rnn = next(module for module in model.modules() if isinstance(module, nn.RNNBase))
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        try:
            with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=getattr(training_args, name)):
                rnn(torch.zeros(1, 1, rnn.input_size))
        except RuntimeError as error:
            raise ValueError(
                f"{name}=True: oneDNN has no {name} LSTM for this processor; leave {name} out, float32 is faster on it"
            ) from error


def title_metrics(tokenizer: PreTrainedTokenizerBase):
    """`compute_metrics` for a Trainer that generates: ROUGE, BLEU and the mean length of what was written."""
    score = TitleScore()

    def compute(prediction) -> dict[str, float]:
        texts = []
        for ids in (prediction.predictions, prediction.label_ids):
            ids = np.where(ids >= 0, ids, tokenizer.pad_token_id)
            texts.append(tokenizer.batch_decode(ids, skip_special_tokens=True))
        lengths = (prediction.predictions > 0) & (prediction.predictions != tokenizer.pad_token_id)
        return {**score.compute(predictions=texts[0], references=texts[1]), "gen_len": float(lengths.sum(1).mean())}

    return compute


def last_checkpoint(training_args: TrainingArguments) -> str | None:
    """The newest sound checkpoint of an earlier run; damaged and half-written ones are passed over with a warning."""
    numbers = {}
    for folder in Path(training_args.output_dir).glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        # Somebody's checkpoint-best is theirs.
        if number.isdecimal() and folder.is_dir():
            numbers[folder] = int(number)
    for folder in sorted(numbers, key=numbers.get, reverse=True):
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


def plot_training_curve(log_history: list[dict], path: str | Path) -> None:
    """Draws validation loss and ROUGE-L against training time in minutes; needs two validations or more."""
    points = [e for e in log_history if "eval_loss" in e and "elapsed_seconds" in e]
    if len(points) < 2:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    minutes = [e["elapsed_seconds"] / 60 for e in points]
    figure, loss_axis = plt.subplots(figsize=(7, 4))
    loss_axis.plot(minutes, [e["eval_loss"] for e in points], "o-", color="tab:blue")
    loss_axis.set(xlabel="training time (minutes)", ylabel="validation loss (nats per token)")
    loss_axis.yaxis.label.set_color("tab:blue")
    if all("eval_rougeL" in e for e in points):
        rouge_axis = loss_axis.twinx()
        rouge_axis.plot(minutes, [e["eval_rougeL"] for e in points], "s-", color="tab:orange")
        rouge_axis.set_ylabel("validation ROUGE-L", color="tab:orange")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


__all__ = [
    "DataArguments",
    "ElapsedTimeCallback",
    "EpochCallback",
    "EpochLengthSampler",
    "ModelArguments",
    "TitleTrainer",
    "TrainingArguments",
    "check_autocast",
    "check_same_ids",
    "checkpoint_damage",
    "fingerprint",
    "finite_or_none",
    "keep_run_settings",
    "last_checkpoint",
    "load_or_build_model",
    "load_or_build_tokenizer",
    "plot_training_curve",
    "run_settings",
    "title_metrics",
    "train",
]
