"""What a training can be told: the model, the pairs, and transformers' own arguments with defaults of ours."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.utils import logging

from .arguments import check_numbers

logger = logging.get_logger(__name__)

# Updates in which the learning rate rises to its peak, but for short trainings (`recipe.suitable_warmup`).
WARMUP = 200
# What a validation that writes titles measures.
VALIDATION_METRICS = ("loss", "rouge1", "rouge2", "rougeL", "bleu", "first4", "last4", "gen_len")


@dataclass
class ModelArguments:
    """The model and its tokenizer: an existing one, or what to make.

    Raises:
        ValueError: On a number that no model can have.
    """

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
    tokenizer_type: str | None = field(
        default=None,
        metadata={
            "help": "What to build when there is no tokenizer: 'char' (Chinese, Japanese), 'bpe' (spaced text) or "
            "'word' (what stands between spaces, as in pronunciations). Default: char or bpe, by the script.",
            "choices": ["char", "bpe", "word"],
        },
    )
    vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "Largest vocabulary of a new tokenizer. Default: 8,000; for bpe a quarter of the number of pairs, "
            "from 1,000 to 8,000."
        },
    )
    min_frequency: int | None = field(
        default=None,
        metadata={
            "help": "Characters, words (or pairs of pieces) seen less often get no id in a new tokenizer. Default: "
            "once in 2,000 pairs, from 2 to 10 times."
        },
    )
    lowercase: bool = field(default=False, metadata={"help": "Whether a new tokenizer lower-cases all text."})
    embedding_size: int | None = field(
        default=None,
        metadata={"help": "Width of the embedding. Default: 128; 256 where hidden_size is that by max_train_minutes."},
    )
    hidden_size: int | None = field(
        default=None,
        metadata={
            "help": "Width of encoder and decoders. Default: 128; with max_train_minutes 256, if there is time to see "
            "every pair twice."
        },
    )
    encoder_type: str = field(
        default="rnn",
        metadata={
            "help": "What the encoder is made of: 'rnn' (cells of rnn_type), 'cnn' (convolutions), "
            "'self_attention', or 'pretrained', an encoder of transformers (encoder_name_or_path).",
            "choices": ["rnn", "cnn", "self_attention", "pretrained"],
        },
    )
    encoder_name_or_path: str | None = field(
        default=None, metadata={"help": "The pretrained encoder of a new model: a folder, or a name on the Hub."}
    )
    encoder_layers: int = field(default=2, metadata={"help": "Layers of the encoder."})
    encoder_kernel_size: int = field(default=15, metadata={"help": "Tokens that a convolution looks at; odd."})
    encoder_ffn_dim: int = field(default=512, metadata={"help": "Width inside the linear layers of self-attention."})
    decoder_layers: int = field(default=2, metadata={"help": "Layers of each decoder."})
    num_attention_heads: int = field(default=8, metadata={"help": "Attention heads."})
    attention_head_size: int = field(default=16, metadata={"help": "Width of an attention head."})
    rnn_type: str = field(default="lstm", metadata={"help": "Recurrent cell.", "choices": ["lstm", "gru"]})
    decoder_directions: str | None = field(
        default=None,
        metadata={
            "help": "Twin decoders, or one. Default: the checkpoint's; for a new model 'both' where titles take their "
            "words from their texts or every pair is seen 10 times, else 'l2r', as in translation.",
            "choices": ["both", "l2r", "r2l"],
        },
    )
    share_encoder: bool = field(
        default=True,
        metadata={
            "help": "Both decoders read one encoder; False: each has its own, which takes longer and more memory."
        },
    )
    use_attention: bool = field(default=True, metadata={"help": "Attend to the source."})
    use_prior: bool = field(default=True, metadata={"help": "Favour words of the source by a learned prior."})
    prior_initial_scale: float = field(
        default=6.0, metadata={"help": "Bonus of a source word before training; half of it reaches the logits."}
    )
    use_copy: bool = field(
        default=True, metadata={"help": "Copy words of the source by an attention of its own, beside the vocabulary."}
    )
    copy_context: int = field(
        default=2, metadata={"help": "So many of the last words written are looked for in the source, to go on there."}
    )
    tie_word_embeddings: bool = field(
        default=False, metadata={"help": "Use one matrix for the embedding and the output layer."}
    )
    twin_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Share of training rows whose decoders do not see each other; 0 leaks the answer. Default: the "
            "checkpoint's; 0.5 for a new model."
        },
    )
    twin_partner: str | None = field(
        default=None,
        metadata={
            "help": "What a decoder reads of its twin in training: 'gold', the true words; 'own', what the twin "
            "itself writes, which takes longer; 'written', what an earlier model has written, from training pairs "
            "that `bidir-seq2seq partners` has left; or 'none'. Default: the checkpoint's; for a new model none, and "
            "own in its last updates (own_partner_share).",
            "choices": ["gold", "own", "written", "none"],
        },
    )
    dropout: float | None = field(
        default=None,
        metadata={
            "help": "Dropout. Default: the checkpoint's; for a new model 0.2 if it sees every pair 5 times or more, "
            "else 0."
        },
    )
    label_smoothing: float | None = field(
        default=None,
        metadata={"help": "Label smoothing, in both directions. Default: the checkpoint's; 0.1 for a new model."},
    )

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "embedding_size", "hidden_size", "encoder_layers", "decoder_layers")
        more = ("num_attention_heads", "attention_head_size", "copy_context", "encoder_kernel_size", "encoder_ffn_dim")
        check_numbers(self, **dict.fromkeys((*sizes, *more), 1), min_frequency=0, prior_initial_scale=0.0)
        check_numbers(self, **dict.fromkeys(("twin_dropout", "dropout", "label_smoothing"), 0.0))


@dataclass
class DataArguments:
    """The pairs.

    Raises:
        ValueError: On a number of pairs or tokens that would leave none.
    """

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training pairs: files of rows (.json, .jsonl, .csv, .tsv, .parquet; packed or not), a pattern, "
            "folder or address; or two files of plain text, sources and targets line by line (corpus.en corpus.de)."
        },
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Validation pairs, for the best checkpoint; as train_file."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A dataset of the Hub, or a local folder of one, instead of files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    source_column: str | None = field(
        default=None,
        metadata={"help": "Column to read, or path (translation.en). Default: by name, such as text, else the first."},
    )
    target_column: str | None = field(
        default=None,
        metadata={"help": "Column to write, or path. Default: by name, such as title, else the second."},
    )
    on_bad_rows: str = field(
        default="error",
        metadata={"help": "At a row that cannot be read: stop, or skip and count it.", "choices": ["error", "skip"]},
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of the files, such as cp1252. Default: found out."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training pairs while training, and keep no copy of them on the disk: for data that is "
            "large. Needs max_steps."
        },
    )
    shuffle_buffer_size: int = field(
        default=10_000,
        metadata={"help": "With streaming: pairs held in memory to draw from. 0: the order of the files."},
    )
    max_source_length: int = field(default=400, metadata={"help": "Longest source in tokens; the rest is cut."})
    max_target_length: int = field(default=64, metadata={"help": "Longest target in tokens; the rest is cut."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first so many pairs."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Validate on only the first so many pairs."})

    def __post_init__(self) -> None:
        check_numbers(self, max_source_length=2, max_target_length=2, max_train_samples=1, max_eval_samples=1)
        check_numbers(self, shuffle_buffer_size=0)


@dataclass
class TrainingArguments(Seq2SeqTrainingArguments):
    """transformers' own arguments, with defaults that suit a small model trained from nothing.

    Raises:
        ValueError: On numbers that no training can have; on `label_smoothing_factor`, which would reach one direction
            only; on a best checkpoint by a metric that validation does not compute, or with validations and saves at
            different times.
    """

    output_dir: str = field(default="output", metadata={"help": "Folder for checkpoints and results."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(
        default="warmup_stable_decay",
        metadata={
            "help": "Learning rate schedule. Default: it stays at its peak, and falls to 0 in the last fifth of the "
            "updates (lr_scheduler_kwargs '{\"num_decay_steps\": 500}' says how many)."
        },
    )
    warmup_steps: float | None = field(
        default=None,
        metadata={
            "help": f"Warm-up updates (or, below 1, their share of all that are planned). Default: {WARMUP}, or "
            "half of all updates where that is less."
        },
    )
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Pairs per update and device; a GPU is faster with more."}
    )
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
        metadata={
            "help": "What 'best' is measured by. Default: rougeL; loss without predict_with_generate. (bleu is 0 "
            "where titles have fewer than four tokens.)"
        },
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Whether more of it is better. Default: yes, unless it is a loss."}
    )
    predict_with_generate: bool = field(default=True, metadata={"help": "Write titles in validation."})
    generation_num_beams: int | None = field(default=3, metadata={"help": "Beams per direction in validation."})
    generation_no_repeat_ngram_size: int | None = field(
        default=None,
        metadata={
            "help": "No n-gram of this size twice in a title, in validation and wherever the model writes later. 2 or "
            "3 suits titles of words."
        },
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches in memory; for GPUs."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "End the training after so many validations without a better one. What ends any training, the "
            "fall of the learning rate and what twins learn last, begins then if it has not yet."
        },
    )

    max_train_minutes: float | None = field(
        default=None,
        metadata={
            "help": "End the training after about so many minutes, with validations on its way and without what comes "
            "before and after: what ends any training begins in time. num_train_epochs or max_steps say how long it "
            "is at most. What suits a new model is chosen by how often there is time to see each pair, as a trial of "
            "some updates shows. Default: no limit."
        },
    )

    encoder_learning_rate: float = field(
        default=5e-5, metadata={"help": "Peak learning rate of a pretrained encoder, below that of all that is new."}
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "Whether a pretrained encoder stays as it is."})

    own_partner_share: float | None = field(
        default=None,
        metadata={
            "help": "In the last part of the training, this share of its updates, decoders read what their twins "
            "write themselves (twin_partner='own'), whatever they read before. Default: 0.2 for a new model whose "
            "twin_partner is not given, else 0."
        },
    )

    r_drop: float = field(
        default=0.0,
        metadata={
            "help": "Read each pair twice, with other dropout, and learn to say the same both times (R-Drop); this is "
            "how much that counts, such as 2 or 5. For few pairs and much time: an update takes twice as long. "
            "Default: no."
        },
    )

    soft_teachers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Models of this package and of the same words, whose probabilities of each next word (the mean of "
            "several) are learned beside the true word; they read each batch, which takes longer. Best several that "
            "were trained apart. Default: none."
        },
    )
    soft_share: float = field(default=0.8, metadata={"help": "Share of the loss that soft_teachers have."})

    sequence_objective: str | None = field(
        default=None,
        metadata={
            "help": "Learn from titles as the model writes them, as a last stage of one that writes already "
            "(model_name_or_path): 'risk', by what they are worth, or 'beam', from what drives the true title out of "
            "the beam. Default: from true titles alone.",
            "choices": ["risk", "beam"],
        },
    )
    sequence_metric: str = field(
        default="rougeL",
        metadata={
            "help": "What titles are worth, for 'risk': rougeL, chrf, or per (edits of what stands between spaces).",
            "choices": ["rougeL", "chrf", "per"],
        },
    )
    sequence_num_beams: int = field(default=4, metadata={"help": "Beams of each direction, which writes for it."})
    sequence_true_share: float = field(
        default=0.3, metadata={"help": "Share of the loss that is the true title's cross-entropy."}
    )
    sequence_sharpness: float = field(
        default=1.0,
        metadata={"help": "For 'risk': how much more likelier candidates count; 1 is as the model has it."},
    )
    sequence_margin: float = field(
        default=1.0, metadata={"help": "For 'beam': by so many nats the true title shall be ahead."}
    )

    report: bool = field(
        default=True, metadata={"help": "Write a page about the run, report/report.html, at its end; with curves."}
    )

    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Log the mean of earlier losses for one that is not finite."}
    )

    def __post_init__(self) -> None:
        sizes = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        counts = (*sizes, "generation_num_beams", "early_stopping_patience", "sequence_num_beams")
        check_numbers(self, **dict.fromkeys(counts, 1), max_steps=-1)
        check_numbers(self, seed=0, dataloader_num_workers=0, generation_no_repeat_ngram_size=0, save_total_limit=0)
        rates = ("learning_rate", "weight_decay", "warmup_steps", "num_train_epochs")
        check_numbers(self, **dict.fromkeys((*rates, "logging_steps", "eval_steps", "save_steps"), 0.0))
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs == 0):
            raise ValueError(
                f"max_steps={self.max_steps} and num_train_epochs={self.num_train_epochs:g} make no update: say how "
                "many with one of them"
            )
        for name in ("logging", "eval", "save"):
            strategy, steps = (getattr(self, f"{name}_{what}") for what in ("strategy", "steps"))
            if getattr(strategy, "value", strategy) == "steps" and steps == 0:
                raise ValueError(f"{name}_steps=0 is no interval: give a number, or {name}_strategy='no'")
        self._choose_metric()
        self._choose_best_model()
        self.chooses_warmup = self.warmup_steps is None
        if self.warmup_steps is None:
            self.warmup_steps = WARMUP
        # transformers would ask for it, in bfloat16 and of several processes, where there is nothing but a CPU.
        if not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        if self.max_train_minutes is not None and not 0 < self.max_train_minutes < math.inf:
            raise ValueError(
                f"max_train_minutes={self.max_train_minutes:g} is no time to learn in: give a number above 0, or "
                "leave it out"
            )
        self._check_shares()
        self._say_what_means_nothing()
        check_numbers(self, r_drop=0.0)
        chosen = [name for name in ("r_drop", "sequence_objective", "soft_teachers") if getattr(self, name)]
        if len(chosen) > 1:
            first, second = (f"{name}={getattr(self, name)!r}" for name in chosen[:2])
            raise ValueError(
                f"{first} with {second}: a batch is read twice, or written, or learned from teachers; leave one out"
            )
        if not 0 <= (self.own_partner_share or 0) <= 1:
            raise ValueError(f"own_partner_share={self.own_partner_share} is a share of the updates: 0 to 1")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} would train the left-to-right direction only: "
                "use label_smoothing, which smooths both"
            )

    def _check_shares(self) -> None:
        """How many updates there is time for, nobody knows when the first is made."""
        names = [f"{name}_steps" for name in ("eval", "save") if getattr(self, f"{name}_strategy") == "steps"]
        for name in ("warmup_steps", *names):
            if self.max_train_minutes is not None and 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name):g} with max_train_minutes={self.max_train_minutes:g}: there is a "
                    "share of all updates only where their number is given; give a number of updates, or leave it out"
                )

    def _say_what_means_nothing(self) -> None:
        """Settings of a way to learn that was not asked for would be passed over without a word."""
        defaults = {each.name: each.default for each in fields(self)}
        ways = {name: "sequence_objective" for name in defaults if name.startswith("sequence_")}
        for name, way in {**ways, "soft_share": "soft_teachers"}.items():
            if not getattr(self, way) and getattr(self, name) != defaults[name]:
                logger.warning_once(f"{name}={getattr(self, name)!r} means nothing without {way}")

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
        elif metric.removeprefix("eval_") not in VALIDATION_METRICS:
            raise ValueError(
                f"metric_for_best_model={metric!r} is not measured in validation: use one of "
                f"{', '.join(VALIDATION_METRICS)}"
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


def settle_streaming(data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Makes arguments ready for a stream of pairs, whose number and lengths nobody knows in advance; with a word.

    Args:
        data_args: Its `streaming` is true.
        training_args: Changed in place.

    Raises:
        ValueError: On what a stream cannot do, naming the remedy.
    """
    if data_args.dataset_name or not data_args.train_file:
        raise ValueError(
            f"streaming=True reads files, and there is train_file={data_args.train_file} and dataset_name="
            f"{data_args.dataset_name!r}: name the files with train_file, or leave streaming out"
        )
    if training_args.max_steps <= 0:
        raise ValueError(
            f"streaming=True with max_steps={training_args.max_steps}: a stream has no end, and num_train_epochs none "
            "to count: say with max_steps how many updates to make"
        )
    if training_args.auto_find_batch_size:
        raise ValueError("streaming=True with auto_find_batch_size=True could not be resumed: leave the latter out")
    if training_args.ignore_data_skip:
        raise ValueError(
            "streaming=True with ignore_data_skip=True: a stream passes over what was trained on without encoding it, "
            "which takes little time; leave the latter out"
        )
    # Each process reads for itself: one that reads for all would have to encode for all, too.
    training_args.accelerator_config.dispatch_batches = False
    if training_args.train_sampling_strategy == "group_by_length":
        training_args.train_sampling_strategy = "random"
        logger.warning_once("streaming: batches hold pairs of any length, since pairs are not known in advance")
    for name in ("eval", "save"):
        if getattr(training_args, f"{name}_strategy") == "epoch":
            _go_by_updates(name, training_args)


def _go_by_updates(name: str, training_args: TrainingArguments) -> None:
    strategy = type(getattr(training_args, f"{name}_strategy"))("steps")
    setattr(training_args, f"{name}_strategy", strategy)
    # So that what is validated is saved.
    steps = training_args.save_steps
    setattr(training_args, f"{name}_steps", steps)
    logger.warning_once(
        f"streaming: there are no epochs to go by, so {name}_strategy is 'steps' and {name}_steps {steps:g}"
    )


__all__ = ["WARMUP", "DataArguments", "ModelArguments", "TrainingArguments", "settle_streaming"]
