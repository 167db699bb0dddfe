"""What models of transformers have in common: padding, and a training step as its Trainer does it."""

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, Trainer, TrainingArguments
from worker import Batch, Ready

PAD_ID, END_ID = 0, 3


def pad_ids(rows: list[list[int]], padding: int = PAD_ID) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids with the end id after them, `[B, S]` padded on the right, and their mask."""
    rows = [torch.tensor([*row, END_ID]) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True, padding_value=padding), mask


def prepare_training(model: PreTrainedModel, settings: dict, batches: list[Batch]) -> Ready:
    """Trains with the Trainer's optimizer; bfloat16 as the Trainer's `bf16`: weights stay in float32."""
    model.train()
    arguments = TrainingArguments(output_dir=settings["scratch_dir"], use_cpu=True, learning_rate=1e-3, report_to=[])
    optimizer_class, optimizer_flags = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = optimizer_class(model.parameters(), **optimizer_flags)
    reduced = settings["dtype"] != "float32"
    inputs = []
    for batch in batches:
        input_ids, attention_mask = pad_ids([source for source, _ in batch])
        labels, _ = pad_ids([target for _, target in batch], padding=-100)
        inputs.append({"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels})

    def run() -> int:
        for batch in inputs:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=getattr(torch, settings["dtype"]), enabled=reduced):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
            optimizer.step()
        return sum(int((batch["labels"] >= 0).sum()) for batch in inputs)

    return model.parameters(), run
