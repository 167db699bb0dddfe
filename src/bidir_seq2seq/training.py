"""Training from raw pairs: the tokenizer, the model, the Trainer's set-up, and what is left in the output folder."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerBase,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.utils import logging

from .allocator import keep_freed_memory
from .callbacks import (
    ElapsedTimeCallback,
    MovableEndCallback,
    SharedProcessorsCallback,
    StopSignalCallback,
    WarmupCallback,
)
from .configuration_bidir_seq2seq import BidirSeq2SeqConfig
from .data import EncodingReport, PairEncoder, load_pairs
from .ending import OWN_PARTNER_COST, OwnPartnerCallback, Pace, PatienceCallback, TimeLimitCallback
from .kernels_bidir_seq2seq import has_bfloat16, runs_under_autocast
from .loading import load_model, load_tokenizer
from .metrics import TitleScore
from .modeling_bidir_seq2seq import BidirSeq2SeqForConditionalGeneration
from .pair_summary import log_summaries
from .recipe import (
    LABEL_SMOOTHING,
    WIDE,
    suitable_directions,
    suitable_dropout,
    suitable_tokenizer_type,
    suitable_vocabulary,
    suitable_warmup,
    suitable_width,
)
from .run_folder import (
    UNFINISHED,
    checkpoint_to_resume,
    fingerprint,
    keep_run_settings,
    pairs_per_update,
    publish_model,
    run_lock,
    run_settings,
    told_in_a_line,
)
from .sequence_training import BeamInputs, RiskInputs
from .streaming import PairStream, StreamCollator, encoded_titles, log_survey, open_stream
from .teachers import TeacherInputs, load_teachers
from .tokenization import build_bpe_tokenizer, build_char_tokenizer, build_word_tokenizer, number_of_ids
from .trainer import TitleTrainer, finite_or_none
from .training_arguments import DataArguments, ModelArguments, TrainingArguments, settle_streaming
from .trial import try_out
from .unknown_words import TitleCollator, decode_to_compare

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

# The last updates of a new model's training, in which decoders that have learned alone read each other's writing: the
# best of what was tried in as much time (docs/bidirectional.md).
OWN_PARTNER_SHARE = 0.2
# A trial may take so much of the time that a training has.
TRIAL_SHARE = 0.01
# What a checkpoint may be told anew: how it learns, not what it is made of.
SET_ANEW = ("twin_dropout", "twin_partner", "dropout", "label_smoothing")


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, float]:
    """Trains a model and leaves it, its tokenizer, its log and its curve in `training_args.output_dir`.

    The newest whole checkpoint in that folder is gone on from. Under torchrun or accelerate each process calls this.

    Args:
        model_args, data_args, training_args: What the command line sets.
        callbacks: Of transformers, beside our own.

    Returns:
        The last validation's metrics; empty without validation pairs.

    Raises:
        ValueError: On arguments or pairs that cannot be trained on, in a folder where another run is training or which
            is of a run with other settings, and when the training diverges.
        OSError: If the disk is full or the folder gone; in one line, with what still stands.
        SystemExit: After SIGTERM (143) or Ctrl-C (130), once a checkpoint has been saved.
    """
    with run_lock(training_args):
        return _train(model_args, data_args, training_args, callbacks)


def _train(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    extra_callbacks: Sequence[TrainerCallback],
) -> dict[str, float]:
    set_seed(training_args.seed)
    keep_freed_memory()
    pairs = load_splits(data_args, training_args)
    train_pairs = pairs["train"]
    _say_what_tokenizers_keep(model_args)
    if model_args.tokenizer_type is None:
        model_args = replace(model_args, tokenizer_type=suitable_tokenizer_type(train_pairs))
    with training_args.main_process_first(desc="comparing settings"):
        num_pairs, pairs_fingerprint = count_and_fingerprint(train_pairs)
        validation_fingerprint = fingerprint(pairs["validation"].iter(1000)) if "validation" in pairs else None
        settings = run_settings(
            model_args, data_args, training_args, num_pairs, pairs_fingerprint, validation_fingerprint
        )
        keep_run_settings(training_args, settings)
    with training_args.main_process_first(desc="building the tokenizer"):
        tokenizer = load_or_build_tokenizer(model_args, data_args, train_pairs, training_args.output_dir)
    checkpoint = checkpoint_to_resume(training_args)
    began, minutes, own_partner_cost = time.monotonic(), training_args.max_train_minutes, OWN_PARTNER_COST
    updates = _planned_updates(training_args, num_pairs)
    if model_args.model_name_or_path is None:
        pace = _trial(model_args, data_args, training_args, train_pairs, tokenizer)
        passes = _passes(training_args, num_pairs, pace)
        model_args = _chosen(model_args, training_args, train_pairs, tokenizer, passes, checkpoint)
        if minutes is not None and checkpoint is None:
            found = pace(model_args.decoder_directions or "both", model_args.hidden_size)
            own_partner_cost, updates = found.own_partner_cost, min(updates, found.updates_in(60 * minutes))
    if training_args.chooses_warmup:
        training_args.warmup_steps = WarmupCallback.before(checkpoint) if checkpoint else suitable_warmup(updates)
    spent = time.monotonic() - began
    model, encoder = _model_and_encoder(model_args, data_args, training_args, tokenizer)
    if training_args.r_drop and model.config.dropout == 0:
        raise ValueError(
            f"r_drop={training_args.r_drop:g} with dropout=0: a pair that is read twice is the same both times; set "
            "dropout, to 0.2 perhaps, or leave r_drop out"
        )
    sequence_inputs = _sequence_inputs(model_args, training_args, model, tokenizer)
    propose_bfloat16(training_args)
    encoded, reports = {}, {}
    for name, split in pairs.items():
        if isinstance(split, PairStream):
            # A run that goes on has counted its titles.
            if checkpoint is None:
                reports[name] = EncodingReport()
                model.count_titles(encoded_titles(split, encoder, reports[name]))
            encoded[name] = split
            skip_what_was_trained_on(split, checkpoint, training_args)
        else:
            with training_args.main_process_first(desc="encoding"):
                # In validation each direction is alone.
                read = encoder if name == "train" else replace(encoder, partners=False)
                encoded[name], reports[name] = read.encode(split)
            if name == "train":
                model.count_titles(encoded[name]["labels"])
        if name in reports:
            logger.warning_once(f"{name}: {reports[name]}")

    _say_how_to_write(model, data_args, training_args)
    # Seq2SeqTrainer writes its own evaluation defaults into the model's generation config; ours is what ships.
    generation_config = copy.deepcopy(model.generation_config)

    config = model.config
    validates = "validation" in encoded
    if not validates:
        training_args.eval_strategy = "no"
        training_args.load_best_model_at_end = False
    if training_args.early_stopping_patience is not None and training_args.eval_strategy == "no":
        raise ValueError(
            f"early_stopping_patience={training_args.early_stopping_patience} without validation: give "
            "validation_file, and leave out eval_strategy='no', or leave early_stopping_patience out"
        )
    callbacks: list[TrainerCallback] = [ElapsedTimeCallback(), SharedProcessorsCallback(), *extra_callbacks]
    callbacks.append(WarmupCallback(training_args.warmup_steps or 0))
    if share := _own_partner_share(model_args, training_args, model.config):
        callbacks.append(OwnPartnerCallback(model.config, share))
    if training_args.early_stopping_patience is not None:
        callbacks.append(PatienceCallback(training_args.early_stopping_patience, share))
    trainer = TitleTrainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("validation"),
        data_collator=StreamCollator(encoder, TitleCollator(tokenizer, model=model)),
        processing_class=tokenizer,
        compute_metrics=title_metrics(tokenizer, config.vocab_size)
        if validates and training_args.predict_with_generate
        else None,
        callbacks=callbacks,
        sequence_inputs=sequence_inputs,
    )
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(MovableEndCallback)
    if minutes is not None:
        trainer.add_callback(TimeLimitCallback(60 * minutes, share, own_partner_cost, spent, trainer.accelerator))
    num_parameters = sum(p.numel() for p in model.parameters())
    logger.warning_once(f"model: {num_parameters:,} parameters, vocabulary {len(tokenizer):,}")
    if config.decoder_directions == "both" and config.twin_partner == "gold" and config.twin_dropout < 1:
        logger.warning_once(
            f"the training loss flatters: {1 - config.twin_dropout:.0%} of the rows see part of their "
            "answer through the twin. Compare eval_loss, in which each direction is alone"
        )
    with StopSignalCallback(trainer.accelerator) as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=checkpoint)
    if stop.number is not None:
        logger.warning_once(
            f"{signal.Signals(stop.number).name}: stopped after update {trainer.state.global_step}; give the same "
            f"command again to go on from {training_args.output_dir}/checkpoint-{trainer.state.global_step}"
        )
        raise SystemExit(128 + stop.number)

    metrics = trainer.evaluate_kept() if validates else {}
    model.generation_config = generation_config
    save_finished(trainer, metrics)
    for name, report in reports.items():
        logger.warning_once(f"at the end, of {name}: {report}")
    return metrics


def _say_what_tokenizers_keep(model_args: ModelArguments) -> None:
    """Settings that make a new tokenizer change nothing of one that is there: a word on those."""
    name = model_args.tokenizer_name or model_args.model_name_or_path
    settings = {x: getattr(model_args, x) for x in ("tokenizer_type", "vocab_size", "min_frequency", "lowercase")}
    given = [f"{setting}={value!r}" for setting, value in settings.items() if value not in (None, False)]
    if name and given:
        logger.warning_once(f"the tokenizer of {name} stays as it is: {', '.join(given)} would make a new one")


def _model_and_encoder(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[BidirSeq2SeqForConditionalGeneration, PairEncoder]:
    """A model that is ready to be trained as it is asked for, and what makes its ids of texts."""
    model = load_or_build_model(model_args, tokenizer)
    check_autocast(model, training_args)
    if training_args.freeze_encoder:
        freeze_encoder(model)
    limits = (data_args.max_source_length, data_args.max_target_length)
    partners = model.config.decoder_directions == "both" and model.config.twin_partner == "written"
    if partners and data_args.streaming:
        raise ValueError(
            "twin_partner='written' with streaming=True: a stream has no room for what an earlier model wrote; leave "
            "streaming out, or use twin_partner='own'"
        )
    copies, size = model.config.use_copy, model.config.vocab_size
    return model, PairEncoder(tokenizer, *limits, copies, model.source_tokenizer, partners, size)


def _chosen(
    model_args: ModelArguments,
    training_args: TrainingArguments,
    pairs: Dataset | PairStream,
    tokenizer: PreTrainedTokenizerBase,
    passes: Callable[[str, int | None], float],
    checkpoint: str | None,
) -> ModelArguments:
    """With width, directions, dropout and smoothing that suit a new model, or that a run began with, if not said.

    `passes` tells how often a model of given directions and width sees each pair.
    """
    if checkpoint is not None:
        # A run that is made longer sees its pairs more often than was meant when these were chosen.
        began = BidirSeq2SeqConfig.from_pretrained(checkpoint)
        chosen = ("hidden_size", "embedding_size", "decoder_directions", "dropout", "label_smoothing")
        left = [name for name in chosen if getattr(model_args, name) is None]
        return replace(model_args, **{name: getattr(began, name) for name in left})
    directions = model_args.decoder_directions
    if model_args.hidden_size is None and training_args.max_train_minutes is not None:
        model_args = _of_width(model_args, suitable_width(passes(directions or "both", WIDE)))
    if directions is None:
        settings_of_twins = (model_args.twin_dropout, model_args.twin_partner, training_args.own_partner_share)
        asked_for = any(setting is not None for setting in settings_of_twins) or not model_args.share_encoder
        directions = (
            "both" if asked_for else suitable_directions(pairs, tokenizer, passes("both", model_args.hidden_size))
        )
        model_args = replace(model_args, decoder_directions=directions)
    if model_args.dropout is None:
        model_args = replace(model_args, dropout=suitable_dropout(passes(directions, model_args.hidden_size)))
    if model_args.label_smoothing is None:
        model_args = replace(model_args, label_smoothing=LABEL_SMOOTHING)
    return model_args


def _of_width(model_args: ModelArguments, hidden_size: int | None) -> ModelArguments:
    """Of this width, and an embedding as wide if nothing is said of it."""
    return replace(model_args, hidden_size=hidden_size, embedding_size=model_args.embedding_size or hidden_size)


def _say_how_to_write(
    model: BidirSeq2SeqForConditionalGeneration, data_args: DataArguments, training_args: TrainingArguments
) -> None:
    """What the model's generation config says, in validation and wherever the model goes."""
    model.generation_config.max_length = data_args.max_target_length + 1
    model.generation_config.num_beams = training_args.generation_num_beams or 1
    if training_args.generation_no_repeat_ngram_size is not None:
        model.generation_config.no_repeat_ngram_size = training_args.generation_no_repeat_ngram_size
    if model.config.decoder_directions == "both" and model.config.twin_dropout > 0:
        model.generation_config.joint_rescoring = True


