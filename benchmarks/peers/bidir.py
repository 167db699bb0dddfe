"""Our model; also the way of rerunning everything for each token, on the same model."""

import torch
import transformers
from huggingface import END_ID, pad_ids, prepare_training
from rerun import rerun_everything
from worker import Batch, Ready, serve

import bidir_seq2seq
from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration


def build(settings: dict) -> BidirSeq2SeqForConditionalGeneration:
    heads = 8
    config = BidirSeq2SeqConfig(
        vocab_size=settings["vocab_size"],
        embedding_size=settings["hidden_size"],
        hidden_size=settings["hidden_size"],
        encoder_layers=settings["num_layers"],
        decoder_layers=settings["num_layers"],
        num_attention_heads=heads,
        attention_head_size=settings["hidden_size"] // heads,
        **settings["config"],
    )
    return BidirSeq2SeqForConditionalGeneration(config)


def prepare_decode(settings: dict, batches: list[Batch]) -> Ready:
    model = build(settings).eval().to(getattr(torch, settings["dtype"]))
    sources = [pad_ids([source for source, _ in batch]) for batch in batches]
    length = settings["length"]

    @torch.inference_mode()
    def generate() -> int:
        flags = {"min_new_tokens": length, "max_new_tokens": length, **settings["generate"]}
        outputs = [model.generate(input_ids=ids, attention_mask=mask, **flags) for ids, mask in sources]
        return sum(int((output[:, 1:] > END_ID).sum()) for output in outputs)

    def rerun() -> int:
        num_beams = settings["generate"]["num_beams"]
        found = [titles for source in sources for titles in rerun_everything(model, *source, length, num_beams)]
        return sum(len(titles[0].ids) for titles in found)

    return model.parameters(), rerun if settings["rerun"] else generate


def prepare_train(settings: dict, batches: list[Batch]) -> Ready:
    return prepare_training(build(settings), settings, batches)


if __name__ == "__main__":
    serve({"decode": prepare_decode, "train": prepare_train}, bidir_seq2seq, transformers)
