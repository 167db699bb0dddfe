"""Writes what twin decoders are to read of each other: titles by models that have not learned them.

    bidir-seq2seq partners settings.yaml --output_dir first_stage
    bidir-seq2seq train settings.yaml --model_name_or_path my_twins --train_file first_stage/training_pairs.jsonl \\
        --twin_partner written --output_dir second_stage

The first of two stages of training: the pairs are dealt out to folds, a model is trained on all folds but one, and
writes the titles of that one, from the left and from the right. They stand beside each pair then, in the columns
`l2r_title` and `r2l_title` (the pair itself in `source` and `target`, whatever its columns were before), and in the
second stage each decoder reads, beside true words of its own, what its twin wrote (after Zhou, Zhang and Zong 2019,
https://arxiv.org/abs/1905.04847, who have one model write what it has learned, as `--num_folds 1` does). All settings
of `train` are those of the models, and may stand in the same file. The same command goes on where it was stopped,
while titles are written as well as in training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..arguments import check_numbers, parse_arguments
from ..data import PARTNER_COLUMNS
from ..run_folder import fingerprint
from ..training import DataArguments, ModelArguments, TrainingArguments, train
from .distil import (
    PAIRS,
    VALIDATION,
    DistillationArguments,
    column_of,
    given_pairs,
    limits_of,
    refuse_processes,
    rows_of,
    write_pseudo_titles,
    write_rows,
)
from .train import leave_processes

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)


@dataclass
class PartnerArguments:
    """How the pairs are dealt out, and how titles are written."""

    num_folds: int = field(
        default=2,
        metadata={
            "help": "Parts of the pairs, each written by a model that is trained on the others. 1: a model writes "
            "what it has learned, which is nearly the true title, so that answers leak again."
        },
    )
    num_beams: int = field(default=1, metadata={"help": "Beams of each direction, which writes alone."})
    batch_size: int = field(default=32, metadata={"help": "Documents per batch, when titles are written."})
    num_processes: int = field(
        default=1, metadata={"help": "Processes that share the documents. A GPU each, if there are."}
    )

    def __post_init__(self) -> None:
        check_numbers(self, num_folds=1, num_beams=1, batch_size=1, num_processes=1)


def write_partners(
    args: PartnerArguments, model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> Path:
    """Trains a model for each fold, lets it write the fold's titles, and leaves all pairs with what was written.

    Args:
        args: How the pairs are dealt out, and how titles are written.
        model_args, data_args, training_args: Of each model, as for [`train`]; each gets a folder in the output folder.

    Returns:
        The file of pairs, in their order.

    Raises:
        ValueError: On arguments that do not go together, or as [`train`].
    """
    refuse_processes("for a second stage in several")
    if model_args.decoder_directions not in (None, "both"):
        raise ValueError(
            f"decoder_directions={model_args.decoder_directions!r}: partners are titles from both sides, which a "
            "model with one direction does not write: leave it out"
        )
    output_dir = Path(training_args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    gold, validation = given_pairs(data_args)
    if len(gold) < 2 * args.num_folds:
        raise ValueError(f"num_folds={args.num_folds} for {len(gold)} pairs leaves too few in a fold: use fewer folds")
    if validation is not None:
        write_rows(output_dir / VALIDATION, rows_of(validation))
    # Which decoders never read each other is quickest, and each of them writes alone.
    model_args = replace(model_args, decoder_directions="both", twin_partner=model_args.twin_partner or "none")
    if model_args.model_name_or_path is not None and args.num_folds > 1:
        logger.warning(
            f"each fold's model goes on from {model_args.model_name_or_path}: if that has learned these pairs, it has "
            "seen the titles that it is to write"
        )
    titles = {}
    for fold in range(args.num_folds):
        folder = output_dir / f"fold-{fold}"
        folder.mkdir(exist_ok=True)
        logger.warning(f"fold {fold + 1} of {args.num_folds}")
        learned = [row for row in range(len(gold)) if row % args.num_folds != fold or args.num_folds == 1]
        write_rows(folder / PAIRS, rows_of(gold.select(learned)))
        files: dict[str, Any] = {"train_file": [str(folder / PAIRS)]}
        if validation is not None:
            files["validation_file"] = [str(output_dir / VALIDATION)]
        own_args = copy.copy(training_args)
        # It is a model on the way, with checkpoints of its own.
        own_args.output_dir, own_args.push_to_hub, own_args.resume_from_checkpoint = str(folder), False, None
        train(model_args, DataArguments(**files, **limits_of(data_args)), own_args)
        documents = gold.select(range(fold, len(gold), args.num_folds))
        for column in PARTNER_COLUMNS:
            titles[fold, column] = _write_fold(args, folder, documents, column)
    return _merge(args.num_folds, gold, titles, output_dir)


def _write_fold(args: PartnerArguments, folder: Path, documents: Dataset, column: str) -> Path:
    direction = column.removesuffix("_title")
    writing = DistillationArguments(
        teacher_name_or_path=str(folder),
        teacher_batch_size=args.batch_size,
        teacher_processes=args.num_processes,
        decoding_direction=direction,
        num_beams=args.num_beams,
    )
    sources = (text or "" for text in column_of(documents, "source"))
    path = folder / f"{column}s.txt"
    return write_pseudo_titles(writing, sources, fingerprint(documents.iter(1000)), path, f"{direction} titles")


def _merge(num_folds: int, gold: Dataset, titles: dict[tuple[int, str], Path], output_dir: Path) -> Path:
    """Leaves all pairs with the titles of their folds, and says how often those are the true ones."""
    lines = {place: path.read_text(encoding="utf-8").split("\n")[:-1] for place, path in titles.items()}
    is_true = dict.fromkeys(PARTNER_COLUMNS, 0)

    def rows() -> Iterator[dict[str, str]]:
        for number, row in enumerate(rows_of(gold)):
            fold, place = number % num_folds, number // num_folds
            written = {column: lines[fold, column][place] for column in PARTNER_COLUMNS}
            for column, title in written.items():
                is_true[column] += title == " ".join(row["target"].split())
            yield {**row, **written}

    number = write_rows(output_dir / PAIRS, rows())
    shares = ", ".join(f"{column} {count / number:.0%}" for column, count in is_true.items())
    logger.warning(
        f"{output_dir / PAIRS}: {number:,} pairs; titles that are the true ones: {shares}. Train on with --train_file "
        f"{output_dir / PAIRS} --twin_partner written --model_name_or_path and a model that writes already"
    )
    return output_dir / PAIRS


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    arguments = parse_arguments(
        PartnerArguments, ModelArguments, DataArguments, TrainingArguments, description=__doc__, args=argv
    )
    print(write_partners(*arguments))
    leave_processes()


if __name__ == "__main__":
    main()
