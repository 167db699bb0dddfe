"""transformers' Trainer, with an order of pairs that a resumed run repeats and an eye on what is not finite.

transformers has no public hook for some of this. [`TitleTrainer`] overrides these private methods of its Trainer, and
calls `_get_learning_rate` (a test holds them to the parameters that are passed on):

* `_get_train_sampler`: the order of the pairs depends on seed and epoch alone;
* `_run_epoch`: a run that has ended makes no further update;
* `_get_grad_norm`: the last look at the gradients before the optimizer takes them;
* `_save_checkpoint`, `_get_output_dir`, `_push_from_checkpoint`: a checkpoint is written aside;
* `_load_best_model`: the best checkpoint may have been damaged since.
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy, SchedulerType
from transformers.utils import logging

from .configuration_bidir_seq2seq import BidirSeq2SeqConfig
from .extras import extra
from .kernels_bidir_seq2seq import is_read_at_once
from .run_folder import (
    UNFINISHED,
    checkpoint_damage,
    pairs_per_update,
    publish_checkpoint,
    remove_old_checkpoints,
    told_in_a_line,
)
from .sequence_training import BeamInputs, RiskInputs

with extra("train"):
    # Without it there is no Trainer, and transformers does not say why.
    from accelerate import Accelerator
    from accelerate.utils import send_to_device
    from transformers import Seq2SeqTrainer

logger = logging.get_logger(__name__)

# Updates in a row that may have a gradient that is not finite. float16's loss scaling overflows by design, and skips
# updates itself until its scale fits.
MAX_BAD_UPDATES, MAX_BAD_UPDATES_FP16 = 3, 30
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


class EpochLengthSampler(Sampler[int]):
    """Groups pairs of like length, in an order that depends on the seed and the epoch alone.

    transformers' sampler draws from the common random state, which is another one after a training is resumed; and it
    goes from long texts to short ones, again and again. Here the batches are its, but their order is drawn, too. The
    first one still holds the longest text, so that a training that needs too much memory fails at once.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        indices = torch.as_tensor(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
        first, *batches = indices.split(self.batch_size)
        # One that is not full stays the last, or all batches after it would be cut elsewhere.
        full = len(self) // self.batch_size - 1
        drawn = torch.randperm(max(full, 0), generator=generator).tolist()
        order = [first, *(batches[place] for place in drawn), *batches[len(drawn) :]]
        return iter(torch.cat(order).tolist())


class EpochCallback(TrainerCallback):
    """Tells the sampler the epoch; accelerate does not when it skips the batches before a checkpoint."""

    def __init__(self, sampler: EpochLengthSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The epoch as a whole number; resumed in its middle, it is the same one."""
        self.sampler.epoch = int(state.epoch or 0)


class PatienceCallback(EarlyStoppingCallback):
    """Early stopping that, in a resumed run, has waited as long as before."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Takes the count from the checkpoint, but not the patience: that may have been changed."""
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step:
            before = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
            self.early_stopping_patience_counter = before.get("early_stopping_patience_counter", 0)
            control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience


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
        start = state.max_steps - math.ceil(self.share * state.max_steps)
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


def _give_rate(optimizer: torch.optim.Optimizer, weights: set[nn.Parameter], rate: float) -> None:
    """Lets weights learn at a rate of their own, whatever else their groups say."""
    for group in list(optimizer.param_groups):
        theirs = [weight for weight in group["params"] if weight in weights]
        group["params"] = [weight for weight in group["params"] if weight not in weights]
        optimizer.add_param_group({**group, "params": theirs, "lr": rate})


def is_whole(epoch: float) -> bool:
    """Whether so many epochs end with an update just made."""
    return epoch == int(epoch)


class TitleTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer that skips updates which are not finite, and stops when they do not end.

    A single bad batch is left out; weights, checkpoints and logs never hold NaN or infinity. A checkpoint is whole or
    not there.

    Args:
        sequence_inputs: What has the model write before each update, to learn from that. Default: nothing.

    Raises:
        ValueError: After three such updates in a row, on a validation loss that is not finite, and before a checkpoint
            with weights that are not finite.
        OSError: If a checkpoint cannot be saved; in one line, with what still stands.
    """

    def __init__(self, *args: Any, sequence_inputs: RiskInputs | BeamInputs | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sequence_inputs = sequence_inputs
        self._aside: Path | None = None
        self._batches: deque[dict] = deque(maxlen=self.args.gradient_accumulation_steps)
        # On the device, where counting costs no waiting: bad updates in a row up to now, and the most there have been.
        self._bad_updates = torch.zeros((), device=self.args.device)
        self._most_bad_updates = torch.zeros((), device=self.args.device)
        self.add_callback(PunctualSaveCallback())

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # `train_dataset` has lost the column of lengths, which the model does not take.
        lengths = self.train_dataset[self.args.length_column_name]
        # What one update reads, so that its pairs are the same however many processes and steps it is divided into.
        args, batch_size = self.args, pairs_per_update(self.args)
        seed = args.seed if args.data_seed is None else args.data_seed
        sampler = EpochLengthSampler(lengths, batch_size, seed)
        self.add_callback(EpochCallback(sampler))
        return sampler

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As every Trainer's; a pretrained encoder has a learning rate of its own (`encoder_learning_rate`)."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        encoder = self.model.get_encoder() if hasattr(self.model, "get_encoder") else None
        reader = getattr(encoder, "pretrained", None)
        rate = getattr(self.args, "encoder_learning_rate", None)
        if is_new and reader is not None and rate is not None:
            _give_rate(optimizer, set(reader.model.parameters()), rate)
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """As every Trainer's; "warmup_stable_decay" needs no `num_decay_steps`: by default the last fifth are."""
        given = self.args.lr_scheduler_kwargs
        if self.args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            falling = math.ceil(DECAY_SHARE * num_training_steps)
            self.args.lr_scheduler_kwargs = {"num_decay_steps": falling, **(given or {})}
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        finally:
            # Of another number of updates it would be another one.
            self.args.lr_scheduler_kwargs = given

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer would make one update more whenever a run that has ended is started again.
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of a batch of `input_ids` `[B, S]` and `labels` `[B, T]`.

        One that is not finite counts as 0 in the mean of the log.
        """
        self._batches.append(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        return loss if self.args.logging_nan_inf_filter else torch.where(loss.isfinite(), loss, 0.0)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; in training of what the model writes of the batch, if that is asked for."""
        if self.sequence_inputs is not None and model.training:
            inputs = self.sequence_inputs(self.accelerator.unwrap_model(model), inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | torch.Tensor | None = None) -> float | torch.Tensor:
        # Nothing here makes a GPU wait: the host looks at the counts when something is logged or saved, and waits
        # anyway. On a CPU it has them at once. The norm is the same in every process, since they share gradients by
        # then, so that all leave out the same updates; a loss that is not finite has such a gradient.
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        bad = ~torch.as_tensor(grad_norm, device=self.args.device).isfinite()
        self._bad_updates = (self._bad_updates + 1) * bad
        self._most_bad_updates = torch.maximum(self._most_bad_updates, self._bad_updates)
        if is_read_at_once(self._bad_updates):
            self._look_at_updates(self.state.global_step + 1)
        if not self.args.fp16:
            self._leave_out(model, bad)
        return grad_norm

    def _leave_out(self, model: nn.Module, bad: torch.Tensor) -> None:
        """Keeps the optimizer from an update if `bad`, a scalar `[]`, is true."""
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            # As the loss scaling of float16 does it: a fused optimizer looks at this on the device.
            optimizer.found_inf = bad.float()
        elif bad:
            # Another optimizer has to be kept from it by the host, which waits for `bad`.
            model.zero_grad(set_to_none=True)

    def _look_at_updates(self, update: int) -> None:
        most = int(self._most_bad_updates)
        if most >= (MAX_BAD_UPDATES_FP16 if self.args.fp16 else MAX_BAD_UPDATES):
            raise self._diverged(f"update {update}: {most} updates in a row had a loss", self._bad_pairs())

    def _bad_pairs(self) -> str:
        """The pairs of the last update whose loss by itself is not finite, in words for a message."""
        pairs = []
        for batch in send_to_device(list(self._batches), self.args.device):
            for row in range(len(batch["labels"])):
                alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
                with torch.no_grad():
                    finite = bool(self.model(**alone)["loss"].isfinite())
                if not finite:
                    pairs.append(repr(self._beginning(batch["input_ids"][row])))
        if not pairs:
            return ""
        more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        return f"; of the last pairs not finite by themselves: {', '.join(pairs[:3])}{more}"

    def _beginning(self, ids: torch.Tensor, length: int = 60) -> str:
        """What can be searched for in the data: the first characters of a document of ids `[S]`."""
        if self.processing_class is None:
            return " ".join(map(str, ids.tolist()))[:length]
        return self.processing_class.decode(ids, skip_special_tokens=True)[:length]

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, ...]:
        """As transformers' own, and adds what the batch's target tokens lose to the account of the validation."""
        labels = inputs.get("labels")
        if labels is not None:
            labels = inputs["labels"] = labels.masked_fill(self._repeats(len(labels), labels.device)[:, None], -100)
        loss, *rest = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)
        if loss is not None and labels is not None:
            tokens = int((labels != -100).sum())
            self._loss_and_tokens += torch.tensor([float(loss) * tokens, tokens], dtype=torch.float64)
        return loss, *rest

    def _repeats(self, rows: int, device: torch.device) -> torch.Tensor:
        """Which rows of a batch, `[B]`, only fill up the last one, so that all processes have as many."""
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return torch.zeros(rows, dtype=torch.bool, device=device)
        return torch.arange(rows, device=device) + self.accelerator.process_index * rows >= state.remainder

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As transformers' own, but for the loss: the mean over all target tokens, however they are put in batches.

        transformers takes the mean of the batches' means, which changes with their size and with the processes.
        """
        self._loss_and_tokens = torch.zeros(2, dtype=torch.float64)
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        account = self._loss_and_tokens
        if self.accelerator.num_processes > 1:
            account = self.accelerator.gather(account[None].to(self.args.device)).sum(0)
        if f"{metric_key_prefix}_loss" in output.metrics and account[1] > 0:
            output.metrics[f"{metric_key_prefix}_loss"] = float(account[0] / account[1])
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validates; refuses a loss that is not finite, which would pass for the best one."""
        metrics = super().evaluate(*args, **kwargs)
        if not math.isfinite(metrics.get("eval_loss", 0.0)):
            raise self._diverged(f"update {self.state.global_step}: the validation has a loss")
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Only what has its name for good may go up, and that is done at the end of `_save_checkpoint`.
        if self._aside is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._look_at_updates(self.state.global_step)
        if not all(bool(tensor.isfinite().all()) for tensor in self.model.parameters()):
            raise self._diverged(f"update {self.state.global_step}: there are weights")
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        with told_in_a_line(run, name):
            self._write_aside(model, trial, run, name)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            remove_old_checkpoints(run / name, self.args.save_total_limit, [Path(best)] if best else [])

    def _write_aside(self, model: nn.Module, trial: Any, run: Path, name: str) -> None:
        if self.args.should_save and not Path(self.args.output_dir).is_dir():
            # It was there when the run began: on a drive that is gone, say, it must not be made anew.
            raise FileNotFoundError(f"{run} is no longer there")
        self._aside = aside = run / UNFINISHED
        try:
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
        finally:
            self._aside = None
        find_best_checkpoint(run, self.state, name)
        if self.args.should_save:
            self.state.save_to_json(str(run / UNFINISHED / name / "trainer_state.json"))
        # Each process has written its random state there.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish_checkpoint(run / UNFINISHED / name, run / name)
        self.accelerator.wait_for_everyone()

    def _load_best_model(self) -> None:
        damage = checkpoint_damage(Path(self.state.best_model_checkpoint))
        if damage is None:
            super()._load_best_model()
            # Whether its decoders had begun to read each other, which the Trainer knows nothing of.
            best = type(self.model.config).from_pretrained(self.state.best_model_checkpoint)
            self.model.config.twin_partner = best.twin_partner
        else:
            logger.warning(f"the best model, {self.state.best_model_checkpoint}, is lost ({damage}): the last is kept")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs; what is not finite becomes None, since JSON has no word for it."""
        super().log(finite_or_none(logs), *args, **kwargs)
        self._look_at_updates(self.state.global_step)

    def _diverged(self, what: str, pairs: str = "") -> ValueError:
        return ValueError(
            f"training diverged at {what} or gradient that is not finite, with learning_rate="
            f"{self.args.learning_rate:g} ({self._get_learning_rate():g} at this update): use a lower learning_rate "
            f"or more warmup_steps, and leave out half precision; the checkpoints before are sound{pairs}"
        )


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


def finite_or_none(values: dict) -> dict:
    """A copy whose floats are finite or None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


__all__ = [
    "ElapsedTimeCallback",
    "EpochCallback",
    "EpochLengthSampler",
    "OwnPartnerCallback",
    "PatienceCallback",
    "PunctualSaveCallback",
    "SharedProcessorsCallback",
    "StopSignalCallback",
    "TitleTrainer",
    "find_best_checkpoint",
    "finite_or_none",
    "is_whole",
]
