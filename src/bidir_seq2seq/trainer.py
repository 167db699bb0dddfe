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
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput, SchedulerType
from transformers.utils import logging

from .callbacks import PunctualSaveCallback, find_best_checkpoint
from .consistency import read_twice
from .ending import falls_at_the_end, stable_updates, updates_of_falling_rate
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
from .sampler import EpochCallback, EpochLengthSampler
from .sequence_training import BeamInputs, RiskInputs
from .teachers import TeacherInputs

with extra("train"):
    # Without it there is no Trainer, and transformers does not say why.
    import accelerate
    from transformers import Seq2SeqTrainer

logger = logging.get_logger(__name__)

# Updates in a row that may have a gradient that is not finite. float16's loss scaling overflows by design, and skips
# updates itself until its scale fits.
MAX_BAD_UPDATES, MAX_BAD_UPDATES_FP16 = 3, 30


def _give_rate(optimizer: torch.optim.Optimizer, weights: set[nn.Parameter], rate: float) -> None:
    """Lets weights learn at a rate of their own, whatever else their groups say."""
    for group in list(optimizer.param_groups):
        theirs = [weight for weight in group["params"] if weight in weights]
        group["params"] = [weight for weight in group["params"] if weight not in weights]
        optimizer.add_param_group({**group, "params": theirs, "lr": rate})


class TitleTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer that skips updates which are not finite, and stops when they do not end.

    A single bad batch is left out; weights, checkpoints and logs never hold NaN or infinity. A checkpoint is whole or
    not there.

    Args:
        sequence_inputs: What has the model write before each update, or its teachers read it, to learn from that.
            Default: nothing.

    Raises:
        ValueError: After three such updates in a row, on a validation loss that is not finite, and before a checkpoint
            with weights that are not finite.
        OSError: If a checkpoint cannot be saved; in one line, with what still stands.
    """

    def __init__(
        self, *args: Any, sequence_inputs: RiskInputs | BeamInputs | TeacherInputs | None = None, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.sequence_inputs = sequence_inputs
        self._aside: Path | None = None
        self._batches: deque[dict] = deque(maxlen=self.args.gradient_accumulation_steps)
        # On the device, where counting costs no waiting: bad updates in a row up to now, and the most there have been.
        self._bad_updates = torch.zeros((), device=self.args.device)
        self._most_bad_updates = torch.zeros((), device=self.args.device)
        # The last validation of this process: after which update, and what it found.
        self._validated: tuple[int, dict[str, float]] = (-1, {})
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

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """All validation pairs, whatever `dataloader_drop_last` says of the training's."""
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drops

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
            falling = updates_of_falling_rate(self.args, num_training_steps)
            if falls_at_the_end(self.args):
                stable_updates(num_training_steps, self.args.get_warmup_steps(num_training_steps), falling)
            self.args.lr_scheduler_kwargs = {**(given or {}), "num_decay_steps": falling}
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        finally:
            # Of another number of updates it would be another one.
            self.args.lr_scheduler_kwargs = given

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer would make one update more whenever a run that has ended is started again, and of a stream begin
        # epochs for ever.
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of a batch of `input_ids` `[B, S]` and `labels` `[B, T]`.

        One that is not finite counts as 0 in the mean of the log.
        """
        self._batches.append(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        return loss if self.args.logging_nan_inf_filter else torch.where(loss.isfinite(), loss, 0.0)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; in training of what the model writes of the batch, of what its teachers make of it, or
        of the batch read twice, if that is asked for."""
        if model.training:
            plain = self.accelerator.unwrap_model(model)
            if self.sequence_inputs is not None:
                inputs = self.sequence_inputs(plain, inputs)
            elif weight := getattr(self.args, "r_drop", 0):
                inputs = read_twice(inputs, weight, plain.config.label_smoothing)
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
        for batch in accelerate.utils.send_to_device(list(self._batches), self.args.device):
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
        """As transformers' own, but for two things: the loss is the mean over all target tokens, however they are put
        in batches, and titles are scored once each, however many processes write them.

        transformers takes the mean of the batches' means, which changes with their size and with the processes.
        """
        self._loss_and_tokens = torch.zeros(2, dtype=torch.float64)
        # Seq2SeqTrainer would keep the rows that fill up the last batch, and they would count as empty titles.
        self.gather_function = self.accelerator.gather_for_metrics
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
        self._validated = self.state.global_step, metrics
        return metrics

    def evaluate_kept(self) -> dict[str, float]:
        """Metrics of the model that a training has left: of the last validation, if that was of the same weights."""
        update, metrics = self._validated
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        is_kept = update == self.state.global_step and best in (None, update)
        return metrics if is_kept else self.evaluate()

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
        for callback in self.callback_handler.callbacks:
            # transformers looks for the state of each in what it has read from a checkpoint, which knows none of a
            # callback that is new to the run.
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks.setdefault(type(callback).__name__, {})
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
        if "train_samples_per_second" in logs:
            # transformers counts what was planned, of a training that may have ended early.
            pairs = self.state.global_step * pairs_per_update(self.args)
            logs["train_samples_per_second"] = round(pairs / logs["train_runtime"], 3)
        super().log(finite_or_none(logs), *args, **kwargs)
        self._look_at_updates(self.state.global_step)

    def _diverged(self, what: str, pairs: str = "") -> ValueError:
        return ValueError(
            f"training diverged at {what} or gradient that is not finite, with learning_rate="
            f"{self.args.learning_rate:g} ({self._get_learning_rate():g} at this update): use a lower learning_rate "
            f"or more warmup_steps, and leave out half precision; the checkpoints before are sound{pairs}"
        )


def finite_or_none(values: dict) -> dict:
    """A copy whose floats are finite or None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


__all__ = ["TitleTrainer", "finite_or_none"]