def load_splits(data_args: DataArguments, training_args: TrainingArguments) -> dict[str, Dataset | PairStream]:
    """The pairs that `data_args` name, `train` and perhaps `validation`, after a look at them in the log.

    Raises:
        ValueError: On what cannot be read, or if there are no training pairs.
        FileNotFoundError: If there is no such file.
    """
    columns = {name: getattr(data_args, name) for name in ("source_column", "target_column")}
    reading = {**columns, "on_bad_rows": data_args.on_bad_rows, "encoding": data_args.encoding}
    files: dict[str, str | Sequence[str]] = {
        "train": data_args.train_file or [],
        "validation": data_args.validation_file or [],
    }
    splits: dict[str, Dataset | PairStream] = {}
    if data_args.streaming:
        settle_streaming(data_args, training_args)
        order = {
            "shuffle_buffer_size": data_args.shuffle_buffer_size,
            "seed": training_args.seed if training_args.data_seed is None else training_args.data_seed,
        }
        stream = open_stream(files.pop("train"), **reading, **order, max_samples=data_args.max_train_samples)
        stream.batch_size = training_args.train_batch_size * training_args.world_size
        splits["train"] = stream
    if any(files.values()) or data_args.dataset_name or not splits:
        loaded = load_pairs(files, data_args.dataset_name, data_args.dataset_config_name, **reading)
        limits = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
        for name in (name for name in limits if name in loaded):
            splits[name] = loaded[name].select(range(min(limits[name] or len(loaded[name]), len(loaded[name]))))
    if "train" not in splits:
        raise ValueError(f"there are no training pairs, only {list(splits)}: give train_file")
    if training_args.process_index == 0:
        _log_splits(splits)
    return splits


