"""What happens on the way of a training, beside its updates: callbacks of transformers' Trainer."""

from __future__ import annotations

import itertools
import math
import signal
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.utils import logging

from .configuration_bidir_seq2seq import BidirSeq2SeqConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.get_logger(__name__)

# The last updates, this share of them, in which the learning rate of "warmup_stable_decay" falls (docs/training.md).
DECAY_SHARE = 0.2
# torchrun passes on a Ctrl-C that the terminal has sent already: so soon after the first, a signal is the same one.
SAME_SIGNAL_SECONDS = 1.0


class ElapsedTimeCallback(TrainerCallback):
    """Adds `elapsed_seconds` of training, earlier runs of a resumed training included, to every log entry."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts the clock, where an earlier run left it."""
        before = max((entry.get("elapsed_seconds", 0.0) for entry in state.log_history), default=0.0)
        self.start = time.monotonic() - before

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reads the clock."""
        if state.log_history and hasattr(self, "start"):
            state.log_history[-1]["elapsed_seconds"] = round(time.monotonic() - self.start, 1)


class SharedProcessorsCallback(TrainerCallback):
    """Says once that other programs have the processors that the threads of a training on CPUs wait for.

    A thread of OpenMP's that has done its part waits for the others at full speed, for milliseconds: two trainings of
    two threads each on two processors may so be tens of times slower than one alone (`docs/training.md`). It shows in
    processor time: alone, a training gets all of the time that its threads ask for.

    Args:
        updates: How many updates are looked at together.
        share: Of the time asked for; less of it is worth a word.
    """

    def __init__(self, updates: int = 50, share: float = 0.8):
        self.updates, self.share = updates, share
        self.got = self.asked = 0.0
        self.seen = 0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts the clocks: what comes between updates waits for files, too."""
        self.start = time.monotonic(), time.process_time()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reads them."""
        threads = torch.get_num_threads()
        if args.n_gpu or threads == 1 or self.seen == self.updates:
            return
        self.seen += 1
        self.asked += threads * (time.monotonic() - self.start[0])
        self.got += time.process_time() - self.start[1]
        if self.seen == self.updates and self.got < self.share * self.asked:
            logger.warning_once(
                f"other programs are using the processors: the {threads} threads of this training get "
                f"{self.got / self.asked:.0%} of the time they ask for, and wait for each other. OMP_NUM_THREADS=1 or "
                "GOMP_SPINCOUNT=1000 before the command, and before that of any other training here, makes all faster"
            )


class PatienceCallback(EarlyStoppingCallback):
    """Early stopping that leaves out nothing of what ends a training, and that a resumed run goes on with.

    Before a model is finished the rate of "warmup_stable_decay" has to fall, and twins have to read what they write.
    If the patience ends before both have begun, they begin at once, and the training becomes one that was meant to be
    so long; once they have begun, it stops as any. A resumed run has waited as long as before.

    Args:
        early_stopping_patience: So many validations without a better one.
        own_partner_share: That of [`OwnPartnerCallback`]; 0 without it.

    Attributes:
        ends_at: The update after which the training ends, if that was made earlier; else `None`.
    """

    def __init__(self, early_stopping_patience: int = 1, own_partner_share: float = 0.0):
        super().__init__(early_stopping_patience)
        self.own_partner_share = own_partner_share
        self.ends_at: int | None = None

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
        before = state.stateful_callbacks.get(type(self).__name__, {})
        attributes = before.get("attributes", {})
        self.early_stopping_patience_counter = attributes.get("early_stopping_patience_counter", 0)
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience
        ends_at, patience = attributes.get("ends_at"), before.get("args", {}).get("early_stopping_patience", 0)
        if ends_at is not None and patience >= self.early_stopping_patience:
            self._end(ends_at, args, state, kwargs["lr_scheduler"])

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Counts; where the patience ends, stops, or lets begin what has not."""
        stopped = control.should_training_stop
        super().on_evaluate(args, state, control, metrics, **kwargs)
        stages = self._last_stages(args, state.max_steps)
        everything_has_begun = not stages or state.global_step > state.max_steps - min(stages)
        if stopped or not control.should_training_stop or everything_has_begun:
            return
        control.should_training_stop, self.early_stopping_patience_counter = False, 0
        totals = itertools.count(state.global_step)
        total = next(total for total in totals if total - max(self._last_stages(args, total)) >= state.global_step)
        if total < state.max_steps:
            self._end(total, args, state, kwargs["lr_scheduler"])

    def _last_stages(self, args: Any, total: int) -> list[int]:
        """How many of `total` updates each of the things takes that a training ends with."""
        last = [last_updates(self.own_partner_share, total)] if 0 < self.own_partner_share < 1 else []
        if falls_at_the_end(args):
            last.append(updates_of_falling_rate(args, total))
        return last

    def _end(self, update: int, args: Any, state: TrainerState, lr_scheduler: Any) -> None:
        logger.warning_once(
            f"no better validation for a while: the last stage begins, and the training ends after {update} updates "
            f"instead of {state.max_steps}; early_stopping_patience={self.early_stopping_patience}, a greater one "
            "waits longer"
        )
        self.ends_at = state.max_steps = update
        if falls_at_the_end(args):
            falling = updates_of_falling_rate(args, update)
            # They are partials of one function of transformers, which goes by these numbers.
            rates = lr_scheduler.lr_lambdas
            stable = update - falling - rates[0].keywords["num_warmup_steps"]
            stages = {"num_stable_steps": stable, "num_decay_steps": falling}
            lr_scheduler.lr_lambdas = [partial(rate.func, **{**rate.keywords, **stages}) for rate in rates]


