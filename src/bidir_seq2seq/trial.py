"""How fast a model learns on this machine: a trial of some updates."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .data import PairEncoder
from .ending import Pace
from .extras import extra
from .modeling_bidir_seq2seq import BidirSeq2SeqForConditionalGeneration
from .run_folder import pairs_per_update
from .streaming import PairStream, StreamCollator
from .trainer import TitleTrainer
from .training_arguments import TrainingArguments
from .unknown_words import TitleCollator

with extra("train"):
    from accelerate.utils import gather
    from datasets import Dataset

# The first updates allocate memory and choose kernels, and are not counted; so many more are enough.
UNCOUNTED, COUNTED = 2, 20


class _Stopwatch(TrainerCallback):
    """Times updates, and ends a training when they have taken long enough; all processes stop together."""

    def __init__(self, seconds: float):
        self.seconds, self.gone, self.updates = seconds, 0.0, 0

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts it once what is not counted is done, and then reads it."""
        if state.global_step == UNCOUNTED:
            self.start = time.monotonic()
        elif state.global_step > UNCOUNTED:
            gone = torch.tensor([time.monotonic() - self.start], device=args.device)
            # The slowest one's, which the others wait for.
            self.gone, self.updates = float(gather(gone).max()), state.global_step - UNCOUNTED
            control.should_training_stop |= self.gone >= self.seconds


def try_out(
    model: BidirSeq2SeqForConditionalGeneration,
    own_partner_share: float,
    pairs: Dataset | PairStream,
    encoder: PairEncoder,
    training_args: TrainingArguments,
    seconds: float,
) -> Pace:
    """Lets a model learn for some updates, all processes of the training taking part.

    Args:
        model: Learns, and is of no use afterwards.
        own_partner_share: The share of the updates in which its decoders will read what their twins write.
        pairs: Of the training; some are drawn.
        encoder: Makes ids of them.
        training_args: Those of the training; left as they are.
        seconds: After so many it ends, if it has not made 20 updates by then; once more for own writing.
    """
    if own_partner_share == 1:
        model.config.twin_partner = "own"
    args = copy.copy(training_args)
    args.max_steps, args.disable_tqdm, args.push_to_hub, args.report_to = UNCOUNTED + COUNTED, True, False, []
    args.eval_strategy = args.logging_strategy = IntervalStrategy.NO
    args.warmup_steps = 0
    args.save_strategy, args.load_best_model_at_end = SaveStrategy.NO, False
    encoded, collator = _some(pairs, encoder, args), StreamCollator(encoder, TitleCollator(encoder.tokenizer, model))

    def seconds_of_an_update() -> float:
        watch = _Stopwatch(seconds)
        # The same pairs in the same order each time.
        set_seed(args.seed)
        TitleTrainer(model, args, train_dataset=encoded, data_collator=collator, callbacks=[watch]).train()
        return watch.gone / watch.updates

    alone = seconds_of_an_update()
    if not 0 < own_partner_share < 1:
        return Pace(alone, own_partner_share)
    model.config.twin_partner = "own"
    return Pace(alone, own_partner_share, seconds_of_an_update() / alone)


def _some(pairs: Dataset | PairStream, encoder: PairEncoder, args: TrainingArguments) -> Dataset:
    """As many pairs as a trial reads at most, drawn at random where that is possible, as ids."""
    count = (UNCOUNTED + COUNTED) * pairs_per_update(args)
    if isinstance(pairs, PairStream):
        some = Dataset.from_dict(next(iter(pairs.iter(count))))
    else:
        drawn = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(args.seed))[:count]
        some = pairs.select(drawn.tolist())
    encoded, _ = encoder.encode(some)
    return encoded


__all__ = ["try_out"]