def _log_splits(splits: dict[str, Dataset | PairStream]) -> None:
    for split in splits.values():
        if isinstance(split, PairStream):
            log_survey(split)
    log_summaries({name: split for name, split in splits.items() if not isinstance(split, PairStream)})


def count_and_fingerprint(pairs: Dataset | PairStream) -> tuple[int, str]:
    """How many pairs there are in one pass, and what tells them from others."""
    if isinstance(pairs, PairStream):
        return pairs.survey.pairs, pairs.survey.fingerprint
    return len(pairs), fingerprint(pairs.iter(1000))


def _trial(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    pairs: Dataset | PairStream,
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[str, int | None], Pace]:
    """How fast a new model of given directions and width learns here."""

    @cache
    def pace(directions: str, hidden_size: int | None) -> Pace:
        tried = model_args if hidden_size == model_args.hidden_size else _of_width(model_args, hidden_size)
        tried = replace(tried, decoder_directions=directions, dropout=model_args.dropout or 0.0)
        model, encoder = _model_and_encoder(tried, data_args, training_args, tokenizer)
        share = _own_partner_share(model_args, training_args, model.config)
        assert training_args.max_train_minutes is not None, "a trial is for a training in a given time"
        limit = TRIAL_SHARE * 60 * training_args.max_train_minutes
        found = try_out(model, share, pairs, encoder, training_args, limit)
        # As if there had been no trial.
        set_seed(training_args.seed)
        width = model.config.hidden_size
        logger.warning_once(
            f"trial of decoder_directions={directions!r}, hidden_size={width}: {found.seconds:.2g} s an update"
        )
        return found

    return pace


