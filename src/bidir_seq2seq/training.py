"""Training from raw pairs: the tokenizer, the model, the Trainer's set-up, and what is left in the output folder."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging

from .allocator import keep_freed_memory
from .configuration_bidir_seq2seq import BidirSeq2SeqConfig
from .data import encode_pairs, load_pairs
from .metrics import TitleScore
from .modeling_bidir_seq2seq import BidirSeq2SeqForConditionalGeneration
from .pair_summary import log_summaries
from .run_folder import keep_run_settings, last_checkpoint, run_settings
from .tokenization import build_bpe_tokenizer, build_char_tokenizer
from .trainer import ElapsedTimeCallback, TitleTrainer, finite_or_none
from .training_arguments import DataArguments, ModelArguments, TrainingArguments

logger = logging.get_logger(__name__)


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
        on_bad_rows=data_args.on_bad_rows,
        encoding=data_args.encoding,
    )
    if "train" not in pairs:
        raise ValueError(f"there are no training pairs, only {list(pairs)}: give train_file")
    limits = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
    pairs = {
        name: split.select(range(min(limits.get(name) or len(split), len(split))))
        for name, split in pairs.items()
        if name in limits
    }
    if training_args.process_index == 0:
        log_summaries(pairs)
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
    "ModelArguments",
    "TrainingArguments",
    "check_autocast",
    "check_same_ids",
    "load_or_build_model",
    "load_or_build_tokenizer",
    "plot_training_curve",
    "title_metrics",
    "train",
]
