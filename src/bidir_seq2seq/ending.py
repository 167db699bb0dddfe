"""How a training ends: what comes last, and how an end that comes early leaves none of it out.

Before a model is finished the rate of "warmup_stable_decay" has to fall, and twins have to read what they write. Both
take a share of all updates. A training that ends earlier than was planned, after so many validations without a better
model or in so many minutes, begins both in time, and becomes one that was meant to be so long.
"""

from __future__ import annotations

import itertools
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SchedulerType
from transformers.utils import logging

from .callbacks import Agreement, seconds_before
from .configuration_bidir_seq2seq import BidirSeq2SeqConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.get_logger(__name__)

# The last updates, this share of them, in which the learning rate of "warmup_stable_decay" falls (docs/training.md).
DECAY_SHARE = 0.2
# An update in which decoders read what their twins write takes about so many times as long (docs/bidirectional.md).
OWN_PARTNER_COST = 1.5


class OwnPartnerCallback(TrainerCallback):
    """Lets decoders read what their twins write themselves (`twin_partner="own"`) in the last updates.

    The best model is then one of these: an earlier one could not be searched in both directions at once.

    Args:
        config: The model's.
        share: Of all updates.

    Raises:
        ValueError: If the model cannot learn so.
    """

    def __init__(self, config: BidirSeq2SeqConfig, share: float):
        if config.decoder_directions != "both":
            raise ValueError(
                f"own_partner_share={share} is for decoders that read each other, and this model has "
                f"decoder_directions={config.decoder_directions!r}: leave it out"
            )
        # The config knows what else goes together.
        type(config).from_dict({**config.to_dict(), "twin_partner": "own"})
        self.config, self.share = config, share

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Goes by the number of the update, so that a resumed run changes at the same one."""
        start = self._start(state)
        if state.global_step >= start:
            self.config.twin_partner = "own"
        if state.global_step == start:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Where the last checkpoint was gone on from, no update has begun."""
        if state.global_step > self._start(state):
            self.config.twin_partner = "own"

    def _start(self, state: TrainerState) -> int:
        return state.max_steps - last_updates(self.share, state.max_steps)


class Pace(NamedTuple):
    """How fast a model learns.

    Attributes:
        seconds: Of an update.
        own_partner_share: The share of all updates in which decoders read what their twins write.
        own_partner_cost: So many times as long takes such an update.
    """

    seconds: float
    own_partner_share: float = 0.0
    own_partner_cost: float = OWN_PARTNER_COST

    def updates_in(self, seconds: float, before: int = 0) -> int:
        """How many updates a training comes to, rounded; one at least.

        Args:
            seconds: That it may still take.
            before: Updates that it has made, none of them beside own writing.
        """
        # Where all are, they are what has been timed.
        extra = (self.own_partner_cost - 1) * self.own_partner_share if self.own_partner_share < 1 else 0.0
        return max(1, round((before + seconds / self.seconds) / (1 + extra)))


class EarlyEnd:
    """What moves the end of a training forward, as a part of a callback that knows when.

    Attributes:
        own_partner_share: That of [`OwnPartnerCallback`]; 0 without it.
        ends_at: The update after which the training ends, if that was made earlier; else `None`.
    """

    own_partner_share: float
    ends_at: int | None = None

    def last_stages(self, args: Any, total: int) -> list[int]:
        """How many of `total` updates each of the things takes that a training ends with."""
        last = [last_updates(self.own_partner_share, total)] if 0 < self.own_partner_share < 1 else []
        if falls_at_the_end(args):
            last.append(updates_of_falling_rate(args, total))
        return last

    def last_before(self, args: Any, total: int) -> int:
        """After which of `total` updates the first of the last stages begins; without any, the last update."""
        return total - max(self.last_stages(args, total), default=1)

    def earliest_end(self, args: Any, update: int) -> int:
        """The least number of updates of a training whose last stages have not begun after this one."""
        totals = itertools.count(update + 1)
        return next(total for total in totals if self.last_before(args, total) >= update)

    def end(self, update: int, why: str, args: Any, state: TrainerState, lr_scheduler: Any) -> None:
        """Lets the training end after this update, with a word about why."""
        logger.warning_once(f"{why}: what a training ends with begins, and this one ends after {update} updates")
        self.ends_at = state.max_steps = update
        if falls_at_the_end(args):
            falling = updates_of_falling_rate(args, update)
            # They are partials of one function of transformers, which goes by these numbers.
            rates = lr_scheduler.lr_lambdas
            stable = stable_updates(update, rates[0].keywords["num_warmup_steps"], falling)
            stages = {"num_stable_steps": stable, "num_decay_steps": falling}
            lr_scheduler.lr_lambdas = [partial(rate.func, **{**rate.keywords, **stages}) for rate in rates]

    def end_of_before(self, limit: str, state: TrainerState) -> tuple[dict, int | None]:
        """What a resumed run's checkpoint knew of this callback, and the end that it had set, if that still holds.

        It does not if the limit, an attribute of this name, is greater now.
        """
        before = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step else {}
        attributes = before.get("attributes", {})
        holds = before.get("args", {}).get(limit, -math.inf) >= getattr(self, limit)
        return attributes, attributes.get("ends_at") if holds else None