def _passes(
    training_args: TrainingArguments, num_pairs: int, pace: Callable[[str, int | None], Pace]
) -> Callable[[str, int | None], float]:
    """How often a new model of given directions and width sees each pair: as planned, or as there is time for."""
    in_an_update, minutes = pairs_per_update(training_args) / max(num_pairs, 1), training_args.max_train_minutes
    planned = training_args.num_train_epochs
    if training_args.max_steps > 0:
        planned = training_args.max_steps * in_an_update

    def passes(directions: str, hidden_size: int | None) -> float:
        if minutes is None:
            return planned
        return min(planned, pace(directions, hidden_size).updates_in(60 * minutes) * in_an_update)

    return passes


def _planned_updates(training_args: TrainingArguments, num_pairs: int) -> int:
    if training_args.max_steps > 0:
        return training_args.max_steps
    return math.ceil(training_args.num_train_epochs * num_pairs / pairs_per_update(training_args))


def skip_what_was_trained_on(stream: PairStream, checkpoint: str | None, training_args: TrainingArguments) -> None:
    """Lets a stream begin behind the pairs that a checkpoint has been trained on; `None` is a new run's."""
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        stream.skipped = state.global_step * stream.batch_size * training_args.gradient_accumulation_steps


def _own_partner_share(
    model_args: ModelArguments, training_args: TrainingArguments, config: BidirSeq2SeqConfig
) -> float:
    if training_args.own_partner_share is not None:
        return training_args.own_partner_share
    by_default = model_args.twin_partner is None and model_args.model_name_or_path is None
    return OWN_PARTNER_SHARE if by_default and config.twin_partner == "none" else 0.0


