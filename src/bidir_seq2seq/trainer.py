"""transformers' Trainer, with an order of pairs that a resumed run repeats and an eye on what is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_pt_utils import get_length_grouped_indices

from .extras import extra

with extra("train"):
    # Without it there is no Trainer, and transformers does not say why.
    import accelerate  # noqa: F401
    from transformers import Seq2SeqTrainer


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


class EpochLengthSampler(Sampler[int]):
    """Groups pairs of like length, in an order that depends on the seed and the epoch alone.

    transformers' sampler draws from the common random state, which is another one after a training is resumed.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class EpochCallback(TrainerCallback):
    """Tells the sampler the epoch; accelerate does not when it skips the batches before a checkpoint."""

    def __init__(self, sampler: EpochLengthSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The epoch as a whole number; resumed in its middle, it is the same one."""
        self.sampler.epoch = int((state.epoch or 0) + 1e-6)


class TitleTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer that skips updates which are not finite, and stops when they do not end.

    A single bad batch is left out; weights, checkpoints and logs never hold NaN or infinity.

    Raises:
        ValueError: After three such updates in a row, on a validation loss that is not finite, and before a checkpoint
            with weights that are not finite.
    """

    bad_loss = False
    bad_updates = 0

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # `train_dataset` has lost the column of lengths, which the model does not take.
        lengths = self.train_dataset[self.args.length_column_name]
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = EpochLengthSampler(lengths, batch_size, seed)
        self.add_callback(EpochCallback(sampler))
        return sampler

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of a batch of `input_ids` `[B, S]` and `labels` `[B, T]`.

        One that is not finite is remembered, and counted as 0 in the mean of the log.
        """
        loss = super().training_step(*args, **kwargs)
        if torch.isfinite(loss):
            return loss
        self.bad_loss = True
        return loss if self.args.logging_nan_inf_filter else torch.zeros_like(loss)

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | torch.Tensor | None = None) -> float | torch.Tensor:
        # The last look at the gradients before the optimizer takes them.
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        bad = self.bad_loss or not math.isfinite(float(grad_norm))
        if self.accelerator.num_processes > 1:
            # A process alone must not skip an update: the others would go on with different weights.
            bad = bool(self.accelerator.gather(torch.tensor([bad], device=self.args.device)).any())
        self.bad_loss, self.bad_updates = False, self.bad_updates + 1 if bad else 0
        # float16's loss scaling overflows by design and skips updates itself until its scale fits.
        if self.bad_updates >= (30 if self.args.fp16 else 3):
            raise self._diverged(
                f"update {self.state.global_step + 1}: {self.bad_updates} updates in a row had a loss"
            )
        if bad and not self.args.fp16:
            model.zero_grad(set_to_none=True)
        return grad_norm

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validates; refuses a loss that is not finite, which would pass for the best one."""
        metrics = super().evaluate(*args, **kwargs)
        if not math.isfinite(metrics.get("eval_loss", 0.0)):
            raise self._diverged(f"update {self.state.global_step}: the validation has a loss")
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not all(bool(tensor.isfinite().all()) for tensor in self.model.parameters()):
            raise self._diverged(f"update {self.state.global_step}: there are weights")
        return super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs; what is not finite becomes None, since JSON has no word for it."""
        super().log(finite_or_none(logs), *args, **kwargs)

    def _diverged(self, what: str) -> ValueError:
        return ValueError(
            f"training diverged at {what} or gradient that is not finite, with learning_rate="
            f"{self.args.learning_rate:g} ({self._get_learning_rate():g} at this update): use a lower learning_rate "
            "or more warmup_steps, and leave out half precision; the checkpoints before are sound"
        )


def finite_or_none(values: dict) -> dict:
    """A copy whose floats are finite or None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


__all__ = ["ElapsedTimeCallback", "EpochCallback", "EpochLengthSampler", "TitleTrainer", "finite_or_none"]
