"""Trains a title model from pairs of texts.

    bidir-seq2seq train --train_file train.jsonl --validation_file validation.jsonl --output_dir my_model
    bidir-seq2seq train --train_file corpus.en corpus.de --output_dir my_model
    bidir-seq2seq train settings.yaml
    bidir-seq2seq train settings.yaml --learning_rate 5e-4 --use_cpu
    torchrun --nproc_per_node 2 -m bidir_seq2seq train settings.yaml

All settings may stand in one YAML or JSON file; flags after it override it. A run that was stopped goes on from its
last complete checkpoint when the same command is given again; in a folder of a run with other settings it does not.
"""

import torch.distributed

from ..arguments import parse_arguments
from ..training import DataArguments, ModelArguments, TrainingArguments, train


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    arguments = parse_arguments(ModelArguments, DataArguments, TrainingArguments, description=__doc__, args=argv)
    for name, value in train(*arguments).items():
        print(f"{name:32} {value:.4f}")
    leave_processes()


def leave_processes() -> None:
    """Of several processes each lets go of the others before it ends, as torch asks; else one may be aborted."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