def _sequence_inputs(
    model_args: ModelArguments,
    training_args: TrainingArguments,
    model: BidirSeq2SeqForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
) -> RiskInputs | BeamInputs | TeacherInputs | None:
    args = training_args
    if args.soft_teachers:
        return TeacherInputs(load_teachers(args.soft_teachers, model, tokenizer), args.soft_share)
    if args.sequence_objective is None:
        return None
    if model_args.model_name_or_path is None:
        raise ValueError(
            f"sequence_objective={args.sequence_objective!r} is for a model that writes already, and a new one has no "
            "titles to learn from: train it first, then give it as model_name_or_path"
        )
    if args.sequence_objective == "beam":
        return BeamInputs(args.sequence_num_beams, args.sequence_margin, args.sequence_true_share)
    if args.sequence_objective == "risk":
        beams, sharpness = args.sequence_num_beams, args.sequence_sharpness
        return RiskInputs(tokenizer, args.sequence_metric, beams, sharpness, args.sequence_true_share)
    raise ValueError(f"sequence_objective={args.sequence_objective!r} must be 'risk' or 'beam'")


def save_finished(trainer: TitleTrainer, metrics: dict[str, float]) -> None:
    """Leaves the model, its tokenizer, the log, the metrics and the curve in the run's folder.

    Args:
        trainer: After its training; all processes call this.
        metrics: Those of the last validation.

    Raises:
        OSError: If that fails, in one line.
    """
    output_dir = Path(trainer.args.output_dir)
    aside = output_dir / UNFINISHED
    with told_in_a_line(output_dir, "the trained model"):
        trainer.save_model(str(aside))
        trainer.accelerator.wait_for_everyone()
        if not trainer.is_world_process_zero():
            return
        trainer.state.save_to_json(str(aside / "trainer_state.json"))
        text = json.dumps(finite_or_none(metrics), indent=2, allow_nan=False) + "\n"
        (aside / "eval_results.json").write_text(text, encoding="utf-8")
        publish_model(aside, output_dir)
    if trainer.args.report:
        _report(trainer.state.log_history, output_dir)


