"""BART of transformers, made small: 3 layers and 2, which at hidden 256 gives the LSTMs' number of parameters."""

import transformers
from huggingface import END_ID, pad_ids, prepare_training
from transformers import BartConfig, BartForConditionalGeneration
from worker import Batch, Ready, serve


def build(settings: dict) -> BartForConditionalGeneration:
    size = settings["hidden_size"]
    config = BartConfig(
        vocab_size=settings["vocab_size"],
        d_model=size,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=4 * size,
        decoder_ffn_dim=4 * size,
        max_position_embeddings=settings["max_length"],
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    return BartForConditionalGeneration(config)


def prepare_decode(settings: dict, batches: list[Batch]) -> Ready:
    model = build(settings).eval()
    sources = [pad_ids([source for source, _ in batch]) for batch in batches]
    length = settings["length"]

    def run() -> int:
        flags = {"min_new_tokens": length, "max_new_tokens": length, **settings["generate"]}
        outputs = [model.generate(input_ids=ids, attention_mask=mask, **flags) for ids, mask in sources]
        return sum(int((output[:, 1:] != END_ID).sum()) for output in outputs)

    return model.parameters(), run


def prepare_train(settings: dict, batches: list[Batch]) -> Ready:
    return prepare_training(build(settings), settings, batches)


if __name__ == "__main__":
    serve({"decode": prepare_decode, "train": prepare_train}, transformers)
