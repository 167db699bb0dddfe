"""Learns from held-out pairs how what a model proposes is ranked best, and keeps it in the model.

    bidir-seq2seq tune my_model --validation_file validation.jsonl
    bidir-seq2seq tune my_model --validation_file dev.en dev.de --metric bleu --proposals l2r+r2l

Prints the weights of each direction's log-probability, of what titles have in common and of their length, and what
such weights are worth: chosen on one half of the pairs, tried on the other. If that is more than the model's own way
of writing gives, and not by chance, they become its own ranking (`generation_config.json`), with these proposals;
--dry_run leaves the model as it is. Candidates are what the model's directions find, titles that they draw at random,
and what is put together of the best, where most is to be found, though writing then takes three to six times as long.
--proposals l2r+r2l leaves what is drawn out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from ..allocator import keep_freed_memory
from ..arguments import check_numbers, parse_arguments
from ..evaluation import load_test_pairs
from ..loading import load_model_and_tokenizer
from ..manifest import renew_manifest
from ..metrics import Tokenization
from ..proposals_bidir_seq2seq import WITH_SAMPLES
from ..rank_tuning import FEW_PAIRS, METRICS, tune_ranking, write_candidates

# What candidates were written by, and is stored with the weights.
KEPT = ("proposals", "consensus_samples", "num_beams")


@dataclass
class TuneArguments:
    """What to tune, on what, and for what."""

    model_name_or_path: str = field(metadata={"help": "Folder of a model; also as the first argument."})
    validation_file: list[str] = field(
        metadata={
            "help": "Held-out pairs, some hundreds: a file of rows, or two of plain text. Not those of the test."
        }
    )
    metric: str = field(
        default="rougeL",
        metadata={"help": "What is to become better; wer for pronunciations.", "choices": list(METRICS)},
    )
    source_column: str | None = field(default=None, metadata={"help": "Column of the documents. Default: by name."})
    target_column: list[str] | None = field(
        default=None, metadata={"help": "Column(s) of references. Default: by name."}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of validation_file, such as cp1252. Default: found out."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Use only the first so many pairs."})
    proposals: str | None = field(
        default=None,
        metadata={
            "help": "As for generate. Default: each direction's search, and what is drawn and spliced, such as "
            "l2r+r2l+drawn+spliced."
        },
    )
    consensus_samples: int | None = field(
        default=None, metadata={"help": "Titles that each direction draws. Default: the model's own, 16."}
    )
    num_beams: int | None = field(default=None, metadata={"help": "Beams per direction. Default: the model's own."})
    num_trials: int = field(default=2000, metadata={"help": "How many weights to try."})
    seed: int = field(default=0, metadata={"help": "Random seed of the weights."})
    tokenization: str = field(
        default="auto", metadata={"help": "What a token is for the metric.", "choices": ["auto", "char", "word"]}
    )
    batch_size: int = field(default=32, metadata={"help": "Documents per batch."})
    device: str | None = field(
        default=None, metadata={"help": "Such as cpu or cuda:1. Default: a GPU if there is one."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Say what was found and leave the model as it is."})

    def __post_init__(self) -> None:
        check_numbers(self, max_samples=1, num_beams=1, num_trials=1, batch_size=1, seed=0, consensus_samples=0)


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    (args,) = parse_arguments(TuneArguments, description=__doc__, args=argv, first="model_name_or_path")
    folder = Path(args.model_name_or_path)
    if not args.dry_run and not folder.is_dir():
        raise ValueError(
            f"model_name_or_path={args.model_name_or_path!r} is no folder that the ranking could be kept in: download "
            "it first, or give --dry_run"
        )
    keep_freed_memory()
    model, tokenizer = load_model_and_tokenizer(args.model_name_or_path, device=args.device)
    pairs = load_test_pairs(args.validation_file, args.source_column, args.target_column, args.encoding, "validation")
    pairs = pairs.select(range(min(args.max_samples or len(pairs), len(pairs))))
    settings = {name: value for name in KEPT if (value := getattr(args, name)) is not None}
    settings.setdefault("proposals", _everything(model, args.consensus_samples))
    pool = write_candidates(
        model,
        tokenizer,
        pairs,
        args.metric,
        args.batch_size,
        cast(Tokenization, args.tokenization),
        progress=True,
        **settings,
    )
    found = tune_ranking(pool, args.num_trials, args.seed)
    print(f"weights: {found.weights}")
    test = found.difference
    print(
        f"{args.metric} of {found.pairs} pairs: {found.before:.2f} as the model writes, {found.tuned:.2f} by weights "
        f"that other pairs chose: {test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}] p={test.p_value:.4f}"
    )
    if found.pairs < FEW_PAIRS:
        print(f"{found.pairs} pairs are too few to tell, give some hundreds: the model is left as it is")
    elif not found.is_better:
        print("no better, as far as these pairs tell: the model is left as it is")
    elif not args.dry_run:
        config = model.generation_config
        # An older checkpoint's has no place for them.
        config.update(allow_custom_entries=True, **settings, ranking=found.weights, joint_rescoring=False)
        config.save_pretrained(folder)
        renew_manifest(folder)
        print(f"{folder}: generation_config.json ranks by these weights now")


def _everything(model: PreTrainedModel, consensus_samples: int | None) -> str:
    """What a model can propose; the search of twins that read each other finds little that they do not find alone."""
    directions = getattr(model.config, "decoder_directions", "l2r")
    searches = ["l2r", "r2l"] if directions == "both" else [directions]
    return "+".join([*searches, *(() if consensus_samples == 0 else WITH_SAMPLES)])


if __name__ == "__main__":
    main()