class PatienceCallback(EarlyEnd, EarlyStoppingCallback):
    """Early stopping that leaves out nothing of what ends a training, and that a resumed run goes on with.

    If the patience ends before all that comes last has begun, that begins at once; once it has, the training stops as
    any. A resumed run has waited as long as before.

    Args:
        early_stopping_patience: So many validations without a better one.
        own_partner_share: That of [`OwnPartnerCallback`]; 0 without it.
    """

    def __init__(self, early_stopping_patience: int = 1, own_partner_share: float = 0.0):
        super().__init__(early_stopping_patience)
        self.own_partner_share = own_partner_share

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        args = {name: getattr(self, name) for name in ("early_stopping_patience", "own_partner_share")}
        attributes = {name: getattr(self, name) for name in ("early_stopping_patience_counter", "ends_at")}
        return {"args": args, "attributes": attributes}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Takes count and end from the checkpoint, but not the patience: that may have been changed."""
        super().on_train_begin(args, state, control, **kwargs)
        if not state.global_step:
            return
        attributes, ends_at = self.end_of_before("early_stopping_patience", state)
        self.early_stopping_patience_counter = attributes.get("early_stopping_patience_counter", 0)
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience
        if ends_at is not None:
            self.end(ends_at, "no better validation for a while, before", args, state, kwargs["lr_scheduler"])

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Counts; where the patience ends, stops, or lets begin what has not."""
        stopped = control.should_training_stop
        super().on_evaluate(args, state, control, metrics, **kwargs)
        stages = self.last_stages(args, state.max_steps)
        everything_has_begun = not stages or state.global_step > state.max_steps - min(stages)
        if stopped or not control.should_training_stop or everything_has_begun:
            return
        control.should_training_stop, self.early_stopping_patience_counter = False, 0
        total = self.earliest_end(args, state.global_step)
        if total < state.max_steps:
            why = (
                f"no better validation for a while (early_stopping_patience={self.early_stopping_patience}, a greater "
                "one waits longer)"
            )
            self.end(total, why, args, state, kwargs["lr_scheduler"])


class TimeLimitCallback(EarlyEnd, TrainerCallback, ExportableState):
    """Ends a training in time, with all that ends one.

    After each update it reckons how many there is time for, which is where the training ends, if that is earlier than
    was planned. When the first of the last stages begins, the end stays where it is by then: it may come some percent
    too early or too late, and the model is, bit by bit, that of a training of so many updates. A resumed run has had
    the time that was spent before it was stopped.

    Args:
        seconds: Of the whole training, validations on its way included.
        own_partner_share: That of [`OwnPartnerCallback`]; 0 without it.
        own_partner_cost: So many times as long takes an update of that share. A resumed run has it from before.
        spent: Seconds that have gone before the first update.
        accelerator: The Trainer's: its processes end at the same update.
    """

    def __init__(
        self,
        seconds: float,
        own_partner_share: float = 0.0,
        own_partner_cost: float = OWN_PARTNER_COST,
        spent: float = 0.0,
        accelerator: Accelerator | None = None,
    ):
        self.seconds, self.own_partner_share, self.spent = seconds, own_partner_share, spent
        self.own_partner_cost = own_partner_cost
        self.agreement = Agreement(accelerator)

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        args = {"seconds": self.seconds, "own_partner_share": self.own_partner_share}
        return {"args": args, "attributes": {"ends_at": self.ends_at, "own_partner_cost": self.own_partner_cost}}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts the clock; a resumed run whose end is set keeps it."""
        self.planned, self.first = state.max_steps, state.global_step
        self.start, self.spent = time.monotonic(), self.spent + seconds_before(state)
        attributes, ends_at = self.end_of_before("seconds", state)
        self.own_partner_cost = attributes.get("own_partner_cost", self.own_partner_cost)
        if ends_at is not None and ends_at < self.planned:
            self.end(ends_at, "the time was nearly over, before", args, state, kwargs["lr_scheduler"])

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves the end to where it will be, until a last stage has begun."""
        update = state.global_step
        gone = time.monotonic() - self.start
        pace = Pace(gone / (update - self.first), self.own_partner_share, self.own_partner_cost)
        possible = pace.updates_in(self.seconds - self.spent - gone, before=update)
        # The processes' clocks differ.
        possible = self.agreement.greatest(possible)
        if update > self.last_before(args, state.max_steps) or not possible:
            return
        total = min(self.planned, possible)
        if update > self.last_before(args, total):
            # It is looked for only here: that takes the longer, the more updates there have been.
            total = self.earliest_end(args, update)
        state.max_steps = total
        if total < self.planned and update >= self.last_before(args, total):
            why = f"the time is nearly over (max_train_minutes={self.seconds / 60:g})"
            self.end(total, why, args, state, kwargs["lr_scheduler"])


def last_updates(share: float, total: int) -> int:
    """How many of `total` updates the last ones are, of which there is to be this share: rounded up."""
    return math.ceil(share * total)


def updates_of_falling_rate(args: Any, total: int) -> int:
    """In how many of `total` updates the rate of "warmup_stable_decay" falls: as said, or the last fifth."""
    return (args.lr_scheduler_kwargs or {}).get("num_decay_steps", last_updates(DECAY_SHARE, total))


def stable_updates(total: int, warmup: int, falling: int) -> int:
    """How many of `total` updates the rate stays at its peak for; with a word if it does not even come there."""
    stable = total - warmup - falling
    if stable < 0:
        logger.warning_once(
            f"of {total} updates the learning rate would rise in {warmup} and fall in {falling}: it does not come to "
            f"its peak. Give less warmup_steps, such as {total // 2}, or leave them out"
        )
    return stable


def falls_at_the_end(args: Any) -> bool:
    """Whether the rate falls when a training ends, whenever that is: not if it is said how long it stays."""
    kind, settings = args.lr_scheduler_type, args.lr_scheduler_kwargs or {}
    return kind == SchedulerType.WARMUP_STABLE_DECAY and "num_stable_steps" not in settings


__all__ = [
    "OWN_PARTNER_COST",
    "EarlyEnd",
    "OwnPartnerCallback",
    "Pace",
    "PatienceCallback",
    "TimeLimitCallback",
    "falls_at_the_end",
    "last_updates",
    "stable_updates",
    "updates_of_falling_rate",
]