def _report(log_history: list[dict], output_dir: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        # No reason to fail after a training.
        logger.warning_once("no report, as matplotlib is not installed: pip install 'bidir_seq2seq[plots]'")
        return
    # It takes long to import, and a process without a report has no need of it.
    from .plots import plot_training_curve
    from .report import write_report

    plot_training_curve(log_history, output_dir / "training_curve.png")
    logger.warning_once(f"report: {write_report([output_dir])}")


def load_or_build_tokenizer(
    model_args: ModelArguments, data_args: DataArguments, pairs: Dataset | PairStream, output_dir: str
) -> PreTrainedTokenizerBase:
    """The tokenizer asked for, the checkpoint's, the one of the run to resume, or a new one from `pairs`."""
    run_before = output_dir if (Path(output_dir) / "tokenizer.json").exists() else None
    name = model_args.tokenizer_name or model_args.model_name_or_path or run_before
    if name:
        return load_tokenizer(name)
    rows = (row for batch in pairs.iter(1000) for row in zip(batch["source"], batch["target"]))
    texts = (text for row in rows for text in row if text)
    num_pairs = pairs.survey.pairs if isinstance(pairs, PairStream) else len(pairs)
    kind = model_args.tokenizer_type or suitable_tokenizer_type(pairs)
    vocab_size, min_frequency = suitable_vocabulary(num_pairs, kind)
    if model_args.vocab_size is not None:
        vocab_size = model_args.vocab_size
    if model_args.min_frequency is not None:
        min_frequency = model_args.min_frequency
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "min_frequency": min_frequency,
        "lowercase": model_args.lowercase,
        "model_max_length": data_args.max_source_length,
    }
    build = {"char": build_char_tokenizer, "bpe": build_bpe_tokenizer, "word": build_word_tokenizer}[kind]
    tokenizer = build(texts, **settings)
    logger.warning_once(
        f"vocabulary: {len(tokenizer):,} ids ({kind}), of at most {vocab_size:,} for {num_pairs:,} pairs, of what was "
        f"seen at least {min_frequency} times; tokenizer_type, vocab_size and min_frequency make it another"
    )
    tokenizer.save_pretrained(output_dir)
    return tokenizer


def load_or_build_model(
    model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase
) -> BidirSeq2SeqForConditionalGeneration:
    """The checkpoint asked for, grown if the tokenizer has more tokens; or a new model for the tokenizer.

    A checkpoint keeps its shape; how it learns (dropout and the like) may be set anew.

    Raises:
        ValueError: If the tokenizer gives a token of the checkpoint another id, or a setting would change its shape;
            if a pretrained encoder is not named, or is where there is no place for it.
    """
    encoder = model_args.encoder_name_or_path
    if encoder is None and model_args.encoder_type == "pretrained" and not model_args.model_name_or_path:
        raise ValueError("encoder_type='pretrained' needs encoder_name_or_path: a folder, or a name on the Hub")
    if encoder is not None and (model_args.encoder_type != "pretrained" or model_args.model_name_or_path):
        raise ValueError(
            f"encoder_name_or_path={encoder!r} is for a new model with encoder_type='pretrained': leave one out"
        )
    settings = {
        field.name: value
        for field in fields(model_args)
        if field.name != "vocab_size"
        and field.name in BidirSeq2SeqConfig.__dataclass_fields__
        # What is None is left to the config.
        and (value := getattr(model_args, field.name)) is not None
    }
    if not model_args.model_name_or_path:
        if model_args.decoder_directions in (None, "both") and model_args.twin_dropout != 0:
            settings.setdefault("twin_partner", "none")
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "bos", "eos")}
        if missing := [name.removesuffix("_id") for name, token_id in special.items() if token_id is None]:
            raise ValueError(
                f"the tokenizer of {model_args.tokenizer_name} has no {', '.join(missing)}, which titles cannot do "
                f"without: add them with its add_special_tokens, such as {{{missing[0]!r}: '<x>'}}, and save it with "
                "save_pretrained"
            )
        settings |= {
            "vocab_size": number_of_ids(tokenizer),
            "decoder_start_token_id": tokenizer.bos_token_id,
            **special,
        }
        if encoder is not None:
            return BidirSeq2SeqForConditionalGeneration.from_pretrained_encoder(encoder, **settings)
        return BidirSeq2SeqForConditionalGeneration(BidirSeq2SeqConfig(**settings))
    defaults = {field.name: field.default for field in fields(model_args)}
    model = load_model(
        model_args.model_name_or_path,
        **{name: value for name, value in settings.items() if name in SET_ANEW},
    )
    for name, value in settings.items():
        if value != defaults[name] and value != getattr(model.config, name):
            raise ValueError(
                f"{name}={value!r} is for a new model, and {model_args.model_name_or_path} has "
                f"{getattr(model.config, name)!r}: leave {name} out, or leave model_name_or_path out"
            )
    if model_args.tokenizer_name:
        check_same_ids(model_args.model_name_or_path, tokenizer)
    if (size := number_of_ids(tokenizer)) > model.config.vocab_size:
        logger.warning_once(f"the vocabulary grows from {model.config.vocab_size} to {size} tokens")
        model.resize_token_embeddings(size)
    return model


