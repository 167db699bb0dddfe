"""JoeyNMT's recurrent model: its search(), its TrainManager's step."""

from pathlib import Path
from types import SimpleNamespace

import joeynmt
import torch
from joeynmt.batch import Batch as JoeyBatch
from joeynmt.config import _check_special_symbols, parse_train_args
from joeynmt.model import Model, build_model
from joeynmt.search import search
from joeynmt.training import TrainManager
from joeynmt.vocabulary import Vocabulary
from worker import Batch, Ready, serve, vocabulary, words


def build(settings: dict) -> Model:
    size, layers = settings["hidden_size"], settings["num_layers"]
    vocab = Vocabulary(vocabulary(settings["vocab_size"]), SimpleNamespace(**_check_special_symbols({})))
    common = {"type": "recurrent", "rnn_type": "lstm", "embeddings": {"embedding_dim": size}, "num_layers": layers}
    return build_model(
        {
            "tied_embeddings": True,
            "encoder": {**common, "hidden_size": size // 2, "bidirectional": True},
            "decoder": {**common, "hidden_size": size, "attention": "bahdanau", "input_feeding": True},
        },
        vocab,
        vocab,
    )


def to_tensors(model: Model, batch: Batch, with_target: bool) -> JoeyBatch:
    sources, lengths, _ = model.src_vocab.sentences_to_ids([words(source) for source, _ in batch], bos=False)
    targets = None
    if with_target:
        targets = torch.tensor(model.trg_vocab.sentences_to_ids([words(target) for _, target in batch])[0])
    tensors = JoeyBatch(
        src=torch.tensor(sources),
        src_length=torch.tensor(lengths),
        src_prompt_mask=None,
        trg=targets,
        trg_prompt_mask=None,
        indices=torch.arange(len(batch)),
        device=torch.device("cpu"),
        pad_index=model.pad_index,
        eos_index=model.eos_index,
        is_train=with_target,
    )
    tensors.sort_by_src_length()
    return tensors


def prepare_decode(settings: dict, batches: list[Batch]) -> Ready:
    model = build(settings).eval()
    tensors = [to_tensors(model, batch, with_target=False) for batch in batches]
    length = settings["length"]

    def run() -> int:
        # Its predict() does not hand min_output_length on.
        outputs = [
            search(
                model,
                batch,
                max_output_length=length,
                min_output_length=length,
                beam_size=settings["generate"]["num_beams"],
                beam_alpha=1.0,
            )[0]
            for batch in tensors
        ]
        return sum(int((output != model.pad_index).sum()) for output in outputs)

    return model.parameters(), run


def prepare_train(settings: dict, batches: list[Batch]) -> Ready:
    model = build(settings)
    model.loss_function = ("crossentropy", 0.0)
    options = {
        "batch_size": settings["batch_size"],
        "normalization": "tokens",
        "learning_rate": 1e-3,
        "clip_grad_norm": 1.0,
        # It knows no constant rate, and its default does not run with this torch.
        "scheduling": "decaying",
    }
    manager = TrainManager(
        rank=0,
        model=model,
        model_dir=Path(settings["scratch_dir"]),
        device=torch.device("cpu"),
        autocast={"device_type": "cpu", "enabled": False},
        train_args=parse_train_args(options),
    )
    tensors = [to_tensors(model, batch, with_target=True) for batch in batches]

    def run() -> int:
        for batch in tensors:
            # As the loop of train_and_validate, which cannot be called for one batch.
            manager._train_step(batch)
            manager.clip_grad_fun(parameters=model.parameters())
            manager.optimizer.step()
            model.zero_grad()
        return sum(batch.ntokens for batch in tensors)

    return model.parameters(), run


if __name__ == "__main__":
    serve({"decode": prepare_decode, "train": prepare_train}, joeynmt)
