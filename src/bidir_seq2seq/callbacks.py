"""What happens on the way of a training, beside its updates: callbacks of transformers' Trainer."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from .training_arguments import WARMUP

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.get_logger(__name__)

# torchrun passes on a Ctrl-C that the terminal has sent already: so soon after the first, a signal is the same one.
SAME_SIGNAL_SECONDS = 1.0


class ElapsedTimeCallback(TrainerCallback):
    """Adds `elapsed_seconds` of training, earlier runs of a resumed training included, to every log entry."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts the clock, where an earlier run left it."""
        self.start = time.monotonic() - seconds_before(state)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reads the clock."""
        if state.log_history and hasattr(self, "start"):
            state.log_history[-1]["elapsed_seconds"] = round(time.monotonic() - self.start, 1)


class WarmupCallback(TrainerCallback, ExportableState):
    """Keeps in checkpoints how many warm-up updates were chosen, as a run that is made longer goes on with them."""

    def __init__(self, warmup_steps: float):
        self.warmup_steps = warmup_steps

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        return {"args": {"warmup_steps": self.warmup_steps}, "attributes": {}}

    @classmethod
    def before(cls, checkpoint: str) -> float:
        """The number that a checkpoint's run began with; of older ones, which do not tell, the default of the time."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        return state.stateful_callbacks.get(cls.__name__, {}).get("args", {}).get("warmup_steps", WARMUP)


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


class MovableEndCallback(ProgressCallback):
    """transformers' progress bar, for a training whose end may move."""

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


class Agreement:
    """A number that all processes go by, where each has one of its own; nobody waits for it.

    Args:
        accelerator: The Trainer's; `None` for one process.
    """

    def __init__(self, accelerator: Accelerator | None = None):
        self.accelerator = accelerator
        self._answer: torch.Tensor | None = None

    def greatest(self, number: int) -> int:
        """The greatest number that was given the time before, 0 the first time; of one process the one given now."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return number
        answer = 0 if self._answer is None else int(self._answer.max())
        self._answer = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return answer


class StopSignalCallback(TrainerCallback):
    """Saves and ends the training after SIGTERM or Ctrl-C. A second one ends the process at once.

    Use it as a context around the training. Of several processes all stop at the same update, an update after one of
    them was told to.

    Attributes:
        number: The signal that the training was ended by; `None` if it was not.
    """

    def __init__(self, accelerator: Accelerator | None = None):
        self.number: int | None = None
        self._noted, self._noted_at, self.pending = 0, 0.0, 0
        self.agreement = Agreement(accelerator)
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

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops, unless a save waits for the epoch's end or for a validation that decides about it."""
        self.pending = self.agreement.greatest(self._noted)
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


def seconds_before(state: TrainerState) -> float:
    """How long earlier runs of a resumed training have trained, by its log."""
    return max((entry.get("elapsed_seconds", 0.0) for entry in state.log_history), default=0.0)


def is_whole(epoch: float) -> bool:
    """Whether so many epochs end with an update just made."""
    return epoch == int(epoch)


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
    "Agreement",
    "ElapsedTimeCallback",
    "MovableEndCallback",
    "PunctualSaveCallback",
    "SharedProcessorsCallback",
    "StopSignalCallback",
    "WarmupCallback",
    "find_best_checkpoint",
    "is_whole",
    "seconds_before",
]
