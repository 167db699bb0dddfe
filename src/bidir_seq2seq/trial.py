"""How fast a model learns on this machine: a trial of some updates."""

from __future__ import annotations

import copy
import time
from dataclasses import fields
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .data import PairEncoder, encode_pairs
from .ending import Pace
from .extras import extra
from .modeling_bidir_seq2seq import BidirSeq2SeqForConditionalGeneration
from .run_folder import pairs_per_update
from .streaming import PairStream, StreamCollator
from .trainer import TitleTrainer
from .training_arguments import TrainingArguments
from .unknown_words import TitleCollator

with extra("train"):
    from datasets import Dataset

# The first updates allocate memory and choose kernels, and are not counted.
UNCOUNTED, COUNTED = 5, 20


class _Clock(TrainerCallback):
    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts it once what is not counted is done."""
        if state.global_step == UNCOUNTED:
            self.start = time.monotonic()


def try_out(
    model: BidirSeq2SeqForConditionalGeneration,
    own_partner_share: float,
    pairs: Dataset | PairStream,
    encoder: PairEncoder,
    training_args: TrainingArguments,
) -> Pace:
    """Lets a model learn for some updates, all processes of the training taking part; the slowest one's time.

    Args:
        model: Learns, and is of no use afterwards.
        own_partner_share: The share of the updates in which its decoders will read what their twins write.
        pairs: Of the training; some are drawn.
        encoder: Makes ids of them.
        training_args: Those of the training; left as they are.
    """
    if own_partner_share == 1:
        model.config.twin_partner = "own"
    seconds = _seconds_per_update(model, pairs, encoder, training_args)
    if not 0 < own_partner_share < 1:
        return Pace(seconds, own_partner_share)
    model.config.twin_partner = "own"
    return Pace(seconds, own_partner_share, _seconds_per_update(model, pairs, encoder, training_args) / seconds)


def _seconds_per_update(
    model: BidirSeq2SeqForConditionalGeneration,
    pairs: Dataset | PairStream,
    encoder: PairEncoder,
    training_args: TrainingArguments,
) -> float:
    count = (UNCOUNTED + COUNTED) * pairs_per_update(training_args)
    if isinstance(pairs, PairStream):
        some = Dataset.from_dict(next(iter(pairs.iter(count))))
    else:
        drawn = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:count]
        some = pairs.select(drawn.tolist())
    encoded, _ = encode_pairs(some, *(getattr(encoder, field.name) for field in fields(encoder)))
    args = copy.copy(training_args)
    args.max_steps, args.disable_tqdm, args.push_to_hub, args.report_to = UNCOUNTED + COUNTED, True, False, []
    args.eval_strategy = args.logging_strategy = IntervalStrategy.NO
    args.save_strategy, args.load_best_model_at_end = SaveStrategy.NO, False
    clock = _Clock()
    trainer = TitleTrainer(
        model=model,
        args=args,
        train_dataset=encoded,
        data_collator=StreamCollator(encoder, TitleCollator(encoder.tokenizer, model=model)),
        callbacks=[clock],
    )
    trainer.train()
    seconds = torch.tensor([(time.monotonic() - clock.start) / COUNTED], device=args.device)
    return float(trainer.accelerator.gather(seconds).max())


__all__ = ["try_out"]