def check_same_ids(model_name_or_path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer under which a checkpoint's ids would mean something else.

    Raises:
        ValueError: If a token of the checkpoint's own tokenizer has another id or none; the message names the first.
    """
    try:
        own = load_tokenizer(model_name_or_path)
    except ValueError:
        logger.warning_once(f"{model_name_or_path} has no tokenizer: that yours has the same ids is taken on trust")
        return
    vocab = tokenizer.get_vocab()
    for token, index in sorted(own.get_vocab().items(), key=lambda item: item[1]):
        if vocab.get(token) != index:
            raise ValueError(
                f"token {token!r} has the id {index} in the checkpoint and {vocab.get(token)} in tokenizer_name: use "
                "the checkpoint's tokenizer, or add tokens to it with its add_tokens and save_pretrained"
            )


def freeze_encoder(model: BidirSeq2SeqForConditionalGeneration) -> None:
    """Keeps a pretrained encoder as it is; what makes our states of its own still learns.

    Raises:
        ValueError: If the encoder is not pretrained.
    """
    if (reader := model.get_encoder().pretrained) is None:
        raise ValueError(
            f"freeze_encoder=True would keep an encoder of encoder_type={model.config.encoder_type!r} from learning, "
            "which begins at random: leave it out"
        )
    reader.model.requires_grad_(False)


def check_autocast(model: nn.Module, training_args: TrainingArguments) -> None:
    """Refuses half precision where a CPU cannot run the model's recurrent layers in it.

    Raises:
        ValueError: Naming the remedy, where oneDNN would fail in the first training step.
    """
    rnn = next(module for module in model.modules() if isinstance(module, nn.RNNBase))
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if getattr(training_args, name) and not runs_under_autocast(rnn, dtype, training_args.device):
            raise ValueError(
                f"{name}=True: oneDNN has no {name} LSTM for this processor; leave {name} out, float32 is faster on it"
            )


def propose_bfloat16(training_args: TrainingArguments) -> None:
    """Says so where a CPU has bfloat16 and the training does not use it."""
    if not (training_args.bf16 or training_args.fp16) and has_bfloat16(training_args.device):
        logger.warning_once(
            "this processor has bfloat16, in which a training takes less time: --bf16 (docs/training.md: how much)"
        )


def title_metrics(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` for a Trainer that generates: ROUGE, BLEU and the mean length of what was written.

    Args:
        tokenizer: The model's.
        vocab_size: The model's. Default: the tokenizer's.
    """
    score, size = TitleScore(), vocab_size or number_of_ids(tokenizer)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        titles, references = (
            np.where(ids >= 0, ids, tokenizer.pad_token_id).tolist()
            for ids in (prediction.predictions, prediction.label_ids)
        )
        scores = score.compute(
            predictions=decode_to_compare(tokenizer, titles, size),
            references=decode_to_compare(tokenizer, references, size, are_references=True),
        )
        lengths = (prediction.predictions > 0) & (prediction.predictions != tokenizer.pad_token_id)
        return {**(scores or {}), "gen_len": float(lengths.sum(1).mean())}

    return compute


__all__ = [
    "DataArguments",
    "ModelArguments",
    "TrainingArguments",
    "check_autocast",
    "check_same_ids",
    "count_and_fingerprint",
    "freeze_encoder",
    "load_or_build_model",
    "load_or_build_tokenizer",
    "load_splits",
    "propose_bfloat16",
    "save_finished",
    "skip_what_was_trained_on",
    "title_metrics",
    "train",
]