class MovableEndCallback(ProgressCallback):
    """transformers' progress bar, for a training whose end may come earlier than was planned."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves the bar, and its end to where that is by now."""
        if self.training_bar is not None:
            self.training_bar.total = state.max_steps
        super().on_step_end(args, state, control, **kwargs)


class PunctualSaveCallback(TrainerCallback):
    """Saves when everything that happens at an update has happened, so that a resumed run repeats none of it.

    The log's running mean of the loss ends with a save, since a resumed run begins a new one; and a save at an epoch's
    last update, or the training's, waits for the epoch's end, where a validation may come.
    """

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Makes the run's folder, and looks for the best checkpoint in it: the folder may have been moved."""
        if args.should_save:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        find_best_checkpoint(Path(args.output_dir), state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """At the last update of an epoch or of the training nothing is saved yet."""
        self.waits = control.should_save and (is_whole(state.epoch) or control.should_training_stop)
        control.should_save = control.should_save and not self.waits
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves what has waited."""
        control.should_save = control.should_save or getattr(self, "waits", False)
        control.should_log = control.should_log or control.should_save
        self.waits = False


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
        start = state.max_steps - last_updates(self.share, state.max_steps)
        if state.global_step >= start:
            self.config.twin_partner = "own"
        if state.global_step == start:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None


class StopSignalCallback(TrainerCallback):
    """Saves and ends the training after SIGTERM or Ctrl-C. A second one ends the process at once.

    Use it as a context around the training. Of several processes all stop at the same update, an update after one of
    them was told to.

    Attributes:
        number: The signal that the training was ended by; `None` if it was not.
    """

    def __init__(self, accelerator: Accelerator | None = None):
        self.number: int | None = None
        self._noted, self._noted_at, self.pending, self.accelerator = 0, 0.0, 0, accelerator
        self._answer: torch.Tensor | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignalCallback:
        """Listens to the signals, which only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        """Gives the signals back to whom they belonged."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted and time.monotonic() - self._noted_at > SAME_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self._noted:
            self._noted, self._noted_at = number, time.monotonic()
            logger.warning(f"{signal.Signals(number).name}: saving after this update; once more to leave at once")

    def _agreed(self) -> int:
        """The signal that some process had noted at the update before, which all agree on; without waiting for it."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return self._noted
        answer = 0 if self._answer is None else int(self._answer.max())
        self._answer = self.accelerator.gather(torch.tensor([self._noted], device=self.accelerator.device))
        return answer

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops, unless a save waits for the epoch's end or for a validation that decides about it."""
        self.pending = self._agreed()
        if not is_whole(state.epoch):
            self._stop(args, control)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops; where that was done in the middle of an epoch, this is not its end, and nothing is due."""
        if self.number is not None:
            control.should_evaluate = control.should_save = False
        else:
            self._stop(args, control)

    def _stop(self, args: Any, control: TrainerControl) -> None:
        decides = control.should_evaluate and args.save_strategy == SaveStrategy.BEST
        if self.pending and not decides and not control.should_training_stop:
            self.number = self.pending
            control.should_log = control.should_save = control.should_training_stop = True


def is_whole(epoch: float) -> bool:
    """Whether so many epochs end with an update just made."""
    return epoch == int(epoch)


def last_updates(share: float, total: int) -> int:
    """How many of `total` updates the last ones are, of which there is to be this share: rounded up."""
    return math.ceil(share * total)


def updates_of_falling_rate(args: Any, total: int) -> int:
    """In how many of `total` updates the rate of "warmup_stable_decay" falls: as said, or the last fifth."""
    return (args.lr_scheduler_kwargs or {}).get("num_decay_steps", last_updates(DECAY_SHARE, total))


def falls_at_the_end(args: Any) -> bool:
    """Whether the rate falls when a training ends, whenever that is: not if it is said how long it stays."""
    kind, settings = args.lr_scheduler_type, args.lr_scheduler_kwargs or {}
    return kind == SchedulerType.WARMUP_STABLE_DECAY and "num_stable_steps" not in settings


def find_best_checkpoint(run: Path, state: TrainerState, unfinished: str | None = None) -> None:
    """Makes a run's state name its best checkpoint where it is or will be, also after the run's folder was moved.

    Args:
        run: The folder.
        state: The Trainer's, changed in place.
        unfinished: The name of a checkpoint that is about to be published there.
    """
    best = run / f"checkpoint-{state.best_global_step}"
    if state.best_global_step and (best.name == unfinished or best.is_dir()):
        state.best_model_checkpoint = str(best)


__all__ = [
    "ElapsedTimeCallback",
    "MovableEndCallback",
    "OwnPartnerCallback",
    "PatienceCallback",
    "PunctualSaveCallback",
    "SharedProcessorsCallback",
    "StopSignalCallback",
    "falls_at_the_end",
    "find_best_checkpoint",
    "is_whole",
    "last_updates",
    "updates_of_falling_rate",
]
